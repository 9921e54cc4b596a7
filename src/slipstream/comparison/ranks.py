"""The rank of a difference of weights, above what rounding alone would add to it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_EXACT = 512  # rows or columns, up to which all singular values are taken
_ROWS = 256  # held in float64 at a time
_BLOCK = 1 << 20
_LOOKED_FOR = 128  # directions that are looked for in larger ones


@dataclass(frozen=True)
class Rank:
    """How many directions a difference has."""

    rank: int
    limit: int  # the most that it could be, or that was looked for

    @property
    def is_low(self) -> bool:
        """Whether it has far fewer directions than it could have."""
        return 0 < self.rank <= self.limit // 4


def rank_of(first: Tensor, second: Tensor) -> Rank | None:
    """Return the rank of `second - first`, of matrices (rows, all else).

    Singular values count that are above the largest one of a matrix of rounding errors, which is
    their size times sqrt(rows) + sqrt(columns). In large matrices 128 random directions are looked
    at, and a rank of 128 means: at least.

    Args:
        first: A tensor.
        second: The same shape.

    Returns:
        The rank; None if they have fewer than two axes.

    Source: "Finding Structure with Randomness" (Halko, Martinsson, Tropp, 2011), Algorithm 4.1.

    Example:
        >>> torch.manual_seed(0)
        <torch...
        >>> weight = torch.randn(40, 30)
        >>> rank_of(weight, weight + torch.randn(40, 2) @ torch.randn(2, 30))
        Rank(rank=2, limit=30)
    """
    if first.dim() < 2:
        return None
    rows, columns = len(first), first[0].numel()
    matrix, limit = _seen(first, second)
    error = rounding_error(first) + rounding_error(second)
    edge = error * (math.sqrt(rows) + math.sqrt(columns))
    return Rank(int((torch.linalg.svdvals(matrix) > edge).sum()), limit)


def directions_of(first: Tensor, second: Tensor, rank: int) -> Tensor:
    """Return the directions of the inputs in which `second - first` is largest.

    Args:
        first: A tensor of two axes or more.
        second: The same shape.
        rank: How many.

    Returns:
        Orthonormal columns, (all but the first axis, rank).
    """
    found: Tensor = torch.linalg.svd(_seen(first, second)[0], full_matrices=False).Vh
    return found[:rank].T


def _seen(first: Tensor, second: Tensor) -> tuple[Tensor, int]:
    """The difference, or a sketch of it, and the most that its rank could be."""
    rows, columns = len(first), first[0].numel()
    if min(rows, columns) <= _EXACT and first.numel() <= 1 << 22:
        return _difference(first, second), min(rows, columns)
    limit = min(rows, columns, _LOOKED_FOR)
    return _sketch(first, second, limit), limit


def _difference(first: Tensor, second: Tensor) -> Tensor:
    return second.flatten(1).double() - first.flatten(1).double()


def rounding_error(value: Tensor) -> float:
    """Return the size of the errors that storing a tensor made: half of the last digit."""
    wide = torch.promote_types(value.dtype, torch.float32)
    parts = torch.split(value.reshape(-1), _BLOCK)  # a wide copy of all of it would be large
    size = math.hypot(*(float(torch.linalg.vector_norm(part, dtype=wide)) for part in parts))
    return torch.finfo(value.dtype).eps / 2 * size / math.sqrt(max(value.numel(), 1))


def _sketch(first: Tensor, second: Tensor, directions: int) -> Tensor:
    """The part of a large difference that lies in some random directions of its columns."""
    columns = first[0].numel()
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(columns, directions, generator=generator, dtype=torch.float64)
    parts = [slice(n, n + _ROWS) for n in range(0, len(first), _ROWS)]  # all of it would be wide
    seen = torch.empty(len(first), directions, dtype=torch.float64)
    for part in parts:
        seen[part] = _difference(first[part], second[part]) @ probes
    basis = torch.linalg.qr(seen).Q
    found = torch.zeros(directions, columns, dtype=torch.float64)
    for part in parts:
        found += basis[part].T @ _difference(first[part], second[part])
    return found
