"""One tensor of two checkpoints: what is measured in one pass, a block at a time."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from slipstream.comparison.chance import Surprise, surprise
from slipstream.comparison.direction import Errors, rounding_errors, shrinkage
from slipstream.comparison.ranks import Rank, rank_of
from slipstream.comparison.rounding import blocks, cast_of, fits, is_quantised, same_before_rounding
from slipstream.trajectory.layout import STATISTICS
from slipstream.weights import is_continuous

_REACHED = 0.95  # of a bound, by the largest of a hundred uniform numbers, 99 times of 100
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LayerComparison:
    """How one tensor differs between two checkpoints."""

    name: str  # in the second one
    shape: tuple[int, ...]
    distance: float  # |B - A|
    relative_distance: float  # over the larger of |A| and |B|
    cosine: float  # of A and B; NaN if one is zero
    changed: float  # share of the values that differ: the difference's density
    rank: int | None  # of the difference, as far as rounding lets it be seen; None of a vector
    full_rank: int | None  # the most that it could be, or that was looked for
    deviations: float | None  # how far the inner product is above chance; None if not testable
    frozen: bool  # every value is the same


@dataclass(frozen=True)
class Facts:
    """What a pair of tensors shows besides: material for the verdict."""

    layer: LayerComparison
    values: int
    learned: bool  # trained: floating, and no statistics of BatchNorm
    surprise: Surprise | None = None
    squares: tuple[float, float] = (0.0, 0.0)  # |A|^2, |B|^2
    same_type: bool = True
    rounding: bool = False  # no further apart than rounding one thing to both types leaves them
    casts: tuple[torch.dtype | None, torch.dtype | None] = (None, None)  # A to B, B to A
    narrow: tuple[torch.dtype | None, torch.dtype | None] = (None, None)  # what A, B fit into
    quantised: tuple[bool, bool] = (False, False)  # B is A in few levels, A is B
    pruned: tuple[bool, bool] = (False, False)  # B is A with zeros, A is B
    new_zeros: tuple[float, float] = (0.0, 0.0)  # share that is zero in B only, in A only
    constant: tuple[bool, bool] = (False, False)
    fresh: tuple[bool, bool] | None = None  # within the bounds of a usual initialisation
    counters: tuple[int, int] | None = None  # batches that BatchNorm has seen
    errors: Errors | None = None  # that rounding left of a difference of low rank
    factor: float | None = None  # by which parts of B are those of A

    @property
    def rank(self) -> Rank | None:
        """The rank of the difference, if it has one."""
        rank, limit = self.layer.rank, self.layer.full_rank
        return None if rank is None or limit is None else Rank(rank, limit)


@dataclass
class _Sums:
    """Sums over the values of two tensors, in float64."""

    first: float = 0.0
    second: float = 0.0
    both: float = 0.0
    apart: float = 0.0
    equal: int = 0
    only_zero: list[int] = field(default_factory=lambda: [0, 0])  # in B only, in A only
    pruned: list[bool] = field(default_factory=lambda: [True, True])

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add a block."""
        same, zero_a, zero_b = a == b, a == 0, b == 0
        self.first += float(a @ a)
        self.second += float(b @ b)
        self.both += float(a @ b)
        self.equal += int(same.sum())
        difference = b - a
        self.apart += float(difference @ difference)
        self.only_zero[0] += int((zero_b & ~zero_a).sum())
        self.only_zero[1] += int((zero_a & ~zero_b).sum())
        self.pruned[0] &= bool((same | zero_b).all())
        self.pruned[1] &= bool((same | zero_a).all())


