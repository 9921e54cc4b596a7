"""Which method, and how strong: by validation data, or by how the bases lie to each other."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import cast

from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, evaluate, recalibrate_batchnorm
from slipstream.porting.base_alignment import Regime, Survey
from slipstream.porting.displacement import Prepared, prepare
from slipstream.porting.method_inputs import Workbench
from slipstream.porting.plan import PortMethod
from slipstream.porting.result import Candidate
from slipstream.symmetry.permutation import Permutation

Progress = Callable[[int, int], None]  # pieces of work done, and in all

# What `auto` tries: the plain displacement always, so that it never does worse.
WITHOUT_GRADIENTS: tuple[PortMethod, ...] = ("identity", "weights")
WITH_GRADIENTS: dict[Regime, tuple[PortMethod, ...]] = {
    "continued lineage": ("identity", "sign-mask", "identity-signed"),
    "independent": (
        *("identity", "weights", "sign-mask"),
        *("identity-signed", "weights-signed", "activations-signed", "fgmt-signed"),
    ),
}
# A matching that moves a smaller share of the neurons has found the identity.
_FEW = 0.05


@dataclass(frozen=True)
class Choice:
    """What to apply."""

    prepared: Prepared
    strength: float = 1.0
    statistics: dict[str, Tensor] = field(default_factory=dict)  # of BatchNorm, if not carried
    loss: float = math.inf
    candidates: tuple[Candidate, ...] = ()
    loss_before: float | None = None
    loss_identity: float | None = None


@dataclass(frozen=True)
class Judge:
    """Measures weights on the validation data."""

    model: nn.Module
    loss: Loss
    validation: Iterable[Batch]
    own: dict[str, Tensor]  # what the other base has
    calibration: list[Batch]  # for the statistics of BatchNorm; may be empty

    def measure(self, weights: dict[str, Tensor]) -> float:
        """Return the loss; an infinite one if it is no number."""
        value = evaluate(self.model, {"loss": self.loss}, weights=weights, data=self.validation)
        return value["loss"] if math.isfinite(value["loss"]) else math.inf

    def search(self, prepared: Prepared, strengths: Iterable[float]) -> Iterator[Choice]:
        """Measure a displacement at every strength, with BatchNorm as carried and as estimated.

        Args:
            prepared: What to apply.
            strengths: Where.

        Yields:
            Each choice with its loss.
        """
        for strength in strengths:
            weights = self.own | {
                name: prepared.at(name, self.own[name], strength=strength)
                for name in prepared.displacement
                if name in self.own
            }
            yield Choice(prepared, strength, {}, self.measure(weights))
            if statistics := self._statistics(weights):
                loss = self.measure(weights | statistics)
                yield Choice(prepared, strength, statistics, loss)

    def _statistics(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.calibration:
            return {}
        return recalibrate_batchnorm(
            self.model, weights=weights, data=self.calibration, forward=self.loss
        )


def regime_of(bench: Workbench, survey: Survey) -> Regime:
    """Return whether the bases share a history: by direction, or because no neuron would move.

    The matching that tells is only made where it may be used.
    """
    if survey.regime == "independent" and bench.plan.method == "auto" and bench.can_match:
        matched = cast("Permutation", bench.carrier("weights"))
        return "continued lineage" if matched.moved() <= _FEW else "independent"
    return survey.regime


def choose_by_alignment(bench: Workbench, regime: Regime) -> Choice:
    """Choose without data: the displacement as it is, or re-based where bases are independent."""
    method = bench.plan.method
    if method == "auto":
        method = "weights" if regime == "independent" and bench.can_match else "identity"
    return Choice(prepare(method, bench))


def choose_by_loss(bench: Workbench, regime: Regime, judge: Judge, progress: Progress) -> Choice:
    """Choose what has the least loss on the validation data.

    Args:
        bench: The problem.
        regime: How the bases lie to each other.
        judge: Measures.
        progress: Called after each method.

    Returns:
        The best choice, with the loss of all.
    """
    plan = bench.plan
    tried = _methods(bench, regime)
    best: Choice | None = None
    plain = math.inf  # the least loss of the displacement as it is
    candidates: list[Candidate] = []
    for number, method in enumerate(tried, start=1):
        strengths = sorted({*plan.strengths, 1.0}) if method == "identity" else plan.strengths
        for choice in judge.search(prepare(method, bench).held(), strengths):
            candidates.append(_candidate(choice))
            if method == "identity" and choice.strength == 1:
                plain = min(plain, choice.loss)
            if plan.method in ("auto", method) and (best is None or choice.loss < best.loss):
                best = choice
        progress(number, len(tried))
    assert best is not None  # every method has a strength
    return replace(
        best,
        candidates=tuple(candidates),
        loss_before=judge.measure(judge.own),
        loss_identity=plain,
    )


def _methods(bench: Workbench, regime: Regime) -> tuple[PortMethod, ...]:
    """The plain displacement first: everything else is compared with it."""
    if bench.plan.method == "auto":
        methods = WITH_GRADIENTS[regime] if bench.data is not None else WITHOUT_GRADIENTS
    else:
        methods = ("identity", bench.plan.method)
    return tuple(dict.fromkeys(methods))


def _candidate(choice: Choice) -> Candidate:
    return Candidate(
        choice.prepared.method,
        choice.strength,
        choice.loss,
        "estimated" if choice.statistics else "carried",
    )
