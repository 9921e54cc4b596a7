"""What an adapter can hold: a displacement as the product of two thin matrices."""

from collections.abc import Mapping

import torch
from torch import Tensor

from slipstream.porting.problem import LazyWeights
from slipstream.weights import Weights


def halves(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return two factors whose product is the nearest matrix of a rank.

    Args:
        matrix: (rows, columns).
        rank: How many columns the first factor has, and rows the second; filled up with noughts.

    Returns:
        (rows, rank) and (rank, columns), of the same size.

    Source: "The approximation of one matrix by another of lower rank" (Eckart, Young, 1936).

    Example:
        >>> up, down = halves(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), 1)
        >>> up @ down
        tensor([[4., 0.],
                [0., 0.]])
    """
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    root = sizes[:rank].sqrt()
    missing = rank - len(root)
    up = torch.nn.functional.pad(left[:, :rank] * root, (0, missing))
    return up, torch.nn.functional.pad(root[:, None] * right[:rank], (0, 0, 0, missing))


def truncated(displacement: Weights, ranks: Mapping[str, int]) -> Weights:
    """Return the nearest displacement that an adapter can hold, lazily.

    Args:
        displacement: Of every tensor.
        ranks: Of the tensors that are adapted.

    Returns:
        A displacement of the same tensors.
    """

    def make(name: str) -> Tensor:
        moved = displacement[name]
        if name not in ranks:
            return moved
        up, down = halves(moved.flatten(1), ranks[name])
        return (up @ down).view(moved.shape)

    return LazyWeights(displacement, make)
