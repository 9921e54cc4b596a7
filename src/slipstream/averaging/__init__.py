"""Averages of snapshots: SWA, EMA and LAWA, of a recorded run or during training."""

from slipstream.averaging.averages import Averages, average_run
from slipstream.averaging.choosing import (
    AverageChoice,
    Candidate,
    average_candidates,
    choose_average,
)
from slipstream.averaging.rules import EMA, LAWA, SWA, AverageRule, parse_rule

__all__ = [
    "EMA", "LAWA", "SWA", "AverageChoice", "AverageRule", "Averages", "Candidate",
    "average_candidates", "average_run", "choose_average", "parse_rule",
]  # fmt: skip
