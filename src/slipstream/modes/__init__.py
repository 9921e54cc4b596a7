"""Decompose a run into a few modes, groups of weights that move in step."""

from slipstream.modes.fit import fit_modes
from slipstream.modes.modes import Modes

__all__ = ["Modes", "fit_modes"]
