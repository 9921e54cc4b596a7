"""A curve of low loss between two solutions: its ends are held, its bends trained."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss
from slipstream.evaluation.determinism import batch_digest
from slipstream.landscape.checkpoint import Checkpoint
from slipstream.landscape.corner_training import CornerTraining, Descent
from slipstream.landscape.line import above_chord
from slipstream.landscape.span import Calibration, Shape, Span, evaluate_span
from slipstream.weights import (
    Weights,
    check_same_layout,
    copy,
    first_nonfinite,
    interpolate,
    parameter_names,
)

CurveName = Literal["bezier", "polyline"]


@dataclass(frozen=True)
class CurvePlan:
    """What is fitted between two solutions, and how, as plain data."""

    shape: CurveName = "bezier"
    bends: int = 1  # control weights between the ends; 1 of a bezier curve makes it quadratic
    descent: Descent = field(default_factory=lambda: Descent(epochs=50, lr=0.05))
    points: int = 11  # where the loss is measured in the end

    def __post_init__(self) -> None:
        if self.shape not in get_args(CurveName):
            raise ValueError(f"shape must be bezier or polyline, got {self.shape!r}.")
        if self.bends < 1:
            raise ValueError(f"bends must be at least 1, got {self.bends}.")
        if self.points < 2:
            raise ValueError(f"points must be at least 2 (the two ends), got {self.points}.")


@dataclass(frozen=True)
class Curve:
    """Result of `fit_curve`."""

    plan: CurvePlan
    span: Span  # start, bends, end
    positions: Tensor  # (points,) from 0 to 1, float64
    straight: Tensor  # (points,) loss on the straight line at these positions, float64
    losses: Tensor  # (points,) loss on the curve
    training_losses: tuple[float, ...]  # mean of each epoch, at random positions
    steps: int
    seconds: float  # of the training

    @property
    def controls(self) -> tuple[Weights, ...]:
        """The weights that make the curve: start, bends, end."""
        return self.span.corners

    @property
    def straight_height(self) -> float:
        """How far the loss rises above the chord between the ends, on the straight line."""
        return float(above_chord(self.positions, self.straight).max())

    @property
    def height(self) -> float:
        """How far the loss rises above the chord between the ends, on the curve."""
        return float(above_chord(self.positions, self.losses).max())

    def at(self, position: float) -> dict[str, Tensor]:
        """Return the weights at a position from 0 to 1, BatchNorm's statistics recalibrated."""
        return self.span.at(position)


def fit_curve(
    model: nn.Module,
    loss: Loss,
    *,
    start: Weights,
    end: Weights,
    data: Iterable[Batch],
    plan: CurvePlan | None = None,
    calibration: Iterable[Batch] | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[[int, int | None], object] | None = None,
) -> Curve:
    """Fit a curve from `start` to `end` along which the loss stays low.

    Each step takes the gradient at a random position t and hands it to the bends:
    min E_t loss(P(t)), with P(t) = (1 - t)^2 start + 2 t (1 - t) bend + t^2 end for one bend of a
    bezier curve. The bends start on the straight line.

    Source: "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs" (Garipov et al., 2018),
    equation 2; "Essentially No Barriers in Neural Network Energy Landscape" (Draxler et al., 2018).

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        start: Weights of the model at position 0.
        end: Weights at position 1; same layout.
        data: Batches to train on; if it has a method `epoch(number)`, that gives those of an epoch.
        plan: What to fit and how.
        calibration: Batches for BatchNorm's statistics, and to measure the loss on; by default
            `data`.
        checkpoint: A file to keep the state in; if it is there, the fit goes on from it.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The curve, and the loss along it and along the straight line.

    Raises:
        ValueError: If the ends are equal, hold a NaN, or differ in their layout; if `data` is
            empty or the loss not finite; or if the checkpoint is of another fit.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> loss = lambda model, batch: (model.weight.square() - batch).square().mean()
        >>> left, right = {"weight": -torch.ones(1, 1)}, {"weight": torch.ones(1, 1)}
        >>> plan = CurvePlan(descent=Descent(epochs=1))
        >>> fit_curve(model, loss, start=left, end=right, data=[torch.ones(1)], plan=plan).steps
        1
    """
    plan = plan or CurvePlan()
    _check_ends(model, start, end)
    shape = Shape(plan.shape, plan.bends + 2)
    corners = [interpolate(start, end, i / (shape.corners - 1)) for i in range(shape.corners)]
    corners[0], corners[-1] = copy(start), copy(end)  # to the bit
    bends = range(1, shape.corners - 1)
    training = CornerTraining(
        model, loss, shape=shape, corners=corners, trained=bends, descent=plan.descent
    )
    kept = None
    if checkpoint is not None:
        ends = batch_digest({"start": start, "end": end}).hex()
        kept = Checkpoint(checkpoint, {"plan": asdict(plan), "ends": ends})
        if (state := kept.read()) is not None:
            training.load_state_dict(state)
    training.run(data, checkpoint=kept, progress=progress)
    for i in bends:
        corners[i] |= training.corners()[i]
    batches = data if calibration is None else calibration
    own = Calibration(model, loss, batches)
    span = Span(shape, tuple(corners), own)
    straight, along = (
        evaluate_span(model, {"loss": loss}, span=way, data=batches, points=plan.points)
        for way in (Span(Shape("simplex", 2), (corners[0], corners[-1]), own), span)
    )
    positions = torch.linspace(0, 1, plan.points, dtype=torch.float64)
    return Curve(
        plan,
        span,
        positions,
        straight.values["loss"],
        along.values["loss"],
        tuple(training.losses),
        training.step,
        training.seconds,
    )


def _check_ends(model: nn.Module, start: Weights, end: Weights) -> None:
    check_same_layout(start, end)
    for name, weights in (("start", start), ("end", end)):
        if bad := first_nonfinite(weights):
            raise ValueError(f"{name} holds a NaN or an infinity in the tensor {bad!r}.")
    trained = [name for name in parameter_names(model) if name in start]
    if all(torch.equal(start[name], end[name]) for name in trained):
        raise ValueError("start and end are equal: there is nothing between them.")
