"""Which of two related tensors came first, where the arithmetic of training left traces of it.

A merged LoRA is `second = round(first + product)`. The product is known from the difference, since
its rank is low, and what is left are errors of rounding. They are those of the second: half a unit
in its last place, which doubles wherever a value crosses a power of two. If both came from a third,
the errors of both are left.

Weight decay multiplies, step by step, what gets no gradient (tokens that never occur, dead
neurons): whole rows or columns of the later one are the earlier one's, shrunk by one factor.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.comparison.ranks import Rank, directions_of

_ROWS = 256  # held in float64 at a time
_SMALL = 1 / 8  # of a weight: a larger change has rounding errors of its own
_DROWNED = 1 / 8  # of the mean variance
_FEWEST = 500  # errors, with which a tensor must speak for itself
_NEAR = 0.25  # how far their mean square may be from what is predicted
_SURE, _EACH = 20.0, 3.0  # by how much one origin must be likelier, in logarithms: all, per tensor
_SCALED = 8  # values that not one row or column shrinks by the same factor without a reason
_ALIKE = 4e-6  # of float32, over the errors of a thousand steps


@dataclass(frozen=True)
class Errors:
    """What is left of a difference without its few directions, as errors of rounding."""

    values: int
    # Logarithms, if rounded last were: the second, the first, each once.
    likelihoods: tuple[float, float, float]
    squares: tuple[float, float]  # sums over what the first two predict

    def favours(self, side: int) -> float:
        """Return by how much it is likelier that one was made of the other, than anything else.

        Args:
            side: 0 if the second was made of the first, 1 if the first of the second.

        Returns:
            A difference of logarithms; below zero if something else is likelier.
        """
        others = [one for n, one in enumerate(self.likelihoods) if n != side]
        return self.likelihoods[side] - max(others)

    def allows(self, side: int) -> bool:
        """Return whether this tensor does not speak against it, as far as it can speak."""
        return self.favours(side) > (_EACH if self.values >= _FEWEST else -_EACH)


def rounding_errors(
    first: Tensor, second: Tensor, rank: Rank | None, types: Sequence[torch.dtype]
) -> Errors | None:
    """Return what is left of a difference of low rank.

    Args:
        first: A tensor.
        second: The same shape.
        rank: Of their difference.
        types: The narrowest types that hold each.

    Returns:
        The errors; None if the rank is not low.
    """
    if rank is None or not rank.is_low:
        return None
    directions = directions_of(first, second, rank.rank)
    lost = rank.rank / len(first) + rank.rank / len(directions)  # of the errors, to the fit
    mean = torch.zeros(3, 1).double()
    for a, b in _row_blocks(first, second):
        mean += _predicted(a, b, types).sum(1, True) / first.numel()
    count, sums, logs = 0, torch.zeros(3).double(), torch.zeros(3).double()
    for a, b in _row_blocks(first, second):
        apart = b - a
        left = apart - (apart @ directions) @ directions.T
        predicted = _predicted(a, b, types)  # (3, values)
        # Errors that the fit took up are spread over all values, so the least ones drown in them.
        used = (apart.abs() < _SMALL * torch.minimum(a.abs(), b.abs())).reshape(-1)
        used &= (predicted > _DROWNED * mean).all(0)
        likely = (1 - lost) ** 2 * predicted[:, used] + lost * mean
        sums += (left.reshape(-1)[used].square() / likely).sum(1)
        logs += likely.log().sum(1)
        count += int(used.sum())
    found = [float(value) for value in -(sums + logs) / 2]
    return Errors(count, (found[0], found[1], found[2]), (float(sums[0]), float(sums[1])))


def _predicted(first: Tensor, second: Tensor, types: Sequence[torch.dtype]) -> Tensor:
    """The variances if rounded last were the second, the first, each once."""
    before, after = (
        _variance(v.reshape(-1), t) for v, t in zip((first, second), types, strict=True)
    )
    return torch.stack([after, before, after + before])


def _row_blocks(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = zip(
        torch.split(first.flatten(1), _ROWS), torch.split(second.flatten(1), _ROWS), strict=True
    )
    return ((a.double(), b.double()) for a, b in rows)


def _variance(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Of an error that is uniform over one unit in the last place."""
    form = torch.finfo(dtype)
    unit = torch.ldexp(torch.full_like(value, form.eps), torch.frexp(value).exponent - 1)
    return unit.clamp_min(form.smallest_normal * form.eps).square() / 12


def made_of(errors: Sequence[Errors | None]) -> int | None:
    """Return which of two was made of the other by adding a product of low rank.

    Args:
        errors: Of every tensor that training changed.

    Returns:
        0 if the second was made of the first, 1 if the first of the second; None if one tensor
        says otherwise, or they say too little.
    """
    known = [one for one in errors if one is not None]
    if not known or len(known) < len(errors):
        return None
    values = sum(one.values for one in known)
    for side in (0, 1):
        square = math.fsum(one.squares[side] for one in known) / max(values, 1)
        sure = math.fsum(one.favours(side) for one in known) > _SURE
        if sure and abs(square - 1) < _NEAR and all(one.allows(side) for one in known):
            return side
    return None


def shrinkage(first: Tensor, second: Tensor, types: Sequence[torch.dtype]) -> float | None:
    """Return by which factor some rows or columns of the second are those of the first.

    Args:
        first: A tensor.
        second: The same shape.
        types: The narrowest types that hold each.

    Returns:
        The one factor; None if there is none, or there are several.

    Example:
        >>> weight = torch.randn(30, 20)
        >>> decayed = torch.cat([weight[:5] * 0.99, weight[5:] + 0.01 * torch.randn(25, 20)])
        >>> round(shrinkage(weight, decayed, (torch.float32, torch.float32)), 4)
        0.99
    """
    if first.dim() < 2:
        return None
    near = max(_ALIKE, *(torch.finfo(dtype).eps for dtype in types))
    by_row, by_column = (torch.zeros(4, n).double() for n in (len(first), first[0].numel()))
    for n, (a, b) in enumerate(_row_blocks(first, second)):
        for m, part in enumerate((a * a, a * b, b * b, a * b != 0)):
            by_row[m, n * _ROWS : (n + 1) * _ROWS] = part.sum(1)
            by_column[m] += part.sum(0)
    factors = torch.cat([_factors(sums, near) for sums in (by_row, by_column)])
    if len(factors) < 2 or float(factors.max() - factors.min()) > 2 * near:
        return None
    return float(factors.mean())


def _factors(sums: Tensor, near: float) -> Tensor:
    """Of the rows that differ by nothing but a factor, and do differ."""
    own, both, other, count = sums
    factor = both / own
    left = (other - both * factor).clamp_min(0).sqrt()
    only = (left <= near * other.sqrt()) & (count >= _SCALED)
    found: Tensor = factor[only & ((factor - 1).abs() > 4 * near) & (factor > 0.1)]
    return found
