"""Which method, at which strength: by validation data, or by the alignment of the bases."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import cast

from torch import Tensor

from slipstream.evaluation import Batch
from slipstream.porting.displacement import Prepared, prepare
from slipstream.porting.method_inputs import MethodInputs
from slipstream.porting.plan import PortMethod
from slipstream.porting.problem import BaseAlignment, Regime
from slipstream.porting.result import PortCandidate
from slipstream.symmetry.permutation import Permutation
from slipstream.transfer.transfer_state import BatchStream, complete_weights
from slipstream.weights import Weights

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
    candidates: tuple[PortCandidate, ...] = ()
    loss_before: float | None = None
    loss_identity: float | None = None


class Judge:
    """Measures weights on the validation data."""

    def __init__(self, inputs: MethodInputs) -> None:
        task = self._task = replace(inputs.with_model.repeatable(), metrics={})
        self.own = complete_weights(task.model, inputs.problem.to_base, "to_base")
        self._calibration: list[Batch] = []  # for the statistics of BatchNorm
        if task.calibration is None or task.calibration != ():
            given = (task.data if task.has_data else task.validation) or ()
            stream = BatchStream(given if task.calibration is None else task.calibration)
            self._calibration = stream.take(inputs.plan.batchnorm_batches)

    def measure(self, weights: Weights) -> float:
        """Return the loss; an infinite one if it is not a number."""
        value = self._task.validated(weights=weights)["validation_loss"]
        return value if math.isfinite(value) else math.inf

    def search(self, prepared: Prepared, strengths: Iterable[float]) -> Iterator[Choice]:
        """Measure a displacement at every strength, with BatchNorm as carried and as estimated.

        Args:
            prepared: What to apply.
            strengths: The factors to try.

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
            if self._calibration and (statistics := self._statistics(weights)):
                loss = self.measure(weights | statistics)
                yield Choice(prepared, strength, statistics, loss)

    def _statistics(self, weights: Weights) -> dict[str, Tensor]:
        return replace(self._task, calibration=self._calibration).recalibrated(weights)


def regime_of(inputs: MethodInputs, alignment: BaseAlignment) -> Regime:
    """Return whether the bases share a history: by direction, or because no neuron would move.

    The matching that decides is only computed where it may be used.
    """
    if alignment.regime == "independent" and inputs.plan.method == "auto" and inputs.can_match:
        matched = cast("Permutation", inputs.aligner("weights"))
        return "continued lineage" if matched.moved() <= _FEW else "independent"
    return alignment.regime


def choose_by_alignment(inputs: MethodInputs, regime: Regime) -> Choice:
    """Choose without data: the displacement as it is, or re-based where bases are independent."""
    method = inputs.plan.method
    if method == "auto":
        method = "weights" if regime == "independent" and inputs.can_match else "identity"
    return Choice(prepare(method, inputs))


def choose_by_loss(inputs: MethodInputs, regime: Regime, progress: Progress) -> Choice:
    """Choose what has the least loss on the validation data.

    Args:
        inputs: The problem.
        regime: Whether the bases share a history.
        progress: Called after each method.

    Returns:
        The best choice, with the loss of all.
    """
    plan, judge = inputs.plan, Judge(inputs)
    tried = _methods(inputs, regime)
    best: Choice | None = None
    plain = math.inf  # the least loss of the displacement as it is
    candidates: list[PortCandidate] = []
    for number, method in enumerate(tried, start=1):
        strengths = sorted({*plan.strengths, 1.0}) if method == "identity" else plan.strengths
        for choice in judge.search(prepare(method, inputs).held(), strengths):
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


def _methods(inputs: MethodInputs, regime: Regime) -> tuple[PortMethod, ...]:
    """The plain displacement first: everything else is compared with it."""
    if inputs.plan.method == "auto":
        methods = WITH_GRADIENTS[regime] if inputs.has_data else WITHOUT_GRADIENTS
    else:
        methods = ("identity", inputs.plan.method)
    return tuple(dict.fromkeys(methods))


def _candidate(choice: Choice) -> PortCandidate:
    return PortCandidate(
        choice.prepared.method,
        choice.strength,
        choice.loss,
        "estimated" if choice.statistics else "carried",
    )
