"""Which method, at which strength: by validation data, or by the alignment of the bases."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import cast

from torch import Tensor

from slipstream.porting.displacement import Prepared, prepare
from slipstream.porting.fitting import NoOutputBiasError
from slipstream.porting.judge import Judge, Measured
from slipstream.porting.method_inputs import MethodInputs
from slipstream.porting.plan import PortMethod, PortPlan, parts_of
from slipstream.porting.problem import BaseAlignment, Regime
from slipstream.porting.result import PortCandidate
from slipstream.symmetry.permutation import Permutation

Progress = Callable[[int, int], None]  # pieces of work done, and in all

# What `auto` tries, in this order: first what needs no data, then no matching.
ALWAYS: tuple[PortMethod, ...] = ("untouched", "identity")
WITH_LABELS: tuple[PortMethod, ...] = ("output-bias", "few-shot", "sign-mask", "identity-signed")
MATCHED: tuple[PortMethod, ...] = ("weights",)
MATCHED_WITH_LABELS: tuple[PortMethod, ...] = (
    *MATCHED,
    *("weights-signed", "activations-signed", "fgmt-signed"),
)
# A matching that moves a smaller share of the neurons has found the identity.
_FEW = 0.05


@dataclass(frozen=True)
class Choice:
    """What to apply."""

    prepared: Prepared
    strength: float = 1.0
    statistics: dict[str, Tensor] = field(default_factory=dict)  # of BatchNorm, if not carried
    measured: Measured | None = None
    candidates: tuple[PortCandidate, ...] = ()
    loss_before: float | None = None
    loss_identity: float | None = None
    margin: float | None = None  # how much lower than `loss_before` the loss had to be
    reason: str = ""

    @property
    def loss(self) -> float:
        """The loss on the validation data; infinite if it was not measured."""
        return math.inf if self.measured is None else self.measured.loss

    @property
    def candidate(self) -> PortCandidate:
        """What was measured, as plain data."""
        return PortCandidate(
            self.prepared.method,
            self.strength,
            self.loss,
            "estimated" if self.statistics else "carried",
            self.prepared.rate,
        )


def regime_of(inputs: MethodInputs, alignment: BaseAlignment) -> Regime:
    """Return whether the bases share a history: by direction, or because no neuron would move.

    The matching that decides is only computed where it may be used.
    """
    if alignment.regime == "independent" and inputs.plan.method == "auto" and inputs.can_match:
        matched = cast("Permutation | None", inputs.aligner_or_none("weights"))
        few = matched is not None and matched.moved() <= _FEW
        return "continued lineage" if few else "independent"
    return alignment.regime


def choose_by_alignment(inputs: MethodInputs, regime: Regime) -> Choice:
    """Choose without data: the displacement as it is, or re-based where bases are independent."""
    method = inputs.plan.method
    if method != "auto":
        strength = 0.0 if method == "untouched" else 1.0
        return Choice(prepare(method, inputs), strength, reason=f"The plan asks for {method}.")
    matched = regime == "independent" and inputs.can_match
    if matched and inputs.aligner_or_none("weights") is not None:
        reason = "the bases are independent: neurons are matched by their weights."
        method = "weights"
    else:
        why = "are independent, but" if regime == "independent" else "share a history:"
        found = "neurons cannot be matched" if regime == "independent" else "the displacement fits"
        reason = f"the bases {why} {found}."
        method = "identity"
    return Choice(prepare(method, inputs), reason=f"Without validation data: {reason}")


def choose_by_loss(inputs: MethodInputs, regime: Regime, progress: Progress) -> Choice:
    """Choose what has the least loss on the validation data; `auto` only if it is surely lower.

    Args:
        inputs: The problem.
        regime: Whether the bases share a history.
        progress: Called after each method.

    Returns:
        The best choice, with the loss of all.

    Raises:
        ValueError: If the method that is asked for fits at no learning rate.
    """
    plan, judge = inputs.plan, Judge(inputs)
    before = judge.measure(judge.own)
    tried = _methods(inputs, regime)
    best: Choice | None = None
    candidates: list[PortCandidate] = []
    for number, method in enumerate(tried, start=1):
        for choice in _choices(method, inputs, judge):
            candidates.append(choice.candidate)
            if plan.method in ("auto", method) and (best is None or choice.loss < best.loss):
                best = choice
        progress(number, len(tried))
    if best is None:
        raise ValueError(f"few-shot fine-tuning diverges at all rates {plan.rates}: give lower.")
    if plan.method == "auto":
        best = _surely_better(best, before, inputs)
    else:
        best = replace(best, reason=f"The plan asks for {plan.method}.")
        if best.loss > before.loss:
            inputs.note("the validation loss is higher than that of the untouched base.")
    return replace(
        best,
        candidates=tuple(candidates),
        loss_before=before.loss,
        loss_identity=min(c.loss for c in candidates if c.method == "identity" and c.strength == 1),
    )


def _surely_better(best: Choice, before: Measured, inputs: MethodInputs) -> Choice:
    """The best choice, or the untouched base where that may only seem worse."""
    errors, found = inputs.plan.margin, best.measured
    assert found is not None  # it was chosen by its loss
    margin = found.margin(before, errors=errors) if math.isfinite(before.loss) else 0.0
    if margin is None:
        margin = 0.0
        if best.prepared.method != "untouched":
            inputs.note(
                "the validation data are one batch that cannot be split by examples, so nobody "
                "knows how far the loss varies: give several batches."
            )
    name, fall = best.candidate.name, before.loss - best.loss
    needed = f"margin of {margin:.3g} ({errors:g} standard errors, more if examples are few)"
    if best.prepared.method == "untouched":
        reason = "Nothing is changed: no candidate has a lower validation loss."
    elif fall > margin:
        reason = (
            f"{name} has the lowest validation loss, {best.loss:.4g}: {fall:.3g} below the "
            f"untouched base, which is more than the {needed}."
        )
        return replace(best, margin=margin, reason=reason)
    else:
        reason = (
            f"Nothing is changed: {name} lowers the validation loss by only {fall:.3g}, not more "
            f"than the {needed}."
        )
    nothing = prepare("untouched", inputs)
    return Choice(nothing, strength=0.0, measured=before, margin=margin, reason=reason)


def _methods(inputs: MethodInputs, regime: Regime) -> tuple[PortMethod, ...]:
    """The plain displacement early: everything else is compared with it."""
    method, labelled = inputs.plan.method, inputs.has_data
    if method != "auto":
        return tuple(dict.fromkeys(("identity", method)))
    tried = ALWAYS + (WITH_LABELS if labelled else ())
    if (regime == "independent" or not labelled) and inputs.can_match:
        tried += MATCHED_WITH_LABELS if labelled else MATCHED
    return tried


def _choices(method: PortMethod, inputs: MethodInputs, judge: Judge) -> Iterator[Choice]:
    """A method at every strength and rate, with BatchNorm as carried and as estimated."""
    if method == "untouched":
        yield Choice(prepare(method, inputs), 0.0, {}, judge.measure(judge.own))
        return
    for prepared in _prepared(method, inputs):
        held = prepared.held()
        for strength in _strengths(method, inputs.plan):
            weights = judge.own | {
                name: held.at(name, judge.own[name], strength=strength)
                for name in held.displacement
                if name in judge.own
            }
            yield Choice(held, strength, {}, judge.measure(weights))
            if statistics := judge.statistics(weights):
                yield Choice(held, strength, statistics, judge.measure(weights | statistics))


def _prepared(method: PortMethod, inputs: MethodInputs) -> Iterator[Prepared]:
    """A method's displacement; at each rate of few-shot fine-tuning, none where `auto` skips it."""
    auto = inputs.plan.method == "auto"
    if auto and inputs.aligner_or_none(parts_of(method)[0]) is None:
        return
    for rate in inputs.plan.rates if method == "few-shot" else (None,):
        try:
            yield prepare(method, inputs, rate=rate)
        except FloatingPointError as error:
            inputs.note(str(error))
        except NoOutputBiasError:
            if not auto:
                raise


def _strengths(method: PortMethod, plan: PortPlan) -> tuple[float, ...]:
    if parts_of(method)[1] == "fitted":
        return (1.0,)
    return tuple(sorted({*plan.strengths, 1.0})) if method == "identity" else plan.strengths
