"""Decompose a run into a few modes, groups of weights that move in step; average its snapshots."""

from slipstream.deprecated import moved_names
from slipstream.modes.comparison import Explained, ModesComparison, compare_modes
from slipstream.modes.compression import ModesCompression, compress_to_modes
from slipstream.modes.embedded import EmbeddedModes, EmbeddingReport
from slipstream.modes.fit import fit_modes
from slipstream.modes.growth import Growth
from slipstream.modes.modes import Modes
from slipstream.modes.moments import OnlinePlan
from slipstream.modes.online import Coefficients, OnlineModes
from slipstream.modes.plane import ModePlane, mode_plane

__all__ = [
    "Coefficients", "EmbeddedModes", "EmbeddingReport", "Explained", "Growth", "ModePlane",
    "Modes", "ModesComparison", "ModesCompression", "OnlineModes", "OnlinePlan", "compare_modes",
    "compress_to_modes", "fit_modes", "mode_plane",
]  # fmt: skip

__getattr__ = moved_names("slipstream.modes")
