"""Decompose a run into a few modes, groups of weights that move in step; average its snapshots."""

from slipstream.modes.average_rules import EMA, LAWA, SWA, AverageRule, parse_rule
from slipstream.modes.averages import Averages, average_run
from slipstream.modes.choosing import AverageChoice, Candidate, average_candidates, choose_average
from slipstream.modes.fit import fit_modes
from slipstream.modes.modes import Modes
from slipstream.modes.online import Coefficients, OnlineModes

__all__ = [
    "EMA",
    "LAWA",
    "SWA",
    "AverageChoice",
    "AverageRule",
    "Averages",
    "Candidate",
    "Coefficients",
    "Modes",
    "OnlineModes",
    "average_candidates",
    "average_run",
    "choose_average",
    "fit_modes",
    "parse_rule",
]