def compare_tensors(first: Tensor, second: Tensor, name: str, *, of: tuple[str, str]) -> Facts:
    """Measure a tensor of two checkpoints.

    Args:
        first: That of the first one.
        second: That of the second one, of the same shape.
        name: Its name.
        of: The names of the two checkpoints.

    Returns:
        What there is to see.

    Raises:
        ValueError: If one holds a NaN or an infinity.
    """
    if not (is_continuous(first) and is_continuous(second)):
        return _of_counters(first, second, name)
    if first.is_complex() or second.is_complex():
        first, second = (
            torch.view_as_real(value.to(torch.complex128)) for value in (first, second)
        )
    sums = _summed(first, second)
    for value, total, where in zip((first, second), (sums.first, sums.second), of, strict=True):
        if not math.isfinite(total) and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{where} holds a NaN or an infinity in {name!r}.")
    frozen = sums.equal == first.numel()
    found = surprise(first, second)
    layer = _layer(name, first, second, sums, found)
    values = max(first.numel(), 1)
    learned = name.rpartition(".")[2] not in STATISTICS
    shown = Facts(
        layer,
        first.numel(),
        learned,
        found,
        (sums.first, sums.second),
        first.dtype == second.dtype,
        narrow=(fits(first), fits(second)),
        constant=(_is_constant(first), _is_constant(second)),
        fresh=None if first.dim() < 2 else (_is_fresh(first), _is_fresh(second)),
    )
    if frozen:
        return shown
    return _rounded(shown, first, second, sums, values)


def _rounded(shown: Facts, first: Tensor, second: Tensor, sums: _Sums, values: int) -> Facts:
    """Add how one may be made of the other by rounding."""
    types = [n or value.dtype for n, value in zip(shown.narrow, (first, second), strict=True)]
    casts = cast_of(first, second), cast_of(second, first)
    quantised = (False, False)
    if casts == (None, None):
        quantised = is_quantised(first, second), is_quantised(second, first)
    return replace(
        shown,
        casts=casts,
        rounding=same_before_rounding(first, second, shown.narrow),
        quantised=quantised,
        errors=rounding_errors(first, second, shown.rank, types),
        factor=shrinkage(first, second, types),
        pruned=(sums.pruned[0], sums.pruned[1]),
        new_zeros=(sums.only_zero[0] / values, sums.only_zero[1] / values),
    )


def _summed(first: Tensor, second: Tensor) -> _Sums:
    sums = _Sums()
    for a, b in blocks(first, second):
        sums.add(a.double(), b.double())
    return sums


def _layer(
    name: str, first: Tensor, second: Tensor, sums: _Sums, found: Surprise | None
) -> LayerComparison:
    rank = Rank(0, 0) if sums.equal == first.numel() else rank_of(first, second)
    larger = math.sqrt(max(sums.first, sums.second))
    norms = math.sqrt(sums.first * sums.second)
    return LayerComparison(
        name,
        tuple(first.shape),
        math.sqrt(sums.apart),
        math.sqrt(sums.apart) / larger if larger else 0.0,
        max(-1.0, min(1.0, sums.both / norms)) if norms else math.nan,
        1 - sums.equal / max(first.numel(), 1),
        None if first.dim() < 2 or rank is None else rank.rank,
        None if first.dim() < 2 or rank is None else rank.limit,
        None if found is None else found.deviations,
        frozen=sums.equal == first.numel(),
    )


def _is_constant(value: Tensor) -> bool:
    flat = value.reshape(-1)
    return len(flat) > 1 and bool(flat.min() == flat.max())


def _is_fresh(value: Tensor) -> bool:
    """Whether the values reach just to the bounds that torch, Kaiming or Xavier draw between."""
    outputs, inputs = len(value), value[0].numel() if len(value) else 0
    if not value.numel():
        return False
    largest = max(abs(float(value.min())), abs(float(value.max())))
    positions = value[0, 0].numel()
    bounds = 1 / inputs, 6 / inputs, 6 / (inputs + outputs * positions)
    return any(_REACHED <= largest / math.sqrt(bound) <= 1 + 1e-6 for bound in bounds)


def _of_counters(first: Tensor, second: Tensor, name: str) -> Facts:
    """Of whole numbers: equal or not, and how many batches were counted."""
    same = torch.equal(first, second)
    counted = name.rpartition(".")[2] == _COUNTER and first.numel() == 1
    counters = (int(first), int(second)) if counted else None
    distance = float((second.double() - first.double()).norm())
    shape = tuple(first.shape)
    layer = LayerComparison(
        name, shape, distance, 0.0, math.nan, float(not same), None, None, None, frozen=same
    )
    return Facts(layer, first.numel(), False, counters=counters)
