"""Operator networks: pre-trained on several equations, tuned to an unseen one by its equation."""

from slipstream.lazy_names import names_of

__getattr__ = names_of("slipstream.recipes")
