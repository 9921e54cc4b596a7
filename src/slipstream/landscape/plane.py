"""Planes of weight space (through three weights, random, or of a run), and the loss over them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.dynamics.principal_path import principal_path
from slipstream.evaluation import Task, takes_task
from slipstream.landscape.evaluator import Progress, evaluate_points
from slipstream.landscape.line import LOSS, learned
from slipstream.landscape.plans import Extent, PlaneGrid
from slipstream.landscape.points import check_corners, mix, named_weights
from slipstream.trajectory import Trajectory
from slipstream.weights import Weights, difference, inner, norm

_COLLINEAR = 1e-4  # sine of an angle; below, rounding in float32 decides where the plane lies


@dataclass(frozen=True)
class PlanePoint:
    """The point of a plane that is nearest to some weights."""

    x: float
    y: float
    outside: float  # Euclidean distance of the weights to it


@dataclass(frozen=True)
class Plane:
    """Two directions from an origin; `weights_at(x, y) = origin + x first + y second`."""

    origin: Weights
    first: Weights  # a tensor for each floating one of the origin; zeros where nothing moves
    second: Weights
    labels: tuple[str, str]  # what x and y are
    marks: Mapping[str, PlanePoint] = field(default_factory=dict)  # what is there, by name
    path: Tensor | None = None  # (steps, 2) of a run, projected
    path_outside: Tensor | None = None  # (steps,) distance of each snapshot to the plane
    shares: tuple[float, float] | None = None  # of a run's variance, along each direction
    reach: float = 0.0  # how far from the origin there is something to see, if nothing is marked

    def weights_at(self, x: float, y: float) -> dict[str, Tensor]:
        """Return the weights at a position, integer tensors as at the origin."""
        return mix([self.origin, *self.directions], [1.0, x, y])

    @property
    def directions(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both directions in the layout of the origin, zeros where a tensor does not move."""
        return _completed(self.first, self.origin), _completed(self.second, self.origin)

    def project(self, weights: Weights) -> PlanePoint:
        """Return the nearest point of the plane, and the distance to it.

        Args:
            weights: The layout of the origin; statistics of BatchNorm do not count.

        Returns:
            The point.

        Raises:
            ValueError: If the layouts differ.
        """
        away = difference(learned(weights), learned(self.origin))
        sides = [learned(side) for side in self.directions]
        grams = torch.tensor(
            [[inner(a, b) for b in sides] for a in sides], dtype=torch.float64
        )  # (2, 2): directions need not be at right angles
        products = torch.tensor([inner(side, away) for side in sides], dtype=torch.float64)
        at = torch.linalg.solve(grams, products)
        rest = mix([away, *sides], [1.0, -float(at[0]), -float(at[1])])
        return PlanePoint(float(at[0]), float(at[1]), norm(rest))

    def marked(self, weights: Mapping[str, Weights]) -> "Plane":
        """Return the plane with the projections of further weights marked on it.

        Args:
            weights: Name to weights of the layout of the origin.

        Returns:
            The same plane with more marks.
        """
        points = {name: self.project(value) for name, value in weights.items()}
        return replace(self, marks={**self.marks, **points})


def plane_through(weights: Sequence[Weights] | Mapping[str, Weights]) -> Plane:
    """Return the plane through three weights.

    x is the distance from the first weights along the line to the second, y the distance from that
    line towards the third.

    Args:
        weights: Three, of the same layout, with names if you like.

    Returns:
        The plane, in which the first weights are the origin, with the three marked.

    Raises:
        ValueError: If there are not three, they differ in layout, hold a NaN, or lie on a line.

    Example:
        >>> corners = [{"w": torch.tensor(w)} for w in ([0.0, 0.0], [2.0, 0.0], [1.0, 3.0])]
        >>> plane_through(corners).marks["weights[2]"]
        PlanePoint(x=1.0, y=3.0, outside=0.0)
    """
    named = named_weights(weights)
    if len(named) != 3:
        raise ValueError(f"A plane goes through three weights, got {len(named)}.")
    check_corners(named)
    names, (origin, second, third) = list(named), named.values()
    parts = [learned(value) for value in (origin, second, third)]
    along, towards = difference(parts[1], parts[0]), difference(parts[2], parts[0])
    length, reach = norm(along), norm(towards)
    x = inner(along, towards) / length if length else 0.0
    height = math.sqrt(max(reach**2 - x**2, 0.0))
    if not min(length, height) > _COLLINEAR * max(length, reach):
        raise ValueError(
            f"{names[0]}, {names[1]} and {names[2]} lie on a line (or two are equal): there are "
            "many planes through it. Measure the line, or give other weights."
        )
    first = mix([along], [1 / length])
    upwards = mix([towards, first], [1.0, -x])
    height = norm(upwards)
    return Plane(
        origin,
        first,
        mix([upwards], [1 / height]),
        labels=(f"distance from {names[0]} towards {names[1]}", f"distance towards {names[2]}"),
        marks={
            names[0]: PlanePoint(0.0, 0.0, 0.0),
            names[1]: PlanePoint(length, 0.0, 0.0),
            names[2]: PlanePoint(x, height, 0.0),
        },
    )


