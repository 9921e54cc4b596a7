"""Two checkpoints side by side: what was measured of them, and what was concluded."""

import math
from dataclasses import dataclass
from typing import Literal

from slipstream.comparison.layers import Facts, LayerComparison
from slipstream.comparison.names import Correspondence
from slipstream.comparison.opening import Opened

Relation = Literal[
    "identical",
    "re-saved",
    "snapshots of one run",
    "fine-tune",
    "siblings",
    "fine-tune or siblings",
    "permuted",
    "quantised",
    "pruned",
    "merged",
    "independent",
    "different architectures",
    "cannot tell",
]
# Equal to the bit, or told by what recorded them; a chance below 1 in 10^9; an inference that a
# counterexample may exist to; neither.
Certainty = Literal["proven", "sure", "likely", "open"]

_ADVICE = {
    "identical": "no use: they are the same model.",
    "re-saved": "no use: they are the same model; keep the one of the wider type.",
    "snapshots of one run": "average: they are snapshots of one run.",
    "fine-tune": "port as it is: what changes the one fits the other; their average may be good.",
    "siblings": "average: they have a common parent; a fine-tune of one fits the other as it is.",
    "fine-tune or siblings": "average, or port a fine-tune of one to the other as it is.",
    "permuted": "port with matching: a permutation makes them equal, without loss.",
    "quantised": "port as it is, to the one of full precision; averaging leaves the levels.",
    "pruned": "port as it is, and set the zeros again; averaging fills them.",
    "merged": "port as it is: a fine-tune of one fits the other.",
    "independent": "port with matching; a plain average would be worse than both.",
    "different architectures": "no use: no weights correspond.",
    "cannot tell": "measure it: `slipstream landscape barrier` needs data, and decides.",
}


@dataclass(frozen=True)
class Verdict:
    """What two checkpoints are to each other, and why."""

    relation: Relation
    certainty: Certainty
    parent: str | None = None  # which one it was, if one was made of the other
    evidence: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()  # matrices of related checkpoints that have nothing in common


@dataclass(frozen=True)
class PairComparison:
    """What two checkpoints are to each other."""

    first: str
    second: str
    relation: Relation
    certainty: Certainty
    parent: str | None  # which one it was, if one was made of the other; None if unknown
    evidence: tuple[str, ...]  # what the relation follows from, with figures
    differences: tuple[str, ...]  # of the architectures, the first ones; none if they are the same
    layers: tuple[LayerComparison, ...]  # of the tensors that both have
    relative_distance: float  # |B - A| over the larger norm, of all that is learned
    cosine: float  # of the two, likewise
    advice: str  # average, port as it is, port with matching, or no use; and why

    @property
    def same_architecture(self) -> bool:
        """Whether both have the same tensors."""
        return not self.differences

    @property
    def in_words(self) -> str:
        """The relation, with the parent if there is one."""
        if self.parent is None:
            return self.relation
        if self.relation == "fine-tune or siblings":
            return f"{self.relation} (if a fine-tune, of {self.parent})"
        if self.relation == "snapshots of one run":
            return f"{self.relation}, {self.parent} first"
        return f"{self.relation} of {self.parent}"

    @property
    def frozen(self) -> tuple[str, ...]:
        """The tensors that are equal in both."""
        return tuple(layer.name for layer in self.layers if layer.frozen)


@dataclass(frozen=True)
class Pair:
    """Two checkpoints and all that was measured of them."""

    first: Opened
    second: Opened
    names: Correspondence
    facts: tuple[Facts, ...]

    @property
    def learned(self) -> list[Facts]:
        """The tensors that training moves."""
        return [fact for fact in self.facts if fact.learned]

    @property
    def changed(self) -> list[Facts]:
        """Those of them that differ."""
        return [fact for fact in self.learned if not fact.layer.frozen]

    @property
    def sides(self) -> tuple[Opened, Opened]:
        """Both checkpoints."""
        return self.first, self.second

    @property
    def relative_distance(self) -> float:
        """The distance over the larger norm, over what is learned."""
        apart = math.fsum(fact.layer.distance**2 for fact in self.learned)
        larger = max(math.fsum(fact.squares[n] for fact in self.learned) for n in (0, 1))
        return math.sqrt(apart / larger) if larger else 0.0

    @property
    def cosine(self) -> float:
        """The cosine over what is learned."""
        a, b = (math.fsum(fact.squares[n] for fact in self.learned) for n in (0, 1))
        apart = math.fsum(fact.layer.distance**2 for fact in self.learned)
        return (a + b - apart) / (2 * math.sqrt(a * b)) if a and b else math.nan

    def compared(self, verdict: Verdict) -> PairComparison:
        """Return all of it, with a verdict.

        Args:
            verdict: What the two are to each other.

        Returns:
            What is reported.
        """
        advice = _ADVICE[verdict.relation]
        if verdict.apart:
            more = f" and {len(verdict.apart) - 1} more" if len(verdict.apart) > 1 else ""
            advice += (
                f" But {verdict.apart[0]}{more} have nothing in common: match the neurons first, "
                "or leave them out."
            )
        if self.names.differences and verdict.relation != "different architectures":
            advice += " What only one has stays out."
        return PairComparison(
            self.first.name,
            self.second.name,
            verdict.relation,
            verdict.certainty,
            verdict.parent,
            verdict.evidence,
            self.names.differences,
            tuple(fact.layer for fact in self.facts),
            self.relative_distance,
            self.cosine,
            advice,
        )
