"""What two unrelated networks have in common by chance, exactly: by permuting their neurons.

Weights of independent trainings are not independent numbers: both learn to ignore the same inputs,
and a cosine of 0.04 between two first layers means nothing. But the neurons of a hidden layer have
no names: whatever two independent trainings learn, numbering the neurons of one of them anew is as
likely. So the inner product of two matrices is compared with those after all permutations of the
rows (or columns) of one of them, whose mean and variance are known in closed form.
"""

import math
from dataclasses import dataclass

from torch import Tensor

_ROWS, _FEATURES = 512, 2048  # of larger matrices, evenly spaced ones are taken
FEWEST = 8  # neurons: with fewer, no order stands out among all
CHANCE = 6.0  # standard deviations: one in 10^9, some hundred tensors allowed for


@dataclass(frozen=True)
class Surprise:
    """How far an inner product lies from those of all orders of the neurons."""

    deviations: float  # standard deviations above their mean
    highest: float  # what the first one would get with itself: what could have been found


def surprise(first: Tensor, second: Tensor) -> Surprise | None:
    """Return how surprising the inner product of two tensors is if they are unrelated.

    Inputs and outputs of a network do have names, so along their axis even unrelated networks are
    alike. Which axis that is nobody says: the less surprising of the two counts.

    Args:
        first: Rows are outputs, the next axis inputs.
        second: The same shape.

    Returns:
        The surprise, or None if an axis is too short, or a tensor is constant along it.

    Source: "A Combinatorial Central Limit Theorem" (Hoeffding, 1951), for the variance.

    Example:
        >>> import torch
        >>> torch.manual_seed(0)
        <torch...
        >>> weight, other = torch.randn(2, 64, 32)
        >>> abs(surprise(weight, other).deviations) < 4
        True
        >>> surprise(weight, weight + other).deviations > 20
        True
    """
    if first.dim() < 2:
        return None
    found = []
    for axis in (0, 1):
        size = first.shape[axis]
        if size == 1:
            continue
        sides = [_sample(value.transpose(0, axis)) for value in (first, second)]
        along = _along_rows(*sides) if size >= FEWEST else None
        if along is None:
            return None
        found.append(along)
    return min(found, key=lambda one: one.deviations, default=None)


def _sample(value: Tensor) -> Tensor:
    """Some rows and features, evenly spaced."""
    rows = value[:: math.ceil(len(value) / _ROWS)].flatten(1)
    return rows[:, :: math.ceil(rows.shape[1] / _FEATURES)].double()


def _along_rows(first: Tensor, second: Tensor) -> Surprise | None:
    """Compare the inner product with those after all permutations of the rows."""
    # For a uniform permutation p, sum_i d[i, p(i)] of a doubly centred d has mean 0 and variance
    # |d|^2 / (n - 1).
    a, b = first - first.mean(0), second - second.mean(0)
    one, own = a @ b.T, a @ a.T
    spread, own_spread = one.norm(), own.norm()
    if not spread or not own_spread:
        return None
    scale = math.sqrt(len(a) - 1)
    return Surprise(float(one.trace() / spread) * scale, float(own.trace() / own_spread) * scale)
