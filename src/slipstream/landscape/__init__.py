"""The loss along lines and curves and over planes of weight space, and what networks share."""

from slipstream.landscape.alignment import AlignedBarriers, align_then_barrier
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
from slipstream.landscape.similarity import prediction_agreement, representation_similarity
from slipstream.landscape.span import Shape, Span, SpanMetrics, evaluate_span
from slipstream.landscape.study import LandscapeStudy, landscape_study, networks_of_transfer

__all__ = [
    "AlignedBarriers",
    "Barrier",
    "Curve",
    "CurvePlan",
    "Descent",
    "LandscapeStudy",
    "LossLine",
    "LossPlane",
    "Place",
    "Plane",
    "Shape",
    "Span",
    "SpanMetrics",
    "align_then_barrier",
    "cosine",
    "evaluate_points",
    "evaluate_span",
    "fit_curve",
    "landscape_study",
    "loss_along",
    "loss_barrier",
    "loss_plane",
    "mix",
    "networks_of_transfer",
    "plane_through",
    "prediction_agreement",
    "random_plane",
    "representation_similarity",
    "trajectory_plane",
]
