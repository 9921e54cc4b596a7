"""The loss on straight lines between weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.evaluation import Task, takes_task
from slipstream.landscape.evaluator import Progress, evaluate_points
from slipstream.landscape.points import named_weights
from slipstream.trajectory import Layout
from slipstream.weights import Weights, difference, norm

LOSS = "loss"


@dataclass(frozen=True)
class LossLine:
    """Result of `loss_along`."""

    positions: Tensor  # (points,) from 0; integers are the given weights
    distances: Tensor  # (points,) Euclidean path length up to each point
    values: Mapping[str, Tensor]  # name of the metric to (points,), float64; "loss" is one

    @property
    def losses(self) -> Tensor:
        """The loss at each point, (points,)."""
        return self.values[LOSS]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "positions": self.positions.tolist(),
            "distances": self.distances.tolist(),
            "values": {name: value.tolist() for name, value in self.values.items()},
        }


@dataclass(frozen=True)
class Barrier:
    """Result of `loss_barrier`: a line, and how far it leaves its chord."""

    line: LossLine  # positions 0 (start) to 1 (end)

    @property
    def height(self) -> float:
        """How far the loss rises above the chord between its two ends; 0 if it never does."""
        return self.rise(LOSS)

    def rise(self, metric: str) -> float:
        """Return how far a metric rises above its chord, for metrics that should be low."""
        return float(self._above(metric).max())

    def drop(self, metric: str) -> float:
        """Return how far a metric falls below its chord, for metrics that should be high."""
        return float((0 - self._above(metric)).max())

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        names = self.line.values
        return {
            "height": self.height,
            "rises": {name: self.rise(name) for name in names},
            "drops": {name: self.drop(name) for name in names},
            "line": self.line.to_json(),
        }

    def _above(self, metric: str) -> Tensor:
        if metric not in self.line.values:
            known = ", ".join(self.line.values)
            raise ValueError(f"metric must be one of {known}, got {metric!r}.")
        return above_chord(self.line.positions, self.line.values[metric])


@takes_task
def loss_along(
    weights: Sequence[Weights] | Mapping[str, Weights],
    task: Task,
    *,
    points: int = 25,
    memory: int | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> LossLine:
    """Measure the loss along the straight lines from each of several weights to the next.

    Between `w_k` and `w_(k+1)` the points are `(1 - t) w_k + t w_(k+1)`, t evenly from 0 to 1.

    Args:
        weights: Two or more, of the same layout, with names if you like.
        task: The model, left as it was; the data, the loss and the metrics to measure.
        points: Evaluations between two weights, both ends included.
        memory: Bytes that a chunk of points may take, as of `evaluate_points`.
        resume: A file for computed points, to continue after an interruption.
        progress: Called with the number of points done, and of all.

    Returns:
        Loss and metrics at every point.

    Raises:
        ValueError: If there are not two weights, they differ in layout or hold a NaN, `points` is
            below 2, or as of `evaluate_points`.

    Example:
        >>> from torch import nn
        >>> bowl = lambda model, batch: model.weight.square().sum()
        >>> ends = [{"weight": torch.full((1, 1), w)} for w in (-1.0, 1.0)]
        >>> task = Task(nn.Linear(1, 1, bias=False), [torch.zeros(1)], bowl)
        >>> loss_along(ends, task, points=3).losses
        tensor([1., 0., 1.], dtype=torch.float64)
    """
    named = named_weights(weights)
    if len(named) < 2:
        raise ValueError(f"weights must be two or more to go between, got {len(named)}.")
    table = polyline(len(named), points)
    values = evaluate_points(named, table, task, memory=memory, resume=resume, progress=progress)
    return loss_line(list(named.values()), table, values)


@takes_task
def loss_barrier(
    start: Weights,
    end: Weights,
    task: Task,
    *,
    points: int = 25,
    memory: int | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> Barrier:
    """Measure how far the loss rises on the straight line from `start` to `end`.

    The height is `max_t L((1 - t) start + t end) - ((1 - t) L(start) + t L(end))`.

    Args:
        start: Weights at position 0.
        end: Weights at position 1; the same layout.
        task: The model, left as it was; the data, the loss and the metrics to measure.
        points: Evaluations, both ends included.
        memory: Bytes that a chunk of points may take, as of `evaluate_points`.
        resume: A file for computed points, to continue after an interruption.
        progress: Called with the number of points done, and of all.

    Returns:
        The line, and the heights of the barriers of loss and metrics.

    Raises:
        ValueError: If the weights differ in layout or hold a NaN, `points` is below 2, or as of
            `evaluate_points`.

    Example:
        >>> from torch import nn
        >>> bowls = lambda model, batch: (model.weight.square() - 1).square().sum()
        >>> left, right = ({"weight": torch.full((1, 1), w)} for w in (-1.0, 1.0))
        >>> task = Task(nn.Linear(1, 1, bias=False), [torch.zeros(1)], bowls)
        >>> loss_barrier(left, right, task, points=3).height
        1.0

    Source: "Git Re-Basin" (Ainsworth, Hayase, Srinivasa, 2023), Definition 2.2, with the chord for
    the mean of the two ends.
    """
    ends = {"start": start, "end": end}
    return Barrier(
        loss_along(ends, task, points=points, memory=memory, resume=resume, progress=progress)
    )


def polyline(corners: int, points: int) -> Tensor:
    """Return the coefficients of points on the lines from each corner to the next.

    Args:
        corners: How many.
        points: Evaluations between two of them, both ends included.

    Returns:
        (1 + (corners - 1) * (points - 1), corners), float64.

    Raises:
        ValueError: If `points` is below 2.

    Example:
        >>> polyline(3, 2)
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]], dtype=torch.float64)
    """
    if points < 2:
        raise ValueError(f"points must be at least 2 (the two ends), got {points}.")
    rows = torch.zeros((corners - 1) * (points - 1) + 1, corners, dtype=torch.float64)
    for number in range(len(rows)):
        corner, step = divmod(number, points - 1)
        rows[number, corner] = 1 - step / (points - 1)
        if step:
            rows[number, corner + 1] = step / (points - 1)
    return rows


def loss_line(corners: Sequence[Weights], table: Tensor, values: Mapping[str, Tensor]) -> LossLine:
    """Return the values at the points of a polyline as a line."""
    positions = table @ torch.arange(len(corners), dtype=torch.float64)
    return LossLine(positions, _distances(corners, positions), values)


def above_chord(positions: Tensor, values: Tensor) -> Tensor:
    """Return how far values lie above the straight line between the first and the last of them."""
    return values - torch.lerp(values[0], values[-1], positions)


def learned(weights: Weights) -> dict[str, Tensor]:
    """Return the tensors that count for distances: floating, but not BatchNorm statistics.

    They are in float32 or better, so that differences keep their digits.
    """
    return {
        name: weights[name].detach().to(torch.promote_types(weights[name].dtype, torch.float32))
        for name in Layout.of_weights(weights).learned
    }


def _distances(corners: Sequence[Weights], positions: Tensor) -> Tensor:
    parts = [learned(corner) for corner in corners]
    lengths = [norm(difference(b, a)) for a, b in pairwise(parts)]
    ends = torch.tensor([0.0, *lengths], dtype=torch.float64).cumsum(0)
    whole = positions.floor().long().clamp(max=len(lengths) - 1)
    return torch.lerp(ends[whole], ends[whole + 1], positions - whole)
