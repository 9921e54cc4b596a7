"""The barrier between two networks before and after their neurons are matched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.evaluation import Task, takes_task
from slipstream.landscape.evaluator import Progress, evaluate_points
from slipstream.landscape.line import Barrier, learned, loss_line, polyline
from slipstream.landscape.plans import AlignmentPlan
from slipstream.matching import (
    BasisMatching,
    BasisPlan,
    Matching,
    match_activations,
    match_basis,
    match_weights,
)
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.rotation_proof import find_rotatable_groups
from slipstream.weights import Weights


@dataclass(frozen=True)
class AlignedBarriers:
    """Result of `align_then_barrier`."""

    before: Barrier  # from the source to the target
    after: Barrier  # from the permuted source to the target
    matching: Matching | BasisMatching  # what moves the source, and what it gained and cost
    weights: dict[str, Tensor]  # the permuted, or rotated, source

    def to_json(self) -> dict[str, Any]:
        """Return everything but the weights as plain data."""
        found = {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "moved": self.matching.source_to_target.moved(),
            "gain": self.matching.gain,
        }
        if isinstance(self.matching, BasisMatching):
            found["rotations"] = self.matching.source_to_target.rotatable.to_json()
        return found


@takes_task(plan=AlignmentPlan)
def align_then_barrier(
    source: Weights,
    target: Weights,
    task: Task,
    *,
    groups: NeuronGroups,
    plan: AlignmentPlan | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> AlignedBarriers:
    """Measure the barrier between two networks as they are, and with the source's neurons permuted.

    A permutation changes no function, so the ends of both lines are equally good. If the second
    line stays low, the two networks lie in one basin up to the order of their neurons.

    Args:
        source: Weights whose neurons are permuted.
        target: Weights that stay; the same layout.
        task: The model, left as it was; the data, the loss and the metrics to measure. Activations
            are matched on `task.calibration`, or on its data if there is none; rotations are
            trained on `task.calibration` alone.
        groups: What may be permuted, as of `find_neuron_groups`. Which of them may be rotated is
            proven here, if the plan asks for it.
        plan: How neurons are matched, and how many points are measured.
        resume: A file for computed points, to continue after an interruption.
        progress: Called with the number of points done, and of all.

    Returns:
        Both barriers, the matching and the permuted source.

    Raises:
        ValueError: If the weights differ in layout or hold a NaN, if no group may be rotated, or as
            of `evaluate_points`.

    Source: "Git Re-Basin" (Ainsworth, Hayase, Srinivasa, 2023), Sections 3.1, 3.2 and 5.
    """
    plan = plan or AlignmentPlan()
    task = task.in_memory()
    found = _matched(source, target, task, groups, plan)
    aligned = found.source_to_target.apply(source)
    rows = polyline(2, plan.points)
    none = torch.zeros(plan.points, 1, dtype=torch.float64)
    values = evaluate_points(
        {"source": source, "the permuted source": aligned, "target": target},
        torch.cat([torch.cat([rows[:, :1], none, rows[:, 1:]], 1), torch.cat([none, rows], 1)]),
        task,
        memory=plan.memory,
        resume=resume,
        progress=progress,
    )
    before, after = (
        Barrier(loss_line([start, target], rows, {n: value[part] for n, value in values.items()}))
        for start, part in ((source, slice(plan.points)), (aligned, slice(plan.points, None)))
    )
    return AlignedBarriers(before, after, found, aligned)


def _matched(
    source: Weights, target: Weights, task: Task, groups: NeuronGroups, plan: AlignmentPlan
) -> Matching | BasisMatching:
    given: dict[str, Any] = {"groups": groups, "restarts": plan.restarts, "seed": plan.seed}
    if plan.method == "weights":
        return match_weights(learned(source), learned(target), **given)
    if plan.learn_steps and not task.calibration:
        raise ValueError(
            "learn_steps trains on task.calibration, which is missing: trained on the data that is "
            "measured, the barrier would be too low. Give Task(..., calibration=training_batches)."
        )
    seen = task.on(task.calibration or task.data)
    if plan.method == "activations":
        return match_activations(source, target, seen, **given)
    rotatable = find_rotatable_groups(task.model, seen.example(), groups=groups)
    how = BasisPlan(learn_steps=plan.learn_steps, seed=plan.seed)
    return match_basis(source, target, seen, rotatable=rotatable, plan=how)
