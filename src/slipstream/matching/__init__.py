"""How to choose the permutation that lays a source network over a target."""

from slipstream.matching.activations import match_activations
from slipstream.matching.assignment import Assignment, assign
from slipstream.matching.gradients import GradientSampler, match_gradients
from slipstream.matching.low_rank import LowRank
from slipstream.matching.objective import Objective
from slipstream.matching.procrustes import Rotation, match_rotations
from slipstream.matching.solve import Matching, Solver, solve
from slipstream.matching.weights import match_weights

__all__ = [
    "Assignment",
    "GradientSampler",
    "LowRank",
    "Matching",
    "Objective",
    "Rotation",
    "Solver",
    "assign",
    "match_activations",
    "match_gradients",
    "match_rotations",
    "match_weights",
    "solve",
]
