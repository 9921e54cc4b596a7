"""Small maps shared by all neurons, learned so that a network absorbs a stream in one pass."""

from slipstream.lazy_names import names_of

__getattr__ = names_of("slipstream.recipes")
