"""Side-tuning: learning a task beside a network that is never changed."""

from slipstream.lazy_names import names_of

__getattr__ = names_of("slipstream.recipes")
