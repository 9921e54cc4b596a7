"""The loss along lines and curves and over planes of weight space, and what networks share."""

from typing import TYPE_CHECKING

from slipstream.deprecated import moved_names
from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
    from slipstream.landscape.alignment import AlignedBarriers, align_then_barrier
    from slipstream.landscape.angles import weight_cosine
    from slipstream.landscape.curvature import (
        Curvature,
        CurvatureAlong,
        GradientNoise,
        Sharpness,
        curvature_along,
        gradient_noise,
        measure_curvature,
        sharpness,
    )
    from slipstream.landscape.curve import FittedCurve, barrier_along, fit_curve
    from slipstream.landscape.evaluator import evaluate_points
    from slipstream.landscape.hessian import hessian_product
    from slipstream.landscape.line import Barrier, LossLine, loss_along, loss_barrier
    from slipstream.landscape.plane import (
        LossPlane,
        Plane,
        PlanePoint,
        loss_plane,
        plane_through,
        random_plane,
        trajectory_plane,
    )
    from slipstream.landscape.plans import (
        AlignmentPlan,
        CurvaturePlan,
        CurvePlan,
        PlaneGrid,
        StudyPlan,
    )
    from slipstream.landscape.points import mix
    from slipstream.landscape.similarity import prediction_agreement, representation_similarity
    from slipstream.landscape.span import Shape, Span, SpanMetrics, evaluate_span
    from slipstream.landscape.spectrum import (
        HessianSpectrum,
        HessianTrace,
        SpectrumPlan,
        hessian_spectrum,
        hessian_trace,
    )
    from slipstream.landscape.study import LandscapeStudy, landscape_study, networks_of_transfer

__all__ = [
    "AlignedBarriers", "AlignmentPlan", "Barrier", "Curvature", "CurvatureAlong", "CurvaturePlan",
    "CurvePlan", "FittedCurve", "GradientNoise", "HessianSpectrum", "HessianTrace",
    "LandscapeStudy", "LossLine", "LossPlane", "Plane", "PlaneGrid", "PlanePoint", "Shape",
    "Sharpness", "Span", "SpanMetrics", "SpectrumPlan", "StudyPlan", "align_then_barrier",
    "barrier_along", "curvature_along", "evaluate_points", "evaluate_span", "fit_curve",
    "gradient_noise", "hessian_product", "hessian_spectrum", "hessian_trace", "landscape_study",
    "loss_along", "loss_barrier", "loss_plane", "measure_curvature", "mix", "networks_of_transfer",
    "plane_through", "prediction_agreement", "random_plane", "representation_similarity",
    "sharpness", "trajectory_plane", "weight_cosine",
]  # fmt: skip

__getattr__ = lazy_names(__name__, __file__, moved_names("slipstream.landscape"))
