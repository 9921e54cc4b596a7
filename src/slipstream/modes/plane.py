"""The loss of the whole network as a landscape over the values of two references."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
    loss: Callable[[Weights], Tensor | float],
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
        loss: Maps all weights to a number. Networks with BatchNorm need statistics that belong to
            the weights: recalibrate them in here.
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
        >>> run = [{"w": torch.stack([t, 1 - t, t * t])} for t in times]
        >>> modes = fit_modes(Trajectory.from_weights(run), modes=2)
        >>> plane = mode_plane(modes, lambda weights: weights["w"].square().sum(), points=3)
        >>> plane.losses.shape, plane.path.shape
        (torch.Size([3, 3]), torch.Size([2, 5]))
    """
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
            losses[i, j] = float(loss(modes.weights_from(references)))
            if progress is not None:
                progress(i * points + j + 1, points * points)
    return ModePlane(pair, axes[0], axes[1], losses, path)


def _around(values: Tensor, points: int, margin: float) -> Tensor:
    low, high = float(values.min()), float(values.max())
    beyond = margin * (high - low)
    return torch.linspace(low - beyond, high + beyond, points, dtype=torch.float64)