def random_plane(weights: Weights, *, seed: int = 0) -> Plane:
    """Return a plane in two random directions, filter by filter as long as the weights.

    Each filter (a slice along the first axis of a tensor with several axes) of a direction is drawn
    from a normal distribution and scaled by `|filter of the weights| / |filter|`, so that networks
    whose weights are scaled differently are seen at the same scale. Tensors with one axis, biases
    and norms, do not move.

    Args:
        weights: Where the plane goes through.
        seed: Of the draw; the global generator is not touched.

    Returns:
        The plane; x and y are in units of the weights' own length, 1 is as far as they are long.

    Raises:
        ValueError: If no tensor has several axes, or one holds a NaN.

    Example:
        >>> plane = random_plane({"weight": torch.tensor([[3.0, 4.0], [0.0, 1.0]])})
        >>> plane.first["weight"].norm(dim=1)
        tensor([5.0000, 1.0000])

    Source: "Visualizing the Loss Landscape of Neural Nets" (Li, Xu, Taylor, Studer, Goldstein,
    2018), Section 4.
    """
    check_corners({"weights": weights})
    moving = {name: value for name, value in learned(weights).items() if value.dim() > 1}
    if not moving:
        raise ValueError(
            "No tensor of the weights has several axes: there is no filter to draw a direction for."
        )
    generator = torch.Generator().manual_seed(seed)
    directions = [
        # Sorted: a file may list the same tensors in another order.
        {name: _like_filters(moving[name], generator) for name in sorted(moving)}
        for _ in range(2)
    ]
    labels = ("first random direction", "second random direction")
    marks = {"weights": PlanePoint(0.0, 0.0, 0.0)}
    return Plane(weights, directions[0], directions[1], labels, marks, reach=1.0)


def trajectory_plane(trajectory: Trajectory) -> Plane:
    """Return the plane of the first two principal components of a run, through its end.

    The directions are those of `principal_path`, of the largest variance of the snapshots around
    their mean; the plane goes through the last snapshot, so that the values there are exact. x and
    y are distances.

    Args:
        trajectory: Three or more snapshots; they are read in blocks.

    Returns:
        The plane with the path of the run, how far each snapshot lies outside, and the shares of
        the variance.

    Raises:
        ValueError: If there are fewer than three snapshots, one holds a NaN, or the run stands
            still or moves on a straight line.

    Example:
        >>> values = ([0.0, 0.0], [4.0, 0.0], [4.0, 3.0])
        >>> run = Trajectory.from_weights([{"w": torch.tensor(value)} for value in values])
        >>> plane = trajectory_plane(run)
        >>> plane.path_outside.round(decimals=4), round(sum(plane.shares), 4)
        (tensor([0., 0., 0.], dtype=torch.float64), 1.0)

    Source: "Visualizing the Loss Landscape of Neural Nets" (Li, Xu, Taylor, Studer, Goldstein,
    2018), Section 7.2.
    """
    if len(trajectory) < 3:
        raise ValueError(f"A plane of a run needs three snapshots or more, got {len(trajectory)}.")
    path = principal_path(trajectory, components=len(trajectory) - 1)
    if not float(path.shares[1]) > _COLLINEAR**2:
        raise ValueError("The run moves on a straight line: measure the loss along that.")
    first, second = _directions(trajectory, path.coordinates[:2])
    points = (path.coordinates - path.coordinates[:, -1:]).T  # (steps, components)
    outside = points[:, 2:].square().sum(1).sqrt()
    shares = (float(path.shares[0]), float(path.shares[1]))
    return Plane(
        trajectory[-1].weights,
        first,
        second,
        labels=(
            f"first component ({shares[0]:.0%} of the motion)",
            f"second component ({shares[1]:.0%})",
        ),
        marks={
            "start": PlanePoint(float(points[0, 0]), float(points[0, 1]), float(outside[0])),
            "end": PlanePoint(0.0, 0.0, 0.0),
        },
        path=points[:, :2].contiguous(),
        path_outside=outside,
        shares=shares,
    )


