"""The loss over a plane of weight space."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, Metric
from slipstream.landscape.directions import Plane
from slipstream.landscape.evaluator import Progress, evaluate_points
from slipstream.landscape.line import LOSS, with_loss

Extent = tuple[tuple[float, float], tuple[float, float]]  # lowest and highest x, and of y


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
            "marks": {name: asdict(place) for name, place in plane.marks.items()},
            "path": None if path is None else path.tolist(),
            "path_outside": None if outside is None else outside.tolist(),
            "shares": None if plane.shares is None else list(plane.shares),
        }


def loss_plane(
    model: nn.Module,
    loss: Loss,
    *,
    plane: Plane,
    data: Iterable[Batch],
    metrics: Mapping[str, Metric] | None = None,
    points: int = 41,
    margin: float = 0.25,
    extent: Extent | None = None,
    calibration: Iterable[Batch] | None = None,
    recalibrate: bool = True,
    memory: int | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> LossPlane:
    """Measure the loss on a grid over a plane of weight space.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        plane: What `plane_through`, `random_plane` or `trajectory_plane` returned.
        data: Batches; every point sees the same ones, in eval mode.
        metrics: What else to measure: name to a function of the model and a batch.
        points: Values of x, and of y.
        margin: How far to look beyond what is marked, as a share of its range.
        extent: Lowest and highest x, and y, if not all that is marked with a margin.
        calibration: Batches of training data, for the statistics of BatchNorm at each point.
        recalibrate: False mixes these statistics instead.
        memory: Bytes that a chunk of points may take, as of `evaluate_points`.
        resume: A file for computed points, to go on after an interruption.
        progress: Called with the number of points done, and of all.

    Returns:
        Loss and metrics over the grid.

    Raises:
        ValueError: If `points` is below 2, the extent is empty, or as of `evaluate_points`.

    Example:
        >>> from slipstream.landscape import plane_through
        >>> bowl = lambda model, batch: model.weight.square().sum()
        >>> places = ([0.0, 0.0], [1.0, 0.0], [0.0, 2.0])
        >>> corners = [{"weight": torch.tensor([place])} for place in places]
        >>> model, data = nn.Linear(2, 1, bias=False), [torch.zeros(1)]
        >>> plane = plane_through(corners)
        >>> loss_plane(model, bowl, plane=plane, data=data, points=2, margin=0).losses
        tensor([[0., 4.],
                [1., 5.]], dtype=torch.float64)
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}.")
    (left, right), (low, high) = extent or _extent(plane, margin)
    if not (left < right and low < high):
        raise ValueError(
            f"extent must be ((lowest x, highest x), (lowest y, highest y)), got "
            f"{((left, right), (low, high))}."
        )
    x = torch.linspace(left, right, points, dtype=torch.float64)
    y = torch.linspace(low, high, points, dtype=torch.float64)
    grid = torch.cartesian_prod(x, y)  # (points * points, 2)
    values = evaluate_points(
        model,
        with_loss(loss, metrics),
        corners=[plane.origin, *plane.directions],
        coefficients=torch.cat([torch.ones(len(grid), 1), grid], 1),
        data=data,
        calibration=calibration,
        recalibrate=recalibrate,
        names=("the origin of the plane", *plane.labels),
        memory=memory,
        resume=resume,
        progress=progress,
    )
    return LossPlane(plane, x, y, {n: value.view(points, points) for n, value in values.items()})


def _extent(plane: Plane, margin: float) -> Extent:
    """All that is marked, and the path, with a margin."""
    marks = [(place.x, place.y) for place in plane.marks.values()]
    places = torch.tensor([*marks, (0.0, 0.0)], dtype=torch.float64)
    if plane.path is not None:
        places = torch.cat([places, plane.path])
    reach = torch.full((1, 2), plane.reach, dtype=torch.float64)
    places = torch.cat([places, reach, -reach])
    low, high = places.amin(0), places.amax(0)
    beyond = margin * (high - low)
    low, high = low - beyond, high + beyond
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))
