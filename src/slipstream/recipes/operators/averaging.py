"""A start for a further operator: the average of others, in the basis of the first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slipstream.averaging.networks import mean_of_networks
from slipstream.evaluation import Batch, Task, eval_mode, weights_in
from slipstream.evaluation.batches import sized_batches
from slipstream.matching import Matching, match_activations
from slipstream.recipes.operators.plan import OperatorPlan
from slipstream.recipes.patterns import matches
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import Weights, check_same_layout, first_nonfinite, weights_of


@dataclass(frozen=True)
class OperatorAverage:
    """Result of `average_operators`."""

    weights: dict[str, Tensor]
    groups: tuple[str, ...]  # neurons that were matched
    matchings: tuple[Matching, ...]  # of all networks but the first


def average_operators(
    networks: Sequence[Weights], task: Task, *, plan: OperatorPlan | None = None, match: bool = True
) -> OperatorAverage:
    """Average networks that share a half, after matching the neurons of the other half.

    Networks whose local halves began apart compute with other neurons in another order, and with
    other signs behind a tanh: their mean computes nothing. Only neurons within the local half are
    matched; the shared one is the same, and so is the meaning of what both halves exchange.

    Args:
        networks: At least two, of the task's model.
        task: The model, how it is fed, and batches to observe it on, which need no solutions.
        plan: Says which half is local.
        match: Whether neurons are matched; networks that began equal need it less.

    Returns:
        The mean of all networks, in the basis of the first.

    Raises:
        ValueError: If there are fewer than two networks, one is of another layout or not finite,
            or no neurons of the local half can be matched.
    """
    if len(networks) < 2:
        raise ValueError(f"networks must be at least two, got {len(networks)}.")
    own = weights_of(task.model)
    for number, weights in enumerate(networks, start=1):
        check_same_layout(own, weights, names=("the model", f"network {number}"))
        if bad := first_nonfinite(weights):
            raise ValueError(f"Network {number} holds a NaN or an infinity in {bad!r}.")
    first, *others = networks
    if not match:
        return OperatorAverage(mean_of_networks(networks), (), ())
    groups = _local_groups(task, plan or OperatorPlan())
    found = [match_activations(other, first, task, groups=groups) for other in others]
    aligned = [m.source_to_target.apply(n) for m, n in zip(found, others, strict=True)]
    mean = mean_of_networks([first, *aligned])
    return OperatorAverage(mean, tuple(groups.sizes()), tuple(found))


def _local_groups(task: Task, plan: OperatorPlan) -> NeuronGroups:
    """The neurons that only tensors of the local half list."""
    groups = find_neuron_groups(task.model, task.example())
    kept = [
        group.name
        for group in groups.groups
        if all(matches(block.tensor, plan.local) for block in groups.blocks_of(group.name))
    ]
    if not kept:
        raise ValueError(
            f"No neurons within {', '.join(plan.local)} can be permuted: average without matching, "
            "or let the local halves begin equal."
        )
    return groups.keep(kept)


def operator_errors(
    model: nn.Module, data: Iterable[Batch], *, weights: Weights | None = None
) -> Tensor:
    """Return the relative L2 error of each function: |found - solution| / |solution|.

    Args:
        model: Takes functions and points; left as it was.
        data: Batches `((functions, points), values)`.
        weights: What to evaluate instead of the model's own.

    Returns:
        (functions,), of all batches.

    Raises:
        ValueError: If `data` is empty.

    Example:
        >>> batch = (torch.ones(3, 4), torch.zeros(4, 2)), torch.ones(3, 4)
        >>> class Twice(nn.Module):
        ...     def forward(self, functions, points):
        ...         return 2 * functions
        >>> operator_errors(Twice(), [batch])
        tensor([1., 1., 1.])
    """
    errors = []
    with weights_in(model, weights), eval_mode(model), torch.no_grad():
        for (inputs, values), _ in sized_batches(model, data):
            distance = torch.linalg.vector_norm(model(*inputs) - values, dim=1)
            errors.append(distance / torch.linalg.vector_norm(values, dim=1))
    return torch.cat(errors)
