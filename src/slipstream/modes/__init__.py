"""Decompose a run into a few modes, groups of weights that move in step; average its snapshots."""

from slipstream.modes.average_rules import EMA, LAWA, SWA, AverageRule, parse_rule
from slipstream.modes.averages import Averages, average_run
from slipstream.modes.choosing import AverageChoice, Candidate, average_candidates, choose_average
from slipstream.modes.comparison import Explained, ModesComparison, compare_modes
from slipstream.modes.compression import ModesCompression, compress_to_modes
from slipstream.modes.embedded import EmbeddedModes, EmbeddingReport
from slipstream.modes.fit import fit_modes
from slipstream.modes.growth import Growth
from slipstream.modes.modes import Modes
from slipstream.modes.online import Coefficients, OnlineModes
from slipstream.modes.plane import ModePlane, mode_plane

__all__ = [
    "EMA",
    "LAWA",
    "SWA",
    "AverageChoice",
    "AverageRule",
    "Averages",
    "Candidate",
    "Coefficients",
    "EmbeddedModes",
    "EmbeddingReport",
    "Explained",
    "Growth",
    "ModePlane",
    "Modes",
    "ModesComparison",
    "ModesCompression",
    "OnlineModes",
    "average_candidates",
    "average_run",
    "choose_average",
    "compare_modes",
    "compress_to_modes",
    "fit_modes",
    "mode_plane",
    "parse_rule",
]
