"""Reconstruction: how much of the training data can be read from weights."""

from slipstream.lazy_names import names_of

__getattr__ = names_of("slipstream.recipes")
