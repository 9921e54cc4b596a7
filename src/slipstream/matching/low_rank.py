"""A gradient of a linear layer as its two factors: smaller and quicker to compare than dense."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The matrix `left.T @ right`: output gradients and inputs of a linear layer, row by row."""

    left: Tensor  # (rows, outputs)
    right: Tensor  # (rows, inputs)

    def dense(self) -> Tensor:
        """Return the matrix itself, (outputs, inputs)."""
        return self.left.T @ self.right

    def factor(self, axis: int) -> Tensor:
        """Return the factor that lies along an axis of the matrix."""
        return self.right if axis else self.left

    def numel(self) -> int:
        """Return how many numbers the two factors hold."""
        return self.left.numel() + self.right.numel()


Gradient = Tensor | LowRank


def dense(gradient: Gradient) -> Tensor:
    """Return the gradient as a plain tensor."""
    return gradient.dense() if isinstance(gradient, LowRank) else gradient


def dtype_of(gradient: Gradient) -> torch.dtype:
    """Return the dtype of a gradient, plain or low-rank."""
    return gradient.left.dtype if isinstance(gradient, LowRank) else gradient.dtype


def wide(gradient: Gradient) -> Tensor:
    """Return the gradient as a plain tensor in float32 or better, where sums are exact enough."""
    value = dense(gradient)
    return value.to(torch.promote_types(value.dtype, torch.float32))


def inner(first: Gradient, second: Gradient) -> float:
    """Return the inner product of two gradients of one tensor, without forming low-rank ones."""
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        rows = (first.left @ second.left.T) * (first.right @ second.right.T)
        return float(rows.sum(dtype=torch.float64))
    # In pieces: the products of a large tensor are never all there.
    pieces = zip(*(torch.split(dense(g).flatten(), 1 << 22) for g in (first, second)), strict=True)
    return sum(float((wide(a) * wide(b)).sum(dtype=torch.float64)) for a, b in pieces)


def scaled(gradient: Gradient, factor: float) -> Gradient:
    """Return the gradient times a number."""
    if isinstance(gradient, LowRank):
        return LowRank(gradient.left * factor, gradient.right)
    return gradient * factor
