"""How a run moves: speed, direction and phases; what the motion says of the learned function."""

from slipstream.dynamics.motion import Motion, measure_motion
from slipstream.dynamics.phases import Phase, Phases, find_phases
from slipstream.dynamics.principal_path import PrincipalPath, principal_path

__all__ = [
    "Motion",
    "Phase",
    "Phases",
    "PrincipalPath",
    "find_phases",
    "measure_motion",
    "principal_path",
]
