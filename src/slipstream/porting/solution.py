"""A problem that is solved: every tensor of the result, and what became of its displacement."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from slipstream.evaluation import Batch
from slipstream.porting.base_alignment import Regime, Survey, TensorSurvey, survey
from slipstream.porting.choosing import (
    Choice,
    Judge,
    Progress,
    choose_by_alignment,
    choose_by_loss,
    regime_of,
)
from slipstream.porting.method_inputs import Workbench
from slipstream.porting.plan import parts_of
from slipstream.porting.result import PortedLayer, PortResult, cosine, root
from slipstream.transfer.checks import complete, repeatable
from slipstream.transfer.transfer_state import BatchStream
from slipstream.weights import inner


@dataclass(frozen=True)
class Part:
    """One tensor of the result, with the inner products that tell what became of it."""

    value: Tensor
    kept: float = 0.0  # <what was added, the displacement laid over B>
    matched: float = 0.0  # <A laid over B, B>


@dataclass(frozen=True)
class Solution:
    """What was chosen for a problem."""

    bench: Workbench
    measured: Survey
    regime: Regime
    choice: Choice

    def part(self, name: str) -> Part:
        """Return one tensor of the result; no other is held meanwhile."""
        problem, choice = self.bench.problem, self.choice
        if name not in self.measured.tensors:
            return Part(problem.to_base[name])
        kept, matched = self._kept(name), self._matched(name)
        value = choice.prepared.at(name, problem.to_base[name], strength=choice.strength)
        if name in choice.statistics:
            value = choice.statistics[name].to(value.dtype)
        return Part(value, kept, matched)

    def result(
        self,
        parts: Mapping[str, Part],
        *,
        weights: dict[str, Tensor] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> PortResult:
        """Put together what is known.

        Args:
            parts: The tensors that the report tells of.
            weights: The result, if it is in memory.
            warnings: Further ones.

        Returns:
            The result.
        """
        choice, problem = self.choice, self.bench.problem
        return PortResult(
            plan=self.bench.plan,
            method=choice.prepared.method,
            strength=choice.strength,
            regime=self.regime,
            alignment=self.measured.alignment,
            layers=_layers(self.measured, parts),
            candidates=choice.candidates,
            loss_before=choice.loss_before,
            loss_identity=choice.loss_identity,
            loss_after=choice.loss if choice.candidates else None,
            excluded=problem.excluded,
            warnings=(
                *problem.warnings,
                *self.measured.warnings(),
                *self.bench.notes,
                *warnings,
            ),
            weights=weights or {},
        )

    def _kept(self, name: str) -> float:
        choice = self.choice
        added = choice.prepared.displacement[name]
        if parts_of(choice.prepared.method)[1] == "none":
            return choice.strength * inner({name: added}, {name: added})
        moved = self.bench.problem.displacement(name)
        laid = choice.prepared.carrier.apply_to(name, moved)
        return choice.strength * inner({name: added}, {name: laid})

    def _matched(self, name: str) -> float:
        problem = self.bench.problem
        laid = self.choice.prepared.carrier.apply_to(name, problem.from_base[name])
        return inner({name: laid}, {name: problem.to_base[name]})


def solve(
    bench: Workbench,
    *,
    validation: Iterable[Batch] | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Survey the problem, and choose method and strength: by validation data, if there is any.

    Args:
        bench: The problem.
        validation: Labelled batches to choose by.
        progress: Called after each method that was tried.

    Returns:
        The solution, from which the result is made tensor by tensor.

    Raises:
        ValueError: If a tensor holds a NaN, or something that a method needs is missing.
    """
    measured = survey(bench.problem)
    regime = regime_of(bench, measured)
    held = repeatable(validation)
    if held is None:
        return Solution(bench, measured, regime, choose_by_alignment(bench, regime))
    model, loss = bench.asked("model", bench.model), bench.asked("loss", bench.loss)
    own = complete(model, bench.problem.to_base, "to_base")
    calibration = BatchStream(held if bench.data is None else bench.data)
    judge = Judge(model, loss, held, own, calibration.take(bench.plan.batchnorm_batches))
    choice = choose_by_loss(bench, regime, judge, progress or (lambda *_: None))
    return Solution(bench, measured, regime, choice)


def _layers(measured: Survey, parts: Mapping[str, Part]) -> tuple[PortedLayer, ...]:
    """Sum up what is known of tensors by the module that holds them."""
    members: dict[str, list[str]] = {}
    for name in filter(parts.__contains__, measured.tensors):
        members.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return tuple(
        _layer(layer, [measured.tensors[n] for n in names], [parts[n] for n in names])
        for layer, names in members.items()
    )


def _layer(name: str, tensors: list[TensorSurvey], parts: list[Part]) -> PortedLayer:
    moved = sum(tensor.displacement for tensor in tensors)
    first, second = (sum(getattr(t, base) for t in tensors) for base in ("from_base", "to_base"))
    return PortedLayer(
        name,
        displacement=root(moved),
        relative=root(moved / first) if first else 0.0,
        kept=sum(part.kept for part in parts) / moved if moved else 0.0,
        alignment=cosine(sum(tensor.bases for tensor in tensors), first, second),
        matched=cosine(sum(part.matched for part in parts), first, second),
    )
