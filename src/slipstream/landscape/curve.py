"""A curve of low loss between two solutions: its ends are held, its bends trained."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from slipstream.deprecated import moved_names
from slipstream.evaluation import Batch, Task, takes_task
from slipstream.landscape.corner_training import CornerTraining
from slipstream.landscape.line import Barrier, LossLine, learned
from slipstream.landscape.plans import CurvePlan
from slipstream.landscape.span import Shape, Span, evaluate_span
from slipstream.storage.fingerprints import batch_digest
from slipstream.storage.resumable_state import ResumableState
from slipstream.training.plan import BEFORE
from slipstream.weights import (
    Weights,
    check_same_layout,
    clone,
    difference,
    first_nonfinite,
    inner,
    interpolate,
    parameter_names,
)

__getattr__ = moved_names(__name__)  # of version 0.1


@dataclass(frozen=True)
class FittedCurve:
    """Result of `fit_curve`."""

    plan: CurvePlan
    span: Span  # start, bends, end
    straight: Barrier  # on the straight line from start to end
    along: Barrier  # on the curve
    training_losses: tuple[float, ...]  # mean of each epoch, at random positions
    steps: int
    seconds: float  # of the training

    @property
    def controls(self) -> tuple[Weights, ...]:
        """The weights that make the curve: start, bends, end."""
        return self.span.corners

    def at(self, position: float) -> dict[str, Tensor]:
        """Return the weights at a position from 0 to 1, BatchNorm's statistics recalibrated."""
        return self.span.at(position)


@takes_task
def fit_curve(
    start: Weights,
    end: Weights,
    task: Task,
    *,
    plan: CurvePlan | None = None,
    measured_on: Iterable[Batch] | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[[int, int | None], object] | None = None,
) -> FittedCurve:
    """Fit a curve from `start` to `end` along which the loss stays low.

    Each step takes the gradient at a random position t and hands it to the bends:
    min E_t loss(P(t)), with P(t) = (1 - t)^2 start + 2 t (1 - t) bend + t^2 end for one bend of a
    bezier curve. The bends start on the straight line.

    Source: "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs" (Garipov et al., 2018),
    equation 2; "Essentially No Barriers in Neural Network Energy Landscape" (Draxler et al., 2018).

    Args:
        start: Weights of the model at position 0.
        end: Weights at position 1; same layout.
        task: The model, left as it was; the data to train on, the loss, and the metrics that are
            measured along the curve.
        plan: What to fit and how.
        measured_on: Batches to measure the loss on along the curve; by default `task.data`.
        checkpoint: A file to keep the state in; if it is there, the fit is resumed from it.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The curve, and the loss along it and along the straight line.

    Raises:
        ValueError: If the ends are equal, hold a NaN, or differ in their layout; if there is no
            data or the loss is not finite; or if the checkpoint is of another fit.

    Example:
        >>> from slipstream.training import TrainingPlan
        >>> loss = lambda model, batch: (model.weight.square() - batch).square().mean()
        >>> task = Task(nn.Linear(1, 1, bias=False), [torch.ones(1)], loss)
        >>> left, right = {"weight": -torch.ones(1, 1)}, {"weight": torch.ones(1, 1)}
        >>> plan = CurvePlan(descent=TrainingPlan(epochs=1))
        >>> fit_curve(left, right, task, plan=plan).steps
        1
    """
    plan = plan or CurvePlan()
    model, loss, data = task.model, task.loss, task.data
    _check_ends(model, start, end)
    shape = Shape(plan.shape, plan.bends + 2)
    corners = [interpolate(start, end, i / (shape.corners - 1)) for i in range(shape.corners)]
    corners[0], corners[-1] = clone(start), clone(end)  # to the bit
    bends = range(1, shape.corners - 1)
    training = CornerTraining(task, plan.descent, shape=shape, corners=corners, trained=bends)
    saved = None
    if checkpoint is not None:
        ends = batch_digest({"start": start, "end": end}).hex()
        identity = {"plan": asdict(plan), "ends": ends}
        saved = ResumableState(checkpoint, identity, before=BEFORE)
        if (state := saved.read()) is not None:
            training.load_state_dict(state)

    def after_epoch() -> None:
        if saved is not None:
            saved.offer(training.state_dict, last=training.finished)

    training.run(
        lambda batch: loss(model, batch), data=data, on_epoch=after_epoch, progress=progress
    )
    trained = training.corners()
    for i in bends:
        corners[i] |= {name: trained[i][name] for name in start}
    measured = task if measured_on is None else task.on(measured_on)
    span = Span(shape, tuple(corners), task)
    line = Span(Shape("simplex", 2), (corners[0], corners[-1]), task)
    straight, along = (barrier_along(way, measured, points=plan.points) for way in (line, span))
    return FittedCurve(
        plan, span, straight, along, tuple(training.losses), training.step, training.seconds
    )


@takes_task
def barrier_along(
    span: Span,
    task: Task,
    *,
    points: int = 25,
    progress: Callable[[int, int], object] | None = None,
) -> Barrier:
    """Measure how far the loss rises along a curve or a line, above the chord of its two ends.

    Args:
        span: A curve, a polyline, or a simplex of two corners.
        task: The model, left as it was; the data, the loss and the metrics to measure.
        points: Evaluations, both ends included.
        progress: Called with the number of points done, and of all.

    Returns:
        Loss and metrics at evenly spread positions, with the path length up to there.

    Raises:
        ValueError: If the span is not a line or curve, there is no data, or `points` is below 2.
    """
    if span.shape.name == "simplex" and span.shape.corners > 2:
        raise ValueError(f"span must be a line or a curve, got {span.shape}.")
    found = evaluate_span(span, task, points=points, progress=progress)
    rows = [span.shape.coefficients(position) for position in found.positions]
    table = torch.tensor(rows, dtype=torch.float64)
    positions = torch.tensor(found.positions, dtype=torch.float64)
    return Barrier(LossLine(positions, _distances(span, table), found.values))


def _distances(span: Span, table: Tensor) -> Tensor:
    """The path length up to each point, from the inner products of the corners."""
    corners = [learned(corner) for corner in span.corners]
    sides = [difference(corner, corners[0]) for corner in corners[1:]]
    gram = torch.tensor([[inner(a, b) for b in sides] for a in sides], dtype=torch.float64)
    moved = table.diff(dim=0)[:, 1:]  # coefficients sum to 1: the first corner drops out
    lengths = torch.einsum("pi,ij,pj->p", moved, gram, moved).clamp_min(0).sqrt()
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _check_ends(model: nn.Module, start: Weights, end: Weights) -> None:
    check_same_layout(start, end)
    for name, weights in (("start", start), ("end", end)):
        if bad := first_nonfinite(weights):
            raise ValueError(f"{name} holds a NaN or an infinity in the tensor {bad!r}.")
    trained = [name for name in parameter_names(model) if name in start]
    if all(torch.equal(start[name], end[name]) for name in trained):
        raise ValueError("start and end are equal: there is nothing between them.")
