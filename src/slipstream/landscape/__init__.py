"""The loss along lines and curves and over planes of weight space, and what networks share."""

from slipstream.landscape.angles import cosine
from slipstream.landscape.corner_training import Descent
from slipstream.landscape.curve import Curve, CurvePlan, fit_curve
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
from slipstream.landscape.span import Shape, Span, SpanMetrics, evaluate_span

__all__ = [
    "Barrier",
    "Curve",
    "CurvePlan",
    "Descent",
    "LossLine",
    "LossPlane",
    "Place",
    "Plane",
    "Shape",
    "Span",
    "SpanMetrics",
    "cosine",
    "evaluate_points",
    "evaluate_span",
    "fit_curve",
    "loss_along",
    "loss_barrier",
    "loss_plane",
    "mix",
    "plane_through",
    "random_plane",
    "trajectory_plane",
]
