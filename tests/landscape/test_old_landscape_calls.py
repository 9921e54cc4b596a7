"""Calls as version 0.1 had them give what the present ones give, with a DeprecationWarning."""

from dataclasses import fields, is_dataclass

import pytest
import torch
from torch import Tensor

from cases import CASES
from slipstream import landscape
from slipstream.evaluation import Task, accuracy, classification_loss
from slipstream.landscape import (
    AlignmentPlan,
    CurvaturePlan,
    CurvePlan,
    PlaneGrid,
    Shape,
    Span,
    SpectrumPlan,
    StudyPlan,
    align_then_barrier,
    barrier_along,
    curvature_along,
    evaluate_points,
    evaluate_span,
    fit_curve,
    gradient_noise,
    hessian_product,
    hessian_spectrum,
    hessian_trace,
    landscape_study,
    loss_along,
    loss_barrier,
    loss_plane,
    measure_curvature,
    plane_through,
    prediction_agreement,
    representation_similarity,
    sharpness,
)
from slipstream.landscape.line import polyline
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.training import TrainingPlan
from slipstream.trajectory import Trajectory
from slipstream.weights import clone, weights_of

CASE = CASES["mlp"]
MODEL, DATA, LOSS = CASE.model().double(), [], classification_loss
DATA = [(x.double(), y) for x, y in CASE.batches()]
A, B, C = (clone(weights_of(CASE.model(seed=seed).double())) for seed in (1, 2, 3))
ALONE, TASK = Task(MODEL, DATA, metrics={}), Task(MODEL, DATA)
GROUPS = find_neuron_groups(CASE.model(), CASE.inputs())
RUN, PLANE = Trajectory.from_weights([A, B]), plane_through([A, B, C])
SPAN, TABLE, BOTH = Span(Shape("simplex", 2), (A, B)), polyline(2, 3), {"a": A, "b": B}
ACCURACY = {"accuracy": accuracy}
FIT = CurvePlan(descent=TrainingPlan.cosine(epochs=1), points=3)
UNIT = {name: torch.ones_like(value) for name, value in A.items()}

CALLS = {
    "loss_barrier": (
        lambda: loss_barrier(MODEL, LOSS, start=A, end=B, data=DATA, calibration=DATA, points=3),
        lambda: loss_barrier(A, B, ALONE, points=3),
    ),
    "loss_along": (
        lambda: loss_along(MODEL, LOSS, weights=[A, B], data=DATA, metrics=ACCURACY, memory=1),
        lambda: loss_along([A, B], TASK, memory=1),
    ),
    "loss_plane": (
        lambda: loss_plane(MODEL, LOSS, plane=PLANE, data=DATA, points=3, margin=0.5),
        lambda: loss_plane(PLANE, ALONE, grid=PlaneGrid(points=3, margin=0.5)),
    ),
    "evaluate_points": (
        lambda: evaluate_points(MODEL, ACCURACY, corners=[A, B], coefficients=TABLE, data=DATA),
        lambda: evaluate_points([A, B], TABLE, TASK, metrics=ACCURACY),
    ),
    "evaluate_span": (
        lambda: evaluate_span(MODEL, ACCURACY, span=SPAN, data=DATA, points=3),
        lambda: evaluate_span(SPAN, TASK, metrics=ACCURACY, points=3),
    ),
    "barrier_along": (
        lambda: barrier_along(MODEL, LOSS, span=SPAN, data=DATA, points=3),
        lambda: barrier_along(SPAN, ALONE, points=3),
    ),
    "fit_curve": (
        lambda: fit_curve(MODEL, LOSS, start=A, end=B, data=DATA, plan=FIT, measured_on=DATA[:1]),
        lambda: fit_curve(A, B, ALONE, plan=FIT, measured_on=DATA[:1]),
    ),
    "align_then_barrier": (
        lambda: align_then_barrier(
            MODEL, LOSS, source=A, target=B, data=DATA, groups=GROUPS, points=3, restarts=1
        ),
        lambda: align_then_barrier(
            A, B, ALONE, groups=GROUPS, plan=AlignmentPlan(points=3, restarts=1)
        ),
    ),
    "landscape_study": (
        lambda: landscape_study(MODEL, LOSS, weights=BOTH, data=DATA, points=3, layers=["0"]),
        lambda: landscape_study(BOTH, ALONE, plan=StudyPlan(points=3, layers=["0"])),
    ),
    "prediction_agreement": (
        lambda: prediction_agreement(MODEL, weights=BOTH, data=DATA),
        lambda: prediction_agreement(BOTH, TASK),
    ),
    "representation_similarity": (
        lambda: representation_similarity(MODEL, weights=BOTH, data=DATA, layers=["0"]),
        lambda: representation_similarity(BOTH, TASK, layers=["0"]),
    ),
    "hessian_product": (
        lambda: hessian_product(MODEL, LOSS, vector=UNIT, weights=A, data=DATA),
        lambda: hessian_product(UNIT, TASK, weights=A),
    ),
    "hessian_spectrum": (
        lambda: hessian_spectrum(MODEL, LOSS, weights=A, data=DATA, iterations=5),
        lambda: hessian_spectrum(TASK, weights=A, plan=SpectrumPlan(iterations=5)),
    ),
    "hessian_trace": (
        lambda: hessian_trace(MODEL, LOSS, weights=A, data=DATA, samples=2),
        lambda: hessian_trace(TASK, weights=A, samples=2),
    ),
    "sharpness": (
        lambda: sharpness(MODEL, LOSS, weights=A, data=DATA, radius=0.1),
        lambda: sharpness(TASK, weights=A, radius=0.1),
    ),
    "gradient_noise": (
        lambda: gradient_noise(MODEL, LOSS, weights=A, data=DATA),
        lambda: gradient_noise(TASK, weights=A),
    ),
    "measure_curvature": (
        lambda: measure_curvature(MODEL, LOSS, weights=A, data=DATA, samples=2, iterations=5),
        lambda: measure_curvature(TASK, weights=A, plan=CurvaturePlan(iterations=5, samples=2)),
    ),
    "curvature_along": (
        lambda: curvature_along(MODEL, LOSS, trajectory=RUN, data=DATA, steps=[0], samples=2),
        lambda: curvature_along(RUN, TASK, steps=[0], plan=CurvaturePlan(samples=2)),
    ),
}


def tensors(found, prefix=""):
    """All tensors and numbers in a result, by where they are."""
    if isinstance(found, Tensor | int | float):
        return {prefix: torch.as_tensor(found)}
    if is_dataclass(found):
        parts = {f.name: getattr(found, f.name) for f in fields(found) if "seconds" not in f.name}
    else:
        parts = found if isinstance(found, dict) else {}
        if isinstance(found, list | tuple):
            parts = dict(enumerate(found))
    return {
        k: v for name, part in parts.items() for k, v in tensors(part, f"{prefix}/{name}").items()
    }


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_0_1_gives_what_the_present_one_does(name):
    old, new = CALLS[name]
    with pytest.warns(DeprecationWarning, match=f"{name} takes a Task"):
        before = tensors(old())
    now = tensors(new())
    assert before
    assert before.keys() == now.keys()
    for key, value in now.items():
        torch.testing.assert_close(before[key], value, rtol=0, atol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize(
    ("old", "new"), [("Place", "PlanePoint"), ("Curve", "FittedCurve"), ("cosine", "weight_cosine")]
)
def test_names_of_0_1_are_those_of_now(old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now slipstream.landscape.{new}"):
        assert getattr(landscape, old) is getattr(landscape, new)
