"""Carry a fine-tune from the base model it was made of to another one."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from slipstream.evaluation import Batch, Loss
from slipstream.porting.choosing import Progress
from slipstream.porting.method_inputs import Workbench
from slipstream.porting.plan import PortPlan
from slipstream.porting.problem import pose, without
from slipstream.porting.result import PortResult
from slipstream.porting.solution import solve
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.trajectory.layout import Layout
from slipstream.weights import Weights


def port_fine_tune(
    model: nn.Module | None = None,
    *,
    from_base: Weights,
    fine_tuned: Weights,
    to_base: Weights,
    plan: PortPlan | None = None,
    loss: Loss | None = None,
    data: Iterable[Batch] | None = None,
    validation: Iterable[Batch] | None = None,
    groups: NeuronGroups | None = None,
    example_input: Any = None,
    progress: Progress | None = None,
) -> PortResult:
    """Give `to_base` what `fine_tuned` has learned since `from_base`.

    The displacement `fine_tuned - from_base` is laid over the neurons of the other base and added.
    Between bases that share a history that is enough; between independent ones the neurons are
    matched first, and the other base's gradient on a few labelled batches has a say in every sign.

    Args:
        model: The architecture; left as it was. `identity` needs none.
        from_base: The weights that the fine-tune started from.
        fine_tuned: The weights where it ended.
        to_base: The weights that it is carried to.
        plan: What to do; `PortPlan()` chooses the method.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        data: Labelled batches of the task, for gradients and BatchNorm statistics.
        validation: Other labelled batches, on which method and strength are chosen; never test
            data.
        groups: What may be permuted; found and proven when not given.
        example_input: An input of the model, for finding the groups; by default that of the first
            batch of `data`.
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
        >>> result = port_fine_tune(from_base=base, fine_tuned=tuned, to_base=other)
        >>> result.regime, result.method, result.weights["w"][0, 0].item()
        ('continued lineage', 'identity', 1.399999976158142)
    """
    plan = PortPlan() if plan is None else plan
    ties = {} if model is None else Layout.of(model).aliases
    first, last, other = (without(weights, ties) for weights in (from_base, fine_tuned, to_base))
    problem = pose(first, last, other, exclude=plan.exclude)
    bench = Workbench(problem, plan, model, loss, data, groups, example_input)
    solution = solve(bench, validation=validation, progress=progress)
    parts = {name: solution.part(name) for name in problem.to_base}
    return solution.result(parts, weights={name: part.value for name, part in parts.items()})
