"""What is applied: steps at their strengths, chosen by the alignment of the bases if need be."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

from torch import Tensor

from slipstream.porting.displacement import Prepared, prepare
from slipstream.porting.judge import Measured
from slipstream.porting.method_inputs import Aligner, MethodInputs
from slipstream.porting.plan import TRAINED, UNLABELLED, PortMethod, PortPlan, PortStep, parts_of
from slipstream.porting.problem import BaseAlignment, LazyWeights, Regime
from slipstream.porting.result import PortCandidate
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import Weights

Progress = Callable[[int, int], None]  # pieces of work done, and in all

# A matching that moves a smaller share of the neurons has found the identity.
_FEW = 0.05
_LEAST = 0.2  # of what training moved, that is measured


@dataclass(frozen=True)
class Choice:
    """A step at a strength, after those that came before it."""

    prepared: Prepared
    strength: float = 1.0
    statistics: dict[str, Tensor] = field(default_factory=dict)  # of BatchNorm, if not carried
    measured: Measured | None = None
    before: "Choice | None" = None
    gradients: int = 0  # that this step took

    @property
    def steps(self) -> tuple[PortStep, ...]:
        """All steps."""
        return (*(self.before.steps if self.before else ()), self.prepared.method)

    @property
    def method(self) -> PortMethod:
        """All steps in one name."""
        return "+".join(self.steps)

    @property
    def learns_from_no_label(self) -> bool:
        """Whether labels only choose its strengths."""
        return set(self.steps) <= set(UNLABELLED)

    @property
    def moves_as_aligned(self) -> bool:
        """Whether all that is added is the aligned displacement, at a strength that is not 0."""
        alone = self.before is None and parts_of(self.prepared.method)[1] == "none"
        return alone and self.strength > 0

    @property
    def all_gradients(self) -> int:
        """The gradients that all of its steps took."""
        return self.gradients + (self.before.all_gradients if self.before else 0)

    @property
    def aligner(self) -> Aligner:
        """What aligns the displacement: of the first step that does."""
        earlier = self.before
        if earlier is None or not set(map(_coordinates, earlier.steps)) - {"identity"}:
            return self.prepared.aligner
        return earlier.aligner

    @property
    def loss(self) -> float:
        """The loss on the validation data; infinite if it was not measured."""
        return math.inf if self.measured is None else self.measured.loss

    @property
    def candidate(self) -> PortCandidate:
        """What was measured, as plain data."""
        return PortCandidate(
            self.method,
            self.strength,
            self.loss,
            "estimated" if self.statistics else "carried",
            self.prepared.rate,
            self.gradients,
            None if self.before is None else self.before.candidate,
        )

    def at(self, name: str, base: Tensor) -> Tensor:
        """Return a tensor of the other base, given as it was, with all steps applied."""
        start = base if self.before is None else self.before.at(name, base)
        if name in self.statistics:
            return self.statistics[name].to(start.dtype)
        if name not in self.prepared.displacement:
            return start
        return self.prepared.at(name, start, strength=self.strength)

    def added(self, name: str) -> Tensor:
        """Return what all steps add to a tensor, a new one in float32 or better."""
        moved = self.prepared.displacement[name].mul_(self.strength)
        return moved if self.before is None else moved.add_(self.before.added(name))

    def on(self, base: Weights) -> LazyWeights:
        """Return all tensors of the other base with all steps applied, lazily."""
        return LazyWeights(base, lambda name: self.at(name, base[name]))


@dataclass(frozen=True)
class Chosen:
    """What to apply, and why."""

    choice: Choice
    explanation: tuple[str, ...]  # what, why, and what it took
    candidates: tuple[PortCandidate, ...] = ()
    loss_before: float | None = None
    loss_identity: float | None = None
    margin: float | None = None  # how much lower than `loss_before` the loss had to be


def _coordinates(step: PortStep) -> str:
    return parts_of(step)[0]


def regime_of(inputs: MethodInputs, alignment: BaseAlignment) -> Regime:
    """Return whether the bases share a history: by direction, or because no neuron would move.

    The matching that decides is only computed where it may be used.
    """
    if alignment.regime == "independent" and inputs.plan.method == "auto" and inputs.can_match:
        matched = cast("Permutation | None", inputs.aligner_or_none("weights"))
        few = matched is not None and matched.moved() <= _FEW
        return "continued lineage" if few else "independent"
    return alignment.regime


def choose_by_alignment(inputs: MethodInputs, regime: Regime) -> Chosen:
    """Choose without data: the displacement as it is, or re-based where bases are independent."""
    method = inputs.plan.method
    if method != "auto":
        choice = _all_steps(inputs)
        return Chosen(choice, explained(choice, f"The plan asks for {method}.", inputs))
    matched = regime == "independent" and inputs.can_match
    if matched and inputs.aligner_or_none("weights") is not None:
        reason = "the bases are independent: neurons are matched by their weights."
        method = "weights"
    else:
        why = "are independent, but" if regime == "independent" else "share a history:"
        found = "neurons cannot be matched" if regime == "independent" else "the displacement fits"
        reason = f"the bases {why} {found}."
        method = "identity"
    choice = _all_steps(replace(inputs, plan=replace(inputs.plan, method=method)))
    return Chosen(choice, explained(choice, f"Without validation data: {reason}", inputs))


def _all_steps(inputs: MethodInputs) -> Choice:
    """The steps of the plan, each at its full strength."""
    choice: Choice | None = None
    for step in inputs.plan.steps:
        there = inputs if choice is None else inputs.at(choice.on(inputs.own))
        strength, before = 0.0 if step == "untouched" else 1.0, sum(inputs.spent)
        made = prepare(step, there)
        spent = sum(inputs.spent) - before
        choice = Choice(made, strength, before=choice, gradients=spent)
    assert choice is not None  # a method has a step
    return choice


def explained(choice: Choice, reason: str, inputs: MethodInputs) -> tuple[str, str, str]:
    """Return what was chosen, why, and what it took: a sentence each."""
    needs = "needs no labels" if choice.learns_from_no_label else "learns from labels"
    own, spent = choice.all_gradients, sum(inputs.spent)
    return (
        f"Chosen: {choice.candidate.name}.",
        reason,
        f"It {needs} and takes {own} gradients; {spent} were taken in all.",
    )


def strengths_of(step: PortStep, plan: PortPlan) -> tuple[float, ...]:
    """Return the strengths at which a step is measured."""
    if step in TRAINED:
        # Less than all of it is where a lower rate would have led, at no gradient.
        return tuple(sorted({*(s for s in plan.strengths if _LEAST <= s < 1), 1.0}))
    if parts_of(step)[1] == "fitted":
        return (1.0,)
    return tuple(sorted({*plan.strengths, 1.0})) if step == "identity" else plan.strengths
