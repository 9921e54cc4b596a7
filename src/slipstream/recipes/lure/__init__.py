"""LURE: resetting the least important weights before new data."""

from slipstream.lazy_names import names_of

__getattr__ = names_of("slipstream.recipes")
