"""Self-supervised pre-training of a trunk with a branch per kind of data."""

from slipstream.lazy_names import names_of

__getattr__ = names_of("slipstream.recipes")
