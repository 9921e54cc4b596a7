"""Carry a fine-tune from the base model it was made of to another one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from slipstream.evaluation import Task, takes_task
from slipstream.porting.choosing import Chosen, Progress, choose_by_alignment, regime_of
from slipstream.porting.labels import within_budget
from slipstream.porting.method_inputs import MethodInputs, aligned_base, aligned_displacement
from slipstream.porting.plan import PortPlan
from slipstream.porting.problem import (
    BaseAlignment,
    FineTune,
    Regime,
    TensorAlignment,
    align_bases,
    fine_tune_without,
    pose,
)
from slipstream.porting.result import PortedLayer, PortResult
from slipstream.porting.rotated import RotatedEnds
from slipstream.porting.search import choose_by_loss
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.trajectory.layout import Layout
from slipstream.weights import Weights, inner


@takes_task(fine_tune=FineTune)
def port_fine_tune(
    fine_tune: FineTune[Weights],
    task: Task | None = None,
    *,
    plan: PortPlan | None = None,
    groups: NeuronGroups | None = None,
    progress: Progress | None = None,
) -> PortResult:
    """Give another base what a fine-tune has learned since its own.

    The displacement `fine_tuned - from_base` is aligned to the neurons of the other base and added.
    Between bases that share a history that is enough; between independent ones the neurons are
    matched first, and the other base's gradient on a few labelled batches decides about signs.

    Args:
        fine_tune: The weights of the fine-tune, of its base, and of the base it is carried to.
        task: The architecture with its loss; its data are labelled batches for gradients and
            BatchNorm statistics. If it has validation data, method and strength are chosen on
            them. The method `identity` needs no task.
        plan: What to do; `PortPlan()` chooses the method.
        groups: What may be permuted; found and proven when not given.
        progress: Called after each method that was tried.

    Returns:
        The weights, what was chosen among what, and a report layer by layer.

    Raises:
        ValueError: If architectures differ, a tensor holds a NaN, or a method lacks what it needs.

    Source: the displacement is "Editing models with task arithmetic" (Ilharco et al., 2023); the
    mask is GradFix (Rinaldi et al., 2025); `fgmt` is "Transferring Learning Trajectories of Neural
    Networks" (Chijiwa, 2024); together they are this project's.

    Example:
        >>> import torch
        >>> base, tuned, other = ({"w": torch.full((2, 2), v)} for v in (1.0, 1.5, 0.9))
        >>> result = port_fine_tune(FineTune(base, tuned, other))
        >>> result.regime, result.method, result.weights["w"][0, 0].item()
        ('continued lineage', 'identity', 1.399999976158142)
    """
    plan = PortPlan() if plan is None else plan
    ties = {} if task is None else Layout.of(task.model).aliases
    problem = pose(fine_tune_without(fine_tune, ties), exclude=plan.exclude)
    solution = find_solution(MethodInputs(problem, plan, task, groups), progress=progress)
    parts = {name: solution.part(name) for name in problem.to_base}
    return solution.result(parts, weights={name: part.value for name, part in parts.items()})


@dataclass(frozen=True)
class Part:
    """One tensor of the result, with the inner products that say what became of it."""

    value: Tensor
    kept: float = 0.0  # <what was added, the displacement aligned to B>
    matched: float = 0.0  # <A aligned to B, B>


@dataclass(frozen=True)
class Solution:
    """What was chosen for a problem."""

    inputs: MethodInputs
    measured: BaseAlignment
    regime: Regime
    chosen: Chosen

    def part(self, name: str) -> Part:
        """Return one tensor of the result; no other is held meanwhile."""
        problem, choice = self.inputs.problem, self.chosen.choice
        own = problem.to_base[name]
        if name not in self.measured.tensors:
            return Part(own)
        kept, matched = self._kept(name), self._matched(name)
        return Part(choice.at(name, own), kept, matched)

    def result(
        self,
        parts: Mapping[str, Part],
        *,
        weights: dict[str, Tensor] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> PortResult:
        """Put together what is known.

        Args:
            parts: The tensors of the report.
            weights: The result, if it is in memory.
            warnings: Further ones.

        Returns:
            The result.
        """
        problem, chosen, choice = self.inputs.problem, self.chosen, self.chosen.choice
        return PortResult(
            plan=self.inputs.plan,
            method=choice.method,
            strength=choice.strength,
            regime=self.regime,
            alignment=self.measured.alignment,
            layers=_layers(self.measured, parts),
            candidates=chosen.candidates,
            loss_before=chosen.loss_before,
            loss_identity=chosen.loss_identity,
            loss_after=choice.loss if chosen.candidates else None,
            margin=chosen.margin,
            explanation=chosen.explanation,
            gradient_evaluations=sum(self.inputs.spent),
            excluded=problem.excluded,
            warnings=(
                *problem.warnings,
                *self.measured.warnings(),
                *self.inputs.notes,
                *warnings,
            ),
            weights=weights or {},
        )

    def _kept(self, name: str) -> float:
        choice, added = self.chosen.choice, self.chosen.choice.added(name)
        if choice.moves_as_aligned:
            kept = inner({name: added}, {name: added}) / choice.strength
        else:
            aligned = aligned_displacement(self.inputs.problem, choice.aligner, name)
            kept = inner({name: added}, {name: aligned})
        if not isinstance(choice.aligner, RotatedEnds):
            return kept
        # Gains that are folded and unfolded change lengths: what is kept is a share of the aligned.
        aligned = choice.aligner.displacements[name]
        moved = self.inputs.problem.displacement(name)
        whole = inner({name: aligned}, {name: aligned})
        return inner({name: moved}, {name: moved}) * (kept / whole if whole else choice.strength)

    def _matched(self, name: str) -> float:
        problem = self.inputs.problem
        aligned = aligned_base(problem, self.chosen.choice.aligner, name)
        return inner({name: aligned}, {name: problem.to_base[name]})


def find_solution(inputs: MethodInputs, *, progress: Progress | None = None) -> Solution:
    """Compare the bases, and choose method and strength: by validation data, if there is any.

    Args:
        inputs: The problem, with what methods need.
        progress: Called after each method that was tried.

    Returns:
        The solution, from which the result is made tensor by tensor.

    Raises:
        ValueError: If a tensor holds a NaN, or something that a method needs is missing.
    """
    plan = inputs.plan.within_budget()
    task = within_budget(inputs.task, plan.labels, plan.unlabelled)
    inputs = replace(inputs, plan=plan, task=task)
    measured = align_bases(inputs.problem)
    regime = regime_of(inputs, measured)
    if inputs.task is None or inputs.task.validation is None:
        return Solution(inputs, measured, regime, choose_by_alignment(inputs, regime))
    choice = choose_by_loss(inputs, regime, progress or (lambda *_: None))
    return Solution(inputs, measured, regime, choice)


def _layers(measured: BaseAlignment, parts: Mapping[str, Part]) -> tuple[PortedLayer, ...]:
    """Sum up what is known of tensors by the module that holds them."""
    members: dict[str, list[str]] = {}
    for name in filter(parts.__contains__, measured.tensors):
        members.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return tuple(
        _layer(layer, [measured.tensors[n] for n in names], [parts[n] for n in names])
        for layer, names in members.items()
    )


def _layer(name: str, tensors: list[TensorAlignment], parts: list[Part]) -> PortedLayer:
    moved = sum(tensor.displacement for tensor in tensors)
    first, second = (sum(getattr(t, base) for t in tensors) for base in ("from_base", "to_base"))
    return PortedLayer(
        name,
        displacement=_root(moved),
        relative=_root(moved / first) if first else 0.0,
        kept=sum(part.kept for part in parts) / moved if moved else 0.0,
        alignment=_cosine(sum(tensor.bases for tensor in tensors), first, second),
        matched=_cosine(sum(part.matched for part in parts), first, second),
    )


def _root(square: float) -> float:
    """A square root, also of a rounding error below zero."""
    return math.sqrt(max(square, 0.0))


def _cosine(product: float, first: float, second: float) -> float:
    """A cosine from an inner product and two squared norms; 0 of a vector of zeros."""
    return product / _root(first * second) if first > 0 and second > 0 else 0.0
