"""A generative model of checkpoints: later weights from weights and a wanted metric."""

from slipstream.lazy_names import names_of

__getattr__ = names_of("slipstream.recipes")
