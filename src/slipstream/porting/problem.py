"""A fine-tune, the base it was made of and the base it is carried to: what they have in common."""

import fnmatch
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from slipstream.weights import Weights, add_to_, inner, is_continuous

Regime = Literal["continued lineage", "independent"]
T = TypeVar("T", covariant=True)

# Bases that share a history keep most of their direction; those of different seeds keep none.
# In between are bases that diverged early: the displacement still fits them.
_SAME_DIRECTION = 0.5
_LISTED = 6  # differences in an error


@dataclass(frozen=True)
class FineTune(Generic[T]):
    """A fine-tune with its base, and the base that is to get it: weights, or paths of them."""

    from_base: T  # what the fine-tune started from
    fine_tuned: T  # where it ended
    to_base: T  # what it is carried to


class LazyWeights(Mapping[str, Tensor]):
    """Weights of which each is made when it is asked for, and kept by nobody."""

    def __init__(self, names: Collection[str], make: Callable[[str], Tensor]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Problem:
    """What is carried: `fine_tuned - from_base`, to `to_base`. The weights may be lazy."""

    from_base: Weights
    fine_tuned: Weights
    to_base: Weights
    carried: tuple[str, ...]  # tensors that have a displacement
    excluded: tuple[str, ...]  # tensors of floating point that stay the other base's own
    warnings: tuple[str, ...] = ()

    def displacement(self, name: str) -> Tensor:
        """Return `fine_tuned - from_base` of one tensor, a new one in float32 or better."""
        return add_to_(wide_copy(self.fine_tuned[name]), self.from_base[name], scale=-1)


def pose(given: FineTune[Weights], *, exclude: tuple[str, ...] = ()) -> Problem:
    """Check that the three fit together, and say which tensors are carried.

    Args:
        given: The three sets of weights.
        exclude: Patterns of tensors that stay `to_base`'s own.

    Returns:
        The problem. A single module whose outputs differ in number is a head: it is excluded.

    Raises:
        ValueError: If architectures differ, or a pattern matches nothing.
    """
    from_base, fine_tuned, to_base = given.from_base, given.fine_tuned, given.to_base
    unwanted = _matching(exclude, to_base)
    heads = _heads(from_base, to_base, ("from_base", "to_base"), unwanted)
    heads |= _heads(from_base, fine_tuned, ("from_base", "fine_tuned"), unwanted | heads)
    own = unwanted | heads
    floats = [name for name, value in to_base.items() if is_continuous(value)]
    carried = tuple(name for name in floats if name not in own)
    if not carried:
        raise ValueError("No tensor is left that could be carried: everything is excluded.")
    warnings = []
    if heads:
        warnings.append(
            f"{', '.join(sorted(heads))}: a head of another size has no counterpart; "
            "what to_base has is kept."
        )
    if new := [name for name in fine_tuned if name not in from_base and name not in to_base]:
        warnings.append(f"fine_tuned has {_some(new)}, which no base has: not aligned.")
    return Problem(
        from_base,
        fine_tuned,
        to_base,
        carried,
        tuple(name for name in floats if name in own),
        tuple(warnings),
    )


@dataclass(frozen=True)
class TensorAlignment:
    """Inner products of one tensor, summed in float64."""

    from_base: float  # |A|^2
    to_base: float  # |B|^2
    bases: float  # <A, B>
    displacement: float  # |A* - A|^2
    is_matrix: bool  # one-dimensional tensors, such as gains, are alike in any two networks


@dataclass(frozen=True)
class BaseAlignment:
    """Result of `align_bases`: how two bases compare, and how far the fine-tune moved."""

    tensors: Mapping[str, TensorAlignment]

    @property
    def alignment(self) -> float:
        """The cosine between the bases, over matrices only."""
        return self._total("bases") / math.sqrt(
            max(self._total("from_base") * self._total("to_base"), 1e-300)
        )

    @property
    def relative_distance(self) -> float:
        """The distance between the bases over the norm of the first one, over matrices only."""
        square = self._total("from_base") + self._total("to_base") - 2 * self._total("bases")
        return math.sqrt(max(square, 0) / max(self._total("from_base"), 1e-300))

    @property
    def relative_displacement(self) -> float:
        """The size of the displacement over that of the weights, over matrices only."""
        return math.sqrt(self._total("displacement") / max(self._total("from_base"), 1e-300))

    @property
    def regime(self) -> Regime:
        """Whether the bases share a history, as far as their directions show."""
        return "continued lineage" if self.alignment >= _SAME_DIRECTION else "independent"

    def warnings(self) -> tuple[str, ...]:
        """Return what is suspicious about the fine-tune, with figures."""
        if self.relative_displacement <= 1:
            return ()
        return (
            f"fine_tuned differs from from_base by {self.relative_displacement:.2f} times the "
            "size of the weights: it does not look like a fine-tune of this base.",
        )

    def _total(self, field: str) -> float:
        matrices = [t for t in self.tensors.values() if t.is_matrix] or self.tensors.values()
        return math.fsum(getattr(tensor, field) for tensor in matrices)


def align_bases(problem: Problem) -> BaseAlignment:
    """Measure every tensor that is carried.

    Args:
        problem: Bases and fine-tune.

    Returns:
        The inner products, from which regime and warnings follow.

    Raises:
        ValueError: If a tensor holds a NaN or an infinity.
    """
    found = {name: _aligned(problem, name) for name in problem.carried}
    for name, tensor in found.items():
        for argument in ("from_base", "to_base", "displacement"):
            if not math.isfinite(getattr(tensor, argument)):
                where = "fine_tuned" if argument == "displacement" else argument
                raise ValueError(f"{where} holds a NaN or an infinity in {name!r}.")
    return BaseAlignment(found)


def _aligned(problem: Problem, name: str) -> TensorAlignment:
    moved = {name: problem.displacement(name)}
    displacement = inner(moved, moved)
    del moved
    first, second = {name: problem.from_base[name]}, {name: problem.to_base[name]}
    return TensorAlignment(
        inner(first, first),
        inner(second, second),
        inner(first, second),
        displacement,
        is_matrix=first[name].dim() > 1,
    )


def fine_tune_without(given: FineTune[Weights], names: Collection[str]) -> FineTune[Weights]:
    """Return all three without some names, such as the further names of tied tensors."""
    parts = (given.from_base, given.fine_tuned, given.to_base)
    return FineTune(*(_without(weights, names) for weights in parts))


def _without(weights: Weights, names: Collection[str]) -> Weights:
    if not any(name in weights for name in names):
        return weights
    return LazyWeights([n for n in weights if n not in names], lambda name: weights[name])


def wide_copy(value: Tensor) -> Tensor:
    """Return a copy in float32 or better."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)


def _matching(patterns: tuple[str, ...], weights: Weights) -> frozenset[str]:
    for pattern in patterns:
        if not fnmatch.filter(weights, pattern):
            raise ValueError(
                f"exclude: {pattern!r} matches no tensor of to_base; it has {_some(list(weights))}."
            )
    return frozenset(n for pattern in patterns for n in fnmatch.filter(weights, pattern))


def _heads(
    first: Weights, second: Weights, names: tuple[str, str], known: frozenset[str]
) -> frozenset[str]:
    """The tensors of a head that differs, or an error that lists how the architectures differ."""
    differences = dict(_differences(first, second, names, known))
    modules = {name.rpartition(".")[0] for name in differences}
    shared = [name for name in differences if name in first and name in second]
    if not differences:
        return frozenset()
    if shared and len(modules) == 1 and all(_same_inputs(first[n], second[n]) for n in shared):
        return frozenset(differences)
    listed = "; ".join(list(differences.values())[:_LISTED])
    more = f"; and {len(differences) - _LISTED} more" if len(differences) > _LISTED else ""
    raise ValueError(
        f"{names[0]} and {names[1]} are of different architectures: {listed}{more}. Porting needs "
        "the same one; tensors that may stay as to_base has them can be excluded by a pattern."
    )


def _differences(
    first: Weights, second: Weights, names: tuple[str, str], known: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """Names of tensors that differ, each with how."""
    for name, value in first.items():
        if name in known or not is_continuous(value):
            continue
        if name not in second:
            yield name, f"{name!r} is missing in {names[1]}"
        elif second[name].shape != value.shape:
            shapes = (
                f"{tuple(value.shape)} in {names[0]}, {tuple(second[name].shape)} in {names[1]}"
            )
            yield name, f"{name!r} has shape {shapes}"
    if names[1] == "to_base":  # what only a fine-tune has is a new head, and is left out
        for name in second:
            if name not in first and name not in known and is_continuous(second[name]):
                yield name, f"{name!r} is missing in {names[0]}"


def _same_inputs(first: Tensor, second: Tensor) -> bool:
    return first.shape[1:] == second.shape[1:]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
