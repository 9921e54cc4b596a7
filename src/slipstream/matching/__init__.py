"""How to choose the permutation that aligns a source network to a target."""

from slipstream.matching.activations import match_activations
from slipstream.matching.assignment import Assignment, assign
from slipstream.matching.basis import BasisMatching, match_basis
from slipstream.matching.gradients import GradientSampler, LowRank
from slipstream.matching.objective import Objective
from slipstream.matching.plans import BasisPlan
from slipstream.matching.procrustes import Rotation, match_rotations
from slipstream.matching.solve import Matching, Solver, solve
from slipstream.matching.tensors import match_gradients, match_weights

__all__ = [
    "Assignment", "BasisMatching", "BasisPlan", "GradientSampler", "LowRank", "Matching",
    "Objective", "Rotation", "Solver", "assign", "match_activations", "match_basis",
    "match_gradients", "match_rotations", "match_weights", "solve",
]  # fmt: skip
