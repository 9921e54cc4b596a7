"""The loss along lines and over planes of weight space, and what networks have in common."""

from slipstream.landscape.directions import (
    Place,
    Plane,
    plane_through,
    random_plane,
    trajectory_plane,
)
from slipstream.landscape.evaluator import evaluate_points
from slipstream.landscape.line import Barrier, LossLine, loss_along, loss_barrier
from slipstream.landscape.plane import LossPlane, loss_plane
from slipstream.landscape.points import mix

__all__ = [
    "Barrier",
    "LossLine",
    "LossPlane",
    "Place",
    "Plane",
    "evaluate_points",
    "loss_along",
    "loss_barrier",
    "loss_plane",
    "mix",
    "plane_through",
    "random_plane",
    "trajectory_plane",
]
