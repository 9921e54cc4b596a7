"""Several specialists trained together, so that their weights add up."""

from slipstream.lazy_names import names_of

__getattr__ = names_of("slipstream.recipes")
