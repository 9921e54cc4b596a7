"""Averages of snapshots: SWA, EMA, LAWA, decays; of a run or during training; of networks apart."""

from slipstream.averaging.averages import Averages, average_run
from slipstream.averaging.choosing import (
    AverageChoice,
    Candidate,
    average_candidates,
    choose_average,
)
from slipstream.averaging.networks import NetworkAverage, average_networks
from slipstream.averaging.nowcasting import Jump, Nowcaster, NowcastPlan, trend_kernel
from slipstream.averaging.post_hoc import PostHocEMA, post_hoc_ema
from slipstream.averaging.rules import (
    EMA,
    LAWA,
    SWA,
    AverageRule,
    Decay,
    PowerEMA,
    parse_rule,
)

__all__ = [
    "EMA", "LAWA", "SWA", "AverageChoice", "AverageRule", "Averages", "Candidate", "Decay", "Jump",
    "NetworkAverage", "NowcastPlan", "Nowcaster", "PostHocEMA", "PowerEMA", "average_candidates",
    "average_networks", "average_run", "choose_average", "parse_rule", "post_hoc_ema",
    "trend_kernel",
]  # fmt: skip
