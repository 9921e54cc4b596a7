"""Going through a run in blocks: the regression of every weight on every reference, in one pass."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.modes.sampling import nonfinite_message
from slipstream.trajectory import Trajectory

_STRIP = 1 << 20  # bytes computed on at a time: small enough for the cache


@dataclass(frozen=True)
class Regression:
    """Least squares of some weights on each of several references with mean 0 and variance 1."""

    mean: Tensor  # (weights,)
    slopes: Tensor  # (references, weights)
    motion: Tensor  # (weights,) squared deviations from the mean, summed over the steps


def blocks(trajectory: Trajectory, name: str) -> Iterator[tuple[slice, Tensor]]:
    """Yield a tensor at every step in stretches, as floating numbers: (steps, stretch)."""
    dtype = computed_in(trajectory.layout.tensors[name].dtype)
    for at, block in trajectory.blocks(name):
        yield at, block.to(dtype)


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which weights of `dtype` are modelled."""
    return dtype if dtype == torch.float64 else torch.float32


def regress_(block: Tensor, references: Tensor) -> Regression:
    """Fit each weight of a block; the block is overwritten by the moves away from its middle row.

    Args:
        block: (steps, weights).
        references: (references, steps), float64.

    Returns:
        Everything per weight, in the dtype of the block.
    """
    steps, width = block.shape
    # The first row of the projection gives the mean, the others the slopes: one product in all.
    projection = torch.cat([references.new_ones(1, steps), references]).to(block) / steps
    projected = block.new_empty(len(projection), width)
    motion = block.new_empty(width)
    pivot = block[steps // 2].clone()
    stretch = max(1, _STRIP // (steps * block.itemsize))
    for start in range(0, width, stretch):
        at = slice(start, start + stretch)
        # What is multiplied is small: no digit is lost to a large mean, and what never moves is 0.
        moves = block[:, at].sub_(pivot[at])
        torch.mm(projection, moves, out=projected[:, at])
        torch.sum(moves * moves, 0, out=motion[at])
    drift, slopes = projected[0], projected[1:]
    motion = (motion - steps * drift * drift).clamp_(min=0)
    return Regression(pivot + drift, slopes, motion)


def check_finite(regression: Regression, moves: Tensor, name: str, steps: list[int]) -> None:
    """Raise if the block that was regressed held a NaN or an infinity, naming tensor and step."""
    if regression.motion.sum().isfinite():
        return
    totals = moves.square().sum(1)
    bad = (~totals.isfinite()).nonzero().flatten()
    # An infinity in the pivot spoils every step.
    step = steps[len(steps) // 2] if len(bad) == len(steps) else steps[int(bad[0])]
    raise ValueError(nonfinite_message(name, step))
