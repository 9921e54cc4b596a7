"""The angle between two sets of weights, and how it changes with them."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slipstream.deprecated import moved_names
from slipstream.weights import Weights, inner

__getattr__ = moved_names(__name__)  # of version 0.1


def weight_cosine(first: Weights, second: Weights) -> float:
    """Return the cosine of the angle between two sets of weights, all tensors as one vector.

    Biases and the gains of normalisation, which have fewer than two dimensions, are left out.

    Args:
        first: Some weights.
        second: Weights with the same layout.

    Returns:
        The cosine, summed in float64; NaN if one of them is zero.

    Example:
        >>> weight_cosine({"w": torch.tensor([[1.0, 0.0]])}, {"w": torch.tensor([[1.0, 1.0]])})
        0.7071067811865475
    """
    names = measured_names(first)
    a, b = ({name: weights[name] for name in names} for weights in (first, second))
    lengths = math.sqrt(inner(a, a) * inner(b, b))
    return inner(a, b) / lengths if lengths else math.nan


def squared_cosine_gradient(
    first: Sequence[Tensor], second: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of cos^2(first, second), all tensors of each taken as one vector.

    With cos = a.b / (|a| |b|):  d cos^2 / da = 2 cos (b / (|a| |b|) - cos a / |a|^2).

    Args:
        first: Tensors of a.
        second: Tensors of b, in the same shapes.

    Returns:
        The gradients for `first` and for `second`.

    Example:
        >>> a, b = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
        >>> squared_cosine_gradient([a], [b])
        ([tensor([0.0000, 0.5000])], [tensor([ 0.5000, -0.5000])])
    """
    across = _dot(first, second)
    own, other = _dot(first, first), _dot(second, second)
    lengths = (own * other).sqrt().clamp_min(torch.finfo(own.dtype).tiny)
    cosine = across / lengths

    def slopes(of: Sequence[Tensor], to: Sequence[Tensor], square: Tensor) -> list[Tensor]:
        along = cosine / square.clamp_min(torch.finfo(square.dtype).tiny)
        pairs = zip(of, to, strict=True)
        return [(2 * cosine * (b / lengths - along * a)).to(a) for a, b in pairs]

    return slopes(first, second, own), slopes(second, first, other)


def measured_names(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the weights that the angle is measured over: no biases, no gains of normalisation.

    These have fewer than two dimensions.
    """
    return [name for name, value in weights.items() if value.dim() > 1]


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The inner product over all tensors, in float32 or better."""
    products = [
        (a * b).sum(dtype=torch.promote_types(a.dtype, torch.float32))
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(products).sum()
