"""Whether one checkpoint is an average of others: solved for, then checked value by value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from slipstream.comparison.opening import Opened
from slipstream.comparison.ranks import rounding_error

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
        weights = _solve(gram, made, others)
        parts = {n: w for n, w in zip(others, weights, strict=True) if w > _PARTS}
        if len(parts) < 2:
            continue
        seen = [_is_average(members, made, parts, names) for names in tensors.values()]
        if True in seen and False not in seen:
            named = {members[n].name: w / sum(parts.values()) for n, w in parts.items()}
            found.append(Merge(members[made].name, named))
    return found


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


def _solve(gram: np.ndarray, made: int, others: list[int]) -> np.ndarray:
    """The weights, none below zero, that sum to one and come nearest."""
    values, vectors = np.linalg.eigh(gram)
    roots = (vectors * np.sqrt(np.clip(values, 0, None))).T  # (dimensions, members)
    scale = math.sqrt(max(float(np.trace(gram)), 1e-300))
    matrix = np.vstack([roots[:, others] / scale, np.full((1, len(others)), _SUM)])
    target = np.concatenate([roots[:, made] / scale, [_SUM]])
    return np.asarray(nnls(matrix, target)[0])


def _is_average(
    members: Sequence[Opened], made: int, parts: Mapping[int, float], names: Sequence[str]
) -> bool | None:
    """Whether one tensor is the mean up to rounding; None if all are so close that any would be."""
    value = members[made].read(names[made])
    mean = torch.zeros(value.shape, dtype=torch.float64)
    allowed, furthest = rounding_error(value), 0.0
    for n, weight in parts.items():
        part = members[n].read(names[n])
        mean += weight / sum(parts.values()) * part.double()
        allowed += rounding_error(part)
        furthest = max(furthest, _size(part.double() - value.double()))
    if _size(value.double() - mean) > 3 * allowed:
        return False
    return True if furthest > 30 * allowed else None


def _size(apart: Tensor) -> float:
    """The root mean square."""
    return float(apart.square().mean().sqrt()) if apart.numel() else 0.0
