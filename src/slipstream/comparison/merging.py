"""Whether one checkpoint is an average of others: solved for, then checked value by value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from slipstream.comparison.opening import Opened
from slipstream.comparison.ranks import rounding_error

_FORMULAS = 11
_FEWEST = 64  # values
_EXACT = 0.95  # of the values, to the bit
_PARTS = 1e-3  # the least weight that counts
_SUM = 1e3  # how much it matters, in the equations, that the weights sum to one


@dataclass(frozen=True)
class Merge:
    """One checkpoint as an average of others."""

    made: str
    weights: Mapping[str, float]  # of the others, above zero and summing to one

    def __str__(self) -> str:
        parts = " + ".join(f"{weight:.3g} {name}" for name, weight in self.weights.items())
        return f"{self.made} = {parts}, to rounding"


def find_merges(members: Sequence[Opened], tensors: Mapping[str, Sequence[str]]) -> list[Merge]:
    """Return which of some related checkpoints are averages of others.

    Args:
        members: Three or more, of one architecture.
        tensors: The learned tensors by any name, to their names in each member.

    Returns:
        The averages whose values are right in every tensor, up to rounding.
    """
    gram = _gram(members, tensors)
    found = []
    for made in range(len(members)):
        others = [n for n in range(len(members)) if n != made]
        for parts in (_nearest_two(gram, made, others), _solve(gram, made, others)):
            if len(parts) < 2:
                continue
            told = (_is_average(members, made, parts, names) for names in tensors.values())
            seen = list(takewhile(lambda one: one is not False, told))  # the first that is not
            if len(seen) < len(tensors):
                continue
            of_two = len(parts) == 2 and _was_computed(members, made, parts, tensors)
            if of_two or (len(parts) > 2 and True in seen):
                named = {members[n].name: weight for n, weight in parts.items()}
                found.append(Merge(members[made].name, named))
            break
    return found


def _nearest_two(gram: np.ndarray, made: int, others: list[int]) -> dict[int, float]:
    """The two between which a checkpoint lies, with their weights: fewest parts explain best."""
    best: tuple[float, dict[int, float]] = (math.inf, {})
    for a, b in combinations(others, 2):
        apart = gram[a, a] - 2 * gram[a, b] + gram[b, b]
        along = gram[made, b] - gram[made, a] - gram[a, b] + gram[a, a]
        weight = float(along / apart) if apart > 0 else 0.0
        if not _PARTS < weight < 1 - _PARTS:
            continue
        away = gram[made, made] - 2 * gram[made, a] + gram[a, a] - weight * along
        best = min(best, (float(away / apart), {a: 1 - weight, b: weight}), key=lambda one: one[0])
    return best[1]


def _was_computed(
    members: Sequence[Opened],
    made: int,
    parts: Mapping[int, float],
    tensors: Mapping[str, Sequence[str]],
) -> bool:
    """Whether a mean of two gives the values to the bit, and no extrapolation gives a part."""
    # Of three on a line, the middle one is a mean of the others; but an outer one may as well be
    # 1.5 middle - 0.5 other. Computing it again tells them apart.
    (a, _), (b, weight) = parts.items()
    ways = {(made, a, b): weight, (a, made, b): 1 - 1 / (1 - weight), (b, made, a): 1 - 1 / weight}
    exact = []
    for triple, share in ways.items():
        same, moved = torch.zeros(len(_plain(share)), _FORMULAS), 0
        for names in tensors.values():
            value, first, second = (members[n].read(names[n]) for n in triple)
            equal, count = _equal_values(value, first, second, share)
            same, moved = same + equal, moved + count
        exact.append(float(same.max()) / moved if moved >= _FEWEST else 0.0)
    return exact[0] > _EXACT >= max(exact[1:])


def _gram(members: Sequence[Opened], tensors: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Inner products of the distances from the first member, summed over the tensors."""
    gram = torch.zeros(len(members), len(members), dtype=torch.float64)
    for names in tensors.values():
        first = members[0].read(names[0]).reshape(-1)
        rows = [m.read(n).reshape(-1) for m, n in zip(members, names, strict=True)]
        for start in range(0, len(first), 1 << 20):
            part = slice(start, start + (1 << 20))
            apart = torch.stack([row[part].double() - first[part].double() for row in rows])
            gram += apart @ apart.T
    return np.asarray(gram.numpy())


def _solve(gram: np.ndarray, made: int, others: list[int]) -> dict[int, float]:
    """The weights, none below zero, that sum to one and come nearest."""
    values, vectors = np.linalg.eigh(gram)
    roots = (vectors * np.sqrt(np.clip(values, 0, None))).T  # (dimensions, members)
    scale = math.sqrt(max(float(np.trace(gram)), 1e-300))
    matrix = np.vstack([roots[:, others] / scale, np.full((1, len(others)), _SUM)])
    target = np.concatenate([roots[:, made] / scale, [_SUM]])
    weights = nnls(matrix, target)[0]
    parts = {n: float(w) for n, w in zip(others, weights, strict=True) if w > _PARTS}
    return {n: w / sum(parts.values()) for n, w in parts.items()}


def _equal_values(value: Tensor, a: Tensor, b: Tensor, share: float) -> tuple[Tensor, int]:
    """How many values each share and formula gives to the bit, of those that differ from both."""
    moved = (a != value) & (b != value)
    equal = [
        [
            float(((_mean_of_two(a, b, one, n).to(value.dtype) == value) & moved).sum())
            for n in range(_FORMULAS)
        ]
        for one in _plain(share)
    ]
    return torch.tensor(equal), int(moved.sum())


def _mean_of_two(a: Tensor, b: Tensor, share: float, formula: int) -> Tensor:
    """`(1 - share) a + share b`, as programs write it."""
    if formula % 2:  # in float32, whatever they are stored in
        a, b = a.float(), b.float()
    if formula < 2:
        return (1 - share) * a + share * b
    if formula < 4:
        return a.lerp(b, share)
    if formula < 6:
        return a + share * (b - a)
    if formula < 8:
        return b + (1 - share) * (a - b)
    if formula < 10:
        return torch.add((1 - share) * a, b, alpha=share)
    return a.double().lerp(b.double(), share)


def _plain(share: float) -> tuple[float, ...]:
    """The shares that may have been meant: plain fractions, hundredths, or the very number."""
    whole, rest = divmod(share, 1)
    plain = {k / n for n in (*range(2, 13), 100) for k in range(n + 1)}
    return (share, *(whole + one for one in sorted(plain, key=lambda one: abs(one - rest))[:3]))


def _is_average(
    members: Sequence[Opened], made: int, parts: Mapping[int, float], names: Sequence[str]
) -> bool | None:
    """Whether one tensor is the mean up to rounding; None if all are so close that any would be."""
    value = members[made].read(names[made])
    mean = torch.zeros(value.shape, dtype=torch.float64)
    allowed, furthest = rounding_error(value), 0.0
    for n, weight in parts.items():
        part = members[n].read(names[n])
        mean += weight * part.double()
        allowed += rounding_error(part)
        furthest = max(furthest, _size(part.double() - value.double()))
    if _size(value.double() - mean) > 3 * allowed:
        return False
    return True if furthest > 30 * allowed else None


def _size(apart: Tensor) -> float:
    """The root mean square."""
    return float(apart.square().mean().sqrt()) if apart.numel() else 0.0
