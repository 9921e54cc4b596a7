"""How a run moves: speed, direction and phases; what the motion says of the learned function."""

from slipstream.dynamics.complexity import TrainingComplexity
from slipstream.dynamics.complexity_meter import ComplexityMeter, complexity_of_run
from slipstream.dynamics.first_layer import InputBias, with_input_bias
from slipstream.dynamics.motion import Motion, measure_motion
from slipstream.dynamics.phases import Phase, Phases, find_phases
from slipstream.dynamics.principal_path import PrincipalPath, principal_path

__all__ = [
    "ComplexityMeter",
    "InputBias",
    "Motion",
    "Phase",
    "Phases",
    "PrincipalPath",
    "TrainingComplexity",
    "complexity_of_run",
    "find_phases",
    "measure_motion",
    "principal_path",
    "with_input_bias",
]