@dataclass(frozen=True)
class LossPlane:
    """Result of `loss_plane`."""

    plane: Plane
    x: Tensor  # (points,) float64
    y: Tensor  # (points,)
    values: Mapping[str, Tensor]  # name to (points, points): values[name][i, j] is at x[i], y[j]

    @property
    def losses(self) -> Tensor:
        """The losses, (points, points): losses[i, j] is that at x[i], y[j]."""
        return self.values[LOSS]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the weights as plain data."""
        plane = self.plane
        path, outside = plane.path, plane.path_outside
        return {
            "labels": list(plane.labels),
            "x": self.x.tolist(),
            "y": self.y.tolist(),
            "values": {name: value.tolist() for name, value in self.values.items()},
            "marks": {name: asdict(mark) for name, mark in plane.marks.items()},
            "path": None if path is None else path.tolist(),
            "path_outside": None if outside is None else outside.tolist(),
            "shares": None if plane.shares is None else list(plane.shares),
        }


@takes_task(grid=PlaneGrid)
def loss_plane(
    plane: Plane,
    task: Task,
    *,
    grid: PlaneGrid | None = None,
    memory: int | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> LossPlane:
    """Measure the loss on a grid over a plane of weight space.

    Args:
        plane: What `plane_through`, `random_plane` or `trajectory_plane` returned.
        task: The model, left as it was; the data, the loss and the metrics to measure.
        grid: Where to measure; by default 41 by 41 points around what is marked.
        memory: Bytes that a chunk of points may take, as of `evaluate_points`.
        resume: A file for computed points, to continue after an interruption.
        progress: Called with the number of points done, and of all.

    Returns:
        Loss and metrics over the grid.

    Raises:
        ValueError: If the extent is empty, or as of `evaluate_points`.

    Example:
        >>> from torch import nn
        >>> bowl = lambda model, batch: model.weight.square().sum()
        >>> positions = ([0.0, 0.0], [1.0, 0.0], [0.0, 2.0])
        >>> plane = plane_through([{"weight": torch.tensor([one])} for one in positions])
        >>> task = Task(nn.Linear(2, 1, bias=False), [torch.zeros(1)], bowl)
        >>> loss_plane(plane, task, grid=PlaneGrid(points=2, margin=0)).losses
        tensor([[0., 4.],
                [1., 5.]], dtype=torch.float64)
    """
    grid = grid or PlaneGrid()
    points = grid.points
    (left, right), (low, high) = grid.extent or _extent(plane, grid.margin)
    if not (left < right and low < high):
        raise ValueError(
            f"extent must be ((lowest x, highest x), (lowest y, highest y)), got "
            f"{((left, right), (low, high))}."
        )
    x = torch.linspace(left, right, points, dtype=torch.float64)
    y = torch.linspace(low, high, points, dtype=torch.float64)
    pairs = torch.cartesian_prod(x, y)  # (points * points, 2)
    first, second = plane.directions
    values = evaluate_points(
        {
            "the origin of the plane": plane.origin,
            f"x, {plane.labels[0]},": first,
            f"y, {plane.labels[1]},": second,
        },
        torch.cat([torch.ones(len(pairs), 1), pairs], 1),
        task,
        memory=memory,
        resume=resume,
        progress=progress,
    )
    return LossPlane(plane, x, y, {n: value.view(points, points) for n, value in values.items()})


def _directions(trajectory: Trajectory, scores: Tensor) -> list[dict[str, Tensor]]:
    """The unit directions along which the run has these scores, (2, steps)."""
    sums = scores / scores.square().sum(1, keepdim=True)
    sides: list[dict[str, Tensor]] = [{}, {}]
    for name in trajectory.layout.learned:
        form = trajectory.layout.tensors[name]
        dtype = torch.promote_types(form.dtype, torch.float32)
        found = torch.empty(2, math.prod(form.shape), dtype=dtype)
        for at, block in trajectory.blocks(name):
            rows = block.to(torch.promote_types(block.dtype, torch.float64))
            rows -= rows[-1].clone()  # the scores sum to 0, so any origin gives the same sums
            found[:, at] = (sums.to(rows.dtype) @ rows).to(dtype)
        for side, values in zip(sides, found, strict=True):
            side[name] = values.view(form.shape)
    return sides


def _like_filters(value: Tensor, generator: torch.Generator) -> Tensor:
    dtype = torch.promote_types(value.dtype, torch.float64)
    drawn = torch.randn(value.shape, generator=generator, dtype=dtype)
    own = value.detach().to("cpu", dtype).flatten(1).norm(dim=1)
    scale = own / drawn.flatten(1).norm(dim=1).clamp(min=1e-300)
    scaled: Tensor = drawn * scale.view(-1, *[1] * (value.dim() - 1))
    return scaled.to(value)


def _completed(direction: Weights, origin: Weights) -> dict[str, Tensor]:
    return {name: direction.get(name, torch.zeros_like(v)) for name, v in origin.items()}


def _extent(plane: Plane, margin: float) -> Extent:
    """All that is marked, and the path, with a margin."""
    marks = [(mark.x, mark.y) for mark in plane.marks.values()]
    shown = torch.tensor([*marks, (0.0, 0.0)], dtype=torch.float64)
    if plane.path is not None:
        shown = torch.cat([shown, plane.path])
    reach = torch.full((1, 2), plane.reach, dtype=torch.float64)
    shown = torch.cat([shown, reach, -reach])
    low, high = shown.amin(0), shown.amax(0)
    beyond = margin * (high - low)
    low, high = low - beyond, high + beyond
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))
