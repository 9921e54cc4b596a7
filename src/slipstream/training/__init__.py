"""One loop, one plan, one recorded training that can be interrupted and resumed."""

from slipstream.training.loop import descend
from slipstream.training.plain import TrainingResult, train
from slipstream.training.plan import Descent
from slipstream.training.reinitialise import fresh_weights

__all__ = [
    "Descent",
    "TrainingResult",
    "descend",
    "fresh_weights",
    "train",
]
