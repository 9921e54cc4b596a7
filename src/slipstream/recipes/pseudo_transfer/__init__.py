"""Transfer without the source's data: pseudo pre-training and pseudo semi-supervision."""

from slipstream.lazy_names import names_of

__getattr__ = names_of("slipstream.recipes")
