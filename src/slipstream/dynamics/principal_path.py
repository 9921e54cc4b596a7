"""The path of a run in the few directions in which it goes furthest."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.dynamics.motion import Progress, check_finite_sums, moving_names
from slipstream.trajectory import Trajectory
from slipstream.weights import wide


@dataclass(frozen=True, eq=False)
class PrincipalPath:
    """The snapshots of a run along its first principal components; result of `principal_path`."""

    steps: tuple[int, ...]  # T + 1 optimiser steps
    coordinates: Tensor  # (K, T + 1) float64, in units of the weights; the mean snapshot is 0
    shares: Tensor  # (K,) share of each component in the squared distances from the mean snapshot


def principal_path(
    trajectory: Trajectory, *, components: int = 2, progress: Progress | None = None
) -> PrincipalPath:
    """Return the path of a run in its first principal components.

    They are the eigenvectors of the Gram matrix of the centred snapshots, `G = X X^T`, scaled by
    the roots of their eigenvalues. `G` is summed in float64, tensor by tensor in blocks.

    A random walk has such components too: of a long one in many dimensions the first takes 61 %,
    the first two 76 % ("PCA of High Dimensional Random Walks with Comparison to Neural Network
    Training", Antognini, Sohl-Dickstein, 2018). So a large share alone does not say that training
    is low-dimensional.

    Args:
        trajectory: At least two snapshots.
        components: How many, from 1 to the number of snapshots - 1.
        progress: Called before each tensor.

    Returns:
        Coordinates and shares; each component points to where the run ends.

    Raises:
        ValueError: If there are too few snapshots, nothing moves, or there is a NaN or an infinity.

    Example:
        >>> run = Trajectory.from_weights([{"w": torch.tensor([3.0, 4.0]) * t} for t in range(3)])
        >>> path = principal_path(run, components=1)
        >>> path.coordinates.round(decimals=9), path.shares
        (tensor([[-5.,  0.,  5.]], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    names = moving_names(trajectory)
    if not 1 <= components < len(trajectory):
        raise ValueError(
            f"components must be from 1 to {len(trajectory) - 1}, one less than there are "
            f"snapshots, got {components}."
        )
    gram = torch.zeros(len(trajectory), len(trajectory), dtype=torch.float64)
    for number, name in enumerate(names):
        if progress is not None:
            progress(name, number, len(names))
        for _, block in trajectory.blocks(name):
            rows = wide(block)
            rows -= rows[0].clone()  # what all snapshots share would drown the little they differ
            check_finite_sums(rows.square().sum(1), name, trajectory.steps)
            gram += rows @ rows.T
    gram -= gram.mean(0)
    gram -= gram.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(gram)  # ascending
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if not values[0] > 0:
        raise ValueError("No weight ever moves in this run: its path is a point.")
    coordinates = (vectors * values.sqrt()).T[:components]
    signs = torch.where(coordinates[:, -1:] < 0, -1.0, 1.0)
    shares = values[:components] / values.sum()
    return PrincipalPath(tuple(trajectory.steps), coordinates * signs, shares)
