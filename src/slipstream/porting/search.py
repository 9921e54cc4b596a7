"""Which steps, at which strengths: by the loss on validation data, within a budget of gradients."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from slipstream.evaluation.batchnorm import batchnorm_layers
from slipstream.porting.choosing import Choice, Chosen, Progress, explained, strengths_of
from slipstream.porting.displacement import Prepared, prepare
from slipstream.porting.fitting import CannotFit
from slipstream.porting.judge import Judge
from slipstream.porting.method_inputs import NOT_POSSIBLE, MethodInputs
from slipstream.porting.plan import (
    DISTILLED,
    FUNCTION,
    UNLABELLED,
    PortPlan,
    PortStep,
    parts_of,
)
from slipstream.porting.problem import Regime

_STARTS = 2  # of what needs no gradient, so many are built on
_DEFAULT = 16  # gradients per stage, if there is no budget
_SIGNED: dict[str, PortStep] = {
    "identity": "identity-signed",
    "weights": "weights-signed",
    "activations": "activations-signed",
    "procrustes": "activations-signed",  # signed steps need neurons, not rotations
}
_LARGE = 60  # a budget of gradients that is enough for signed steps too
_STEPS = 20  # of training, that a learning rate should have


def choose_by_loss(inputs: MethodInputs, regime: Regime, progress: Progress) -> Chosen:
    """Choose what has the least loss on the validation data; `auto` only if it is surely lower.

    Args:
        inputs: The problem.
        regime: Whether the bases share a history.
        progress: Called after each step that was tried.

    Returns:
        The best choice, with the loss of all.

    Raises:
        ValueError: If the method that is asked for fits at no learning rate.
    """
    search = Search(inputs, Judge(inputs), progress)
    untouched = search.extend("untouched")
    search.extend("identity")
    assert untouched is not None
    if inputs.plan.method == "auto":
        search.explore(regime)
        choice, reason, margin = search.surely_best(untouched)
    else:
        choice, margin = search.follow(inputs.plan.steps, untouched), None
        reason = f"The plan asks for {inputs.plan.method}."
        if choice.loss > untouched.loss:
            inputs.note("the validation loss is higher than that of the untouched base.")
    candidates = tuple(choice.candidate for choice in search.tried)
    return Chosen(
        choice,
        explained(choice, reason, inputs),
        candidates,
        loss_before=untouched.loss,
        loss_identity=next(
            c.loss for c in candidates if c.method == "identity" and c.strength == 1
        ),
        margin=margin,
    )


@dataclass
class Search:
    """All that was measured, and the best of it."""

    inputs: MethodInputs
    judge: Judge
    progress: Progress
    tried: list[Choice] = field(default_factory=list)
    _steps: int = 0

    def follow(self, steps: tuple[PortStep, ...], untouched: Choice) -> Choice:
        """Take given steps, each at its best strength."""
        choice: Choice | None = None
        for step in steps:
            known = [c for c in self.tried if c.before is choice and c.prepared.method == step]
            found = min(known, key=_score, default=None) or self.extend(step, choice)
            if found is None:
                rates = self.inputs.plan.rates
                raise ValueError(f"few-shot fine-tuning diverges at all rates {rates}: give lower.")
            choice = found
        return choice or untouched

    def explore(self, regime: Regime) -> None:
        """Try what needs no gradient, then build on the best of it within the budget."""
        inputs = self.inputs
        matched = (regime == "independent" or not inputs.has_data) and inputs.can_match
        aligned: list[PortStep] = ["weights"] if matched else []
        if matched and inputs.has_inputs:
            aligned += ["activations", "procrustes"]
        fitted: list[PortStep] = [*FUNCTION] if inputs.has_inputs else []
        if inputs.has_data:
            fitted.append("output-bias")
        for step in (*aligned, *fitted):
            self.extend(step)
        for start in self._best(_STARTS, among=("identity", *aligned)):
            for step in fitted:
                self.extend(step, start)
        self._descend(aligned, fitted)

    def _descend(self, aligned: list[PortStep], fitted: list[PortStep]) -> None:
        """Spend the budget of gradients: on inputs first, then on labels, from the best so far."""
        plan, inputs = self.inputs.plan, self.inputs
        budget = _DEFAULT * plan.stages if plan.budget is None else plan.budget
        steps: list[PortStep] = [self._distillation()] if inputs.has_inputs else []
        (likely,) = self._best(1, among=("identity", *aligned))
        if inputs.has_data:
            steps.append("few-shot")
            if budget >= _LARGE or not steps[1:]:
                steps.append(_SIGNED[likely.method])
        # Training changes what BatchNorm passes on, and undoes a fit of the layers behind it.
        refits = bool(batchnorm_layers(inputs.with_model.model)) and inputs.has_inputs
        start = min((likely, self.tried[0]), key=_score) if refits else self._best(1)[0]
        for number, step in enumerate(steps):
            share = (budget - sum(inputs.spent)) // (len(steps) - number)
            if share <= 0:
                continue
            if step.endswith("-signed"):
                self.extend(step, None, replace(plan, stages=share))
                continue
            found = self.extend(step, start, _spending(plan, share, left=self._left(start)))
            if found is None:
                continue
            for fit in fitted:
                self.extend(fit, found)
            start = min((start, found), key=_score)

    def _left(self, start: Choice) -> float:
        """What share of the untouched base's error a start leaves, if the loss is its square."""
        first, last = self.tried[0].loss, start.loss
        return math.sqrt(last / first) if 0 < last < first < math.inf else 1.0

    def _distillation(self) -> PortStep:
        """What to distil: the change, unless the last layers do better with A*'s outputs."""
        losses = {
            step: min((_score(c) for c in self.tried if c.steps[-1] == step), default=math.inf)
            for step in FUNCTION
        }
        return DISTILLED[int(losses[FUNCTION[1]] < losses[FUNCTION[0]])]

    def _best(self, count: int, *, among: Collection[str] = ()) -> list[Choice]:
        """The best choices so far, of different methods."""
        found: dict[str, Choice] = {}
        for choice in sorted(self.tried, key=_score):
            if among and choice.method not in among:
                continue
            found.setdefault(choice.method, choice)
        return list(found.values())[:count]

    def surely_best(self, untouched: Choice) -> tuple[Choice, str, float]:
        """The best choice, or the untouched base where that may only seem worse."""
        tried = len({choice.method for choice in self.tried} - {"untouched"}) or 1
        free = min((c for c in self.tried if c.learns_from_no_label), key=_score)
        trained = [choice for choice in self.tried if not choice.learns_from_no_label]
        # Between two that change something no margin is needed: either mistake costs little.
        best = min((free, *trained), key=lambda choice: choice.loss)
        found = self._unless_untouched(best, untouched, tried)
        if found[0] is untouched and best is not free:  # which is known from more labels
            return self._unless_untouched(free, untouched, tried)
        return found

    def extend(
        self, step: PortStep, before: Choice | None = None, plan: PortPlan | None = None
    ) -> Choice | None:
        """Measure a step at all strengths, after others; return the best, None if it cannot be."""
        there = self.inputs
        if before is not None or plan is not None:
            own = self.judge.own if before is None else self._weights(before)
            there = self.inputs.at(own, plan)
        found = list(self._measured(step, before, there))
        self.tried += found
        return min(found, key=_score, default=None)

    def _measured(
        self, step: PortStep, before: Choice | None, inputs: MethodInputs
    ) -> Iterator[Choice]:
        """A step at every strength and rate, with BatchNorm as carried and as estimated."""
        judge, own = self.judge, self.judge.own if before is None else self._weights(before)
        for prepared, gradients in self._prepared(step, inputs):
            held = prepared.held()
            for strength in (0.0,) if step == "untouched" else strengths_of(step, inputs.plan):
                choice = Choice(held, strength, before=before, gradients=gradients)
                free = choice.learns_from_no_label
                weights = own | {
                    name: held.at(name, own[name], strength=strength)
                    for name in held.displacement
                    if name in own and strength
                }
                yield replace(choice, measured=judge.measure(weights, everywhere=free))
                if strength and (statistics := judge.statistics(weights)):
                    measured = judge.measure(weights | statistics, everywhere=free)
                    yield replace(choice, statistics=statistics, measured=measured)

    def _prepared(self, step: PortStep, inputs: MethodInputs) -> Iterator[tuple[Prepared, int]]:
        """A displacement and the gradients it took; at each rate of few-shot fine-tuning."""
        auto = self.inputs.plan.method == "auto"
        if auto and inputs.aligner_or_none(parts_of(step)[0]) is None:
            return
        for rate in inputs.plan.rates if step == "few-shot" else (None,):
            before = sum(inputs.spent)
            try:
                prepared = prepare(step, inputs, rate=rate)
            except FloatingPointError as error:
                inputs.note(str(error))
            except NOT_POSSIBLE as error:
                if not auto or (step not in UNLABELLED and not isinstance(error, CannotFit)):
                    raise
                if step != "output-bias":
                    inputs.note(f"{step} was not tried: {error}")
            else:
                yield prepared, sum(inputs.spent) - before

    def _weights(self, choice: Choice) -> dict[str, Tensor]:
        return dict(choice.on(self.judge.own))

    def _margin(self, best: Choice, other: Choice, tried: int, *, wide: bool) -> float:
        """How much lower the best loss must be than another one; assumed, and noted, if unknown."""
        found, there = best.measured, other.measured
        assert found is not None  # both were measured
        assert there is not None
        if not math.isfinite(there.loss):
            return 0.0
        if wide:
            found, there = found.widest, there.widest
        margin = found.margin(there, errors=self.inputs.plan.margin, tried=tried)
        if margin is None:
            self.inputs.note(
                "the validation data are one batch that cannot be split by examples, so nobody "
                "knows how far the loss varies: it is taken to vary between examples by as much as "
                "it is; give several batches."
            )
            return there.assumed_margin(errors=self.inputs.plan.margin, tried=tried)
        return margin

    def _unless_untouched(
        self, best: Choice, untouched: Choice, tried: int
    ) -> tuple[Choice, str, float]:
        if best.method == "untouched":
            return best, "Nothing is changed: no candidate has a lower validation loss.", 0.0
        wide = best.learns_from_no_label
        margin = self._margin(best, untouched, tried, wide=wide)
        fall = _loss(untouched, wide) - _loss(best, wide)
        needed = (
            f"margin of {margin:.3g} ({self.inputs.plan.margin:g} standard errors, more if "
            "examples are few or methods many)"
        )
        name = best.candidate.name
        if fall > margin and best.loss < untouched.loss:
            reason = (
                f"{name} has the lowest validation loss, {best.loss:.4g}: {fall:.3g} below the "
                f"untouched base, which is more than the {needed}."
            )
            return best, reason, margin
        reason = (
            f"Nothing is changed: {name} lowers the validation loss by only {fall:.3g}, not more "
            f"than the {needed}."
        )
        return untouched, reason, margin


def _spending(plan: PortPlan, share: int, *, left: float) -> PortPlan:
    """The plan of a training that takes a share of the budget; a small one has few rates to try."""
    count = min(max(share // _STEPS, 1), len(plan.rates))
    # A step against a sign is as long where little is left to learn as where all is.
    rates = tuple(float(f"{rate * left:.2g}") for rate in sorted(plan.rates, reverse=True)[:count])
    return replace(plan, stages=share, rates=rates, training_steps=share // count)


def _loss(choice: Choice, wide: bool) -> float:
    assert choice.measured is not None  # it was measured
    return choice.measured.widest.loss if wide else choice.measured.loss


def _score(choice: Choice) -> float:
    """The loss on as many labels as the choice has not learned from."""
    return _loss(choice, wide=choice.learns_from_no_label)
