"""Families of weights between corners: a sum of the corners, its coefficients given by a shape."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from slipstream.evaluation import Metric, Task, takes_task
from slipstream.landscape.evaluator import Progress, evaluate_points
from slipstream.landscape.points import mix
from slipstream.weights import Weights, check_same_layout

ShapeName = Literal["simplex", "bezier", "polyline"]
Position = float | Sequence[float] | Tensor  # a tensor of one value, or of one for each corner


@dataclass(frozen=True)
class Shape:
    """How much each corner counts at a position: P = sum_i c_i w_i, the c_i summing to 1.

    - `simplex`: the position is the coefficients themselves; with two corners also a number t,
      which is (1 - t, t): the straight line.
    - `bezier`: the position is a number t in [0, 1], c_i = binomial(n, i) (1 - t)^(n - i) t^i for
      i = 0 .. n, n one less than the corners. Only the first and the last corner lie on the curve.
    - `polyline`: the position is a number t in [0, 1]; straight from corner to corner, each piece
      as long as the others in t.

    Source: "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs" (Garipov et al., 2018),
    section 3.2; "Learning Neural Network Subspaces" (Wortsman et al., 2021), section 3.

    Example:
        >>> Shape("bezier", 3).coefficients(0.5)
        (0.25, 0.5, 0.25)
        >>> Shape("simplex", 2).coefficients(0.25)
        (0.75, 0.25)
    """

    name: ShapeName
    corners: int

    def __post_init__(self) -> None:
        if self.name not in get_args(ShapeName):
            known = ", ".join(get_args(ShapeName))
            raise ValueError(f"shape must be one of {known}, got {self.name!r}.")
        if self.corners < 2:
            raise ValueError(f"A {self.name} needs at least 2 corners, got {self.corners}.")

    def coefficients(self, position: Position) -> tuple[float, ...]:
        """Return how much each corner counts at a position.

        Args:
            position: A number from 0 to 1; on a simplex of more than two corners, as many
                values as there are corners, none negative, that sum to 1.

        Returns:
            A coefficient for each corner.

        Raises:
            ValueError: If there is no such position.
        """
        if isinstance(position, Tensor):
            position = position.tolist()
        if not isinstance(position, int | float):
            return self._barycentric(position)
        if self.name == "simplex" and self.corners > 2:
            raise ValueError(f"A position in a simplex is {self.corners} values, got {position}.")
        if not 0 <= position <= 1:
            raise ValueError(f"A position must be from 0 to 1, got {position}.")
        last, t = self.corners - 1, float(position)
        if self.name == "bezier":
            return tuple(
                math.comb(last, i) * (1 - t) ** (last - i) * t**i for i in range(self.corners)
            )
        return tuple(max(0.0, 1 - abs(last * t - i)) for i in range(self.corners))

    def draw(self, generator: np.random.Generator) -> tuple[float, ...]:
        """Return the coefficients at a random position: uniform in t, or on the simplex."""
        if self.name == "simplex":
            return tuple(generator.dirichlet(np.ones(self.corners)).tolist())
        return self.coefficients(generator.random())

    def positions(self, points: int) -> list[Position]:
        """Return evenly spread positions, ends and corners included.

        Args:
            points: How many, from 0 to 1. On a simplex of more than two corners, how many along
                an edge: all multiples of 1 / (points - 1) are taken.

        Returns:
            The positions.

        Raises:
            ValueError: If `points` is below 2.

        Example:
            >>> Shape("simplex", 2).positions(3)
            [0.0, 0.5, 1.0]
            >>> len(Shape("simplex", 3).positions(3))
            6
        """
        if points < 2:
            raise ValueError(f"points must be at least 2 (the two ends), got {points}.")
        if self.name != "simplex" or self.corners == 2:
            return [number / (points - 1) for number in range(points)]
        last = points - 1
        bars = itertools.combinations(range(last + self.corners - 1), self.corners - 1)
        return [
            tuple((b - a - 1) / last for a, b in itertools.pairwise((-1, *bar, last + len(bar))))
            for bar in bars
        ]

    @property
    def middle(self) -> Position:
        """The position of the midpoint: t = 1/2, or the centre of the simplex."""
        if self.name != "simplex" or self.corners == 2:
            return 0.5
        return (1 / self.corners,) * self.corners

    def _barycentric(self, position: Sequence[float]) -> tuple[float, ...]:
        numbers = tuple(float(number) for number in position)
        if self.name != "simplex":
            raise ValueError(f"A position on a {self.name} is one number, got {numbers}.")
        if len(numbers) != self.corners:
            raise ValueError(f"A position in this simplex is {self.corners} values, got {numbers}.")
        if min(numbers) < 0 or abs(sum(numbers) - 1) > 1e-6:
            raise ValueError(f"The values must not be negative and sum to 1, got {numbers}.")
        return numbers


@dataclass(frozen=True)
class Span:
    """Corners and the shape between them; every point of it is ordinary weights.

    Example:
        >>> corners = ({"w": torch.zeros(1)}, {"w": torch.ones(1)})
        >>> Span(Shape("simplex", 2), corners).at(0.25)
        {'w': tensor([0.2500])}
    """

    shape: Shape
    corners: tuple[Weights, ...]
    calibration: Task | None = field(default=None, repr=False, compare=False)  # for BatchNorm

    def __post_init__(self) -> None:
        if len(self.corners) != self.shape.corners:
            raise ValueError(
                f"The shape has {self.shape.corners} corners, but {len(self.corners)} are given."
            )
        for number, corner in enumerate(self.corners[1:], start=1):
            names = ("corner 0", f"corner {number}")
            check_same_layout(self.corners[0], corner, names=names)

    def at(self, position: Position) -> dict[str, Tensor]:
        """Return the weights at a position, BatchNorm's statistics recalibrated for it.

        Args:
            position: As the shape has it.

        Returns:
            Weights with the layout of the corners.

        Raises:
            ValueError: If there is no such position, or the statistics cannot be recalibrated.
        """
        coefficients = self.shape.coefficients(position)
        weights = mix(self.corners, coefficients)
        if self.calibration is not None:
            return weights | self.calibration.recalibrated(weights)
        if max(coefficients) < 1 and any(name.endswith("running_mean") for name in weights):
            raise ValueError(
                "The weights hold running statistics of BatchNorm, which must be recalibrated at "
                "every point: give a Task with the model and training batches."
            )
        return weights

    @property
    def midpoint(self) -> dict[str, Tensor]:
        """The weights in the middle."""
        return self.at(self.shape.middle)


@dataclass(frozen=True)
class SpanMetrics:
    """Result of `evaluate_span`."""

    positions: tuple[Position, ...]
    values: Mapping[str, Tensor]  # name of the metric to (points,), float64

    def worst(self, name: str, *, highest: bool = False) -> float:
        """Return the largest value of a metric, such as a loss, or the smallest of an accuracy."""
        values = self.values[name]
        return float(values.min() if highest else values.max())


@takes_task
def evaluate_span(
    span: Span,
    task: Task,
    *,
    metrics: Mapping[str, Metric] | None = None,
    points: int = 11,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> SpanMetrics:
    """Measure metrics at evenly spread positions of a span.

    Args:
        span: Where to measure; BatchNorm's statistics are recalibrated as the span says, or
            as the task does if it has no calibration.
        task: The model, left as it was, the data, the loss and metrics.
        metrics: What to measure instead of the task's loss and metrics, as of `evaluate_points`.
        points: How many positions; see `Shape.positions`.
        resume: A file for computed points, to continue after an interruption.
        progress: Called after each chunk of points with the number of points done, and of all.

    Returns:
        The positions and the means over the examples there.

    Raises:
        ValueError: If there is no data or `points` is below 2.
    """
    if span.calibration is not None:
        task = replace(task, calibration=span.calibration.calibration_batches)
    positions = tuple(span.shape.positions(points))
    rows = [span.shape.coefficients(position) for position in positions]
    values = evaluate_points(
        {f"corner {number}": corner for number, corner in enumerate(span.corners)},
        torch.tensor(rows, dtype=torch.float64),
        task,
        metrics=metrics,
        resume=resume,
        progress=progress,
    )
    return SpanMetrics(positions, values)
