"""The loss of the whole network as a landscape over the values of two references."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slipstream.evaluation import Task
from slipstream.modes.modes import Modes
from slipstream.weights import Weights


@dataclass(frozen=True)
class ModePlane:
    """Result of `mode_plane`."""

    pair: tuple[int, int]  # the two modes
    first: Tensor  # (points,) values of the reference of the first mode
    second: Tensor  # (points,)
    losses: Tensor  # (points, points): losses[i, j] is that at first[i], second[j]; float64
    path: Tensor  # (2, steps) where the run went


def mode_plane(
    modes: Modes,
    task: Task | Callable[[Weights], Tensor | float],
    *,
    pair: tuple[int, int] = (0, 1),
    points: int = 21,
    margin: float = 0.25,
    progress: Callable[[int, int], None] | None = None,
) -> ModePlane:
    """Measure the loss over the values of two references; others stay as at the last step.

    With two modes in all, this is the landscape of the whole network.

    Args:
        modes: A decomposed run.
        task: The model, its loss and the data it is measured on; BatchNorm is recalibrated for
            each point. A function of all weights, as in 0.1, is deprecated.
        pair: Which two modes.
        points: Values of each reference.
        margin: How far to look beyond the run, as a share of its own range.
        progress: Called after each loss with their number so far, and in all.

    Returns:
        The losses, and the path of the run through the plane.

    Raises:
        ValueError: If there are no two such modes, or `points` is below 2.

    Example:
        >>> from slipstream.modes import fit_modes
        >>> from slipstream.trajectory import Trajectory
        >>> times = torch.linspace(0, 1, 5)
        >>> run = [{"weight": torch.stack([t, 1 - t, t * t])[None]} for t in times]
        >>> modes = fit_modes(Trajectory.from_weights(run), modes=2)
        >>> task = Task(
        ...     torch.nn.Linear(3, 1, bias=False), [torch.eye(3)], lambda m, x: m(x).square().sum()
        ... )
        >>> plane = mode_plane(modes, task, points=3)
        >>> plane.losses.shape, plane.path.shape
        (torch.Size([3, 3]), torch.Size([2, 5]))
    """
    loss = _loss_of(task)
    count = len(modes.references)
    if len(set(pair)) < 2 or not all(0 <= mode < count for mode in pair):
        raise ValueError(f"pair must be two of the modes 0 to {count - 1}, got {pair}.")
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}.")
    path = modes.references[list(pair)]
    axes = [_around(values, points, margin) for values in path]
    losses = torch.empty(points, points, dtype=torch.float64)
    references = modes.references[:, -1].clone()
    for i, first in enumerate(axes[0]):
        for j, second in enumerate(axes[1]):
            references[list(pair)] = torch.stack([first, second])
            losses[i, j] = loss(modes.weights_from(references))
            if progress is not None:
                progress(i * points + j + 1, points * points)
    return ModePlane(pair, axes[0], axes[1], losses, path)


def _loss_of(task: Task | Callable[[Weights], Tensor | float]) -> Callable[[Weights], float]:
    if not isinstance(task, Task):
        text = "mode_plane takes a Task now, instead of a loss of all weights."
        warnings.warn(text, DeprecationWarning, stacklevel=3)
        own = task
        return lambda weights: float(own(weights))
    measured = replace(task, metrics={})

    def loss(weights: Weights) -> float:
        return measured.evaluate(weights={**weights, **measured.recalibrated(weights)})["loss"]

    return loss


def _around(values: Tensor, points: int, margin: float) -> Tensor:
    low, high = float(values.min()), float(values.max())
    beyond = margin * (high - low)
    return torch.linspace(low - beyond, high + beyond, points, dtype=torch.float64)
