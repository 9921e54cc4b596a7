"""How two bases lie to each other, and how far the fine-tune moved: one pass over the tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from slipstream.porting.problem import Problem
from slipstream.weights import inner

Regime = Literal["continued lineage", "independent"]
# Bases that share a history keep most of their direction; those of different seeds keep none.
# In between lie bases that left each other early: the displacement still fits them.
_SAME_DIRECTION = 0.5


@dataclass(frozen=True)
class TensorSurvey:
    """Inner products of one tensor, summed in float64."""

    from_base: float  # |A|^2
    to_base: float  # |B|^2
    bases: float  # <A, B>
    displacement: float  # |A* - A|^2
    is_matrix: bool  # one-dimensional tensors, such as gains, are alike in any two networks


@dataclass(frozen=True)
class Survey:
    """Result of `survey`."""

    tensors: Mapping[str, TensorSurvey]

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
        """Whether the bases share a history, as far as their directions tell."""
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


def survey(problem: Problem) -> Survey:
    """Measure every tensor that is carried.

    Args:
        problem: Bases and fine-tune.

    Returns:
        The inner products, from which regime and warnings follow.

    Raises:
        ValueError: If a tensor holds a NaN or an infinity.
    """
    found = {name: _survey(problem, name) for name in problem.carried}
    for name, tensor in found.items():
        for argument in ("from_base", "to_base", "displacement"):
            if not math.isfinite(getattr(tensor, argument)):
                where = "fine_tuned" if argument == "displacement" else argument
                raise ValueError(f"{where} holds a NaN or an infinity in {name!r}.")
    return Survey(found)


def _survey(problem: Problem, name: str) -> TensorSurvey:
    moved = {name: problem.displacement(name)}
    displacement = inner(moved, moved)
    del moved
    first, second = {name: problem.from_base[name]}, {name: problem.to_base[name]}
    return TensorSurvey(
        inner(first, first),
        inner(second, second),
        inner(first, second),
        displacement,
        is_matrix=first[name].dim() > 1,
    )
