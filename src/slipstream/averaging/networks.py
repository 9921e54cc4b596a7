"""The average of networks that were trained apart, in the basis of the first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from slipstream.evaluation import Task
from slipstream.matching import (
    BasisMatching,
    BasisPlan,
    Matching,
    match_activations,
    match_basis,
    match_weights,
)
from slipstream.symmetry.rotation import RotatableGroups
from slipstream.weights import Weights, is_continuous


@dataclass(frozen=True)
class NetworkAverage:
    """Result of `average_networks`."""

    weights: dict[str, Tensor]
    matchings: tuple[BasisMatching | Matching, ...]  # of all networks but the first


def average_networks(
    networks: Sequence[Weights],
    task: Task | None = None,
    *,
    rotatable: RotatableGroups,
    plan: BasisPlan | None = None,
) -> NetworkAverage:
    """Average networks that were trained apart, each aligned to the first.

    Each is rotated into the basis of the first, or permuted where nothing may be rotated. As they
    are, the mean of independent networks computes nothing. Aligned, the loss of the mean of two is
    what `align_then_barrier` measures in the middle: measure it before use. The gains of
    normalisations are the first network's; the architecture does not change.

    Args:
        networks: At least two, of the same layout.
        task: The model and training data, as for `match_basis` and `match_activations`.
        rotatable: What may be rotated and permuted, as of `find_rotatable_groups`.
        plan: How each is aligned.

    Returns:
        The mean, and how each network was aligned; integers are the first network's.

    Raises:
        ValueError: If there are fewer than two networks, if rotations should be learned and there
            are none, or as of `match_basis`.

    Example:
        >>> from slipstream.symmetry.rotation_proof import find_rotatable_groups
        >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
        >>> rotatable = find_rotatable_groups(model, torch.ones(2, 5))
        >>> own = {name: value.detach() for name, value in model.named_parameters()}
        >>> same = average_networks([own, own], rotatable=rotatable, plan=BasisPlan("weights"))
        >>> torch.allclose(same.weights["0.weight"], own["0.weight"], atol=1e-5)
        True
    """
    if len(networks) < 2:
        raise ValueError(f"networks must be at least two, got {len(networks)}.")
    first, *others = networks
    plan = plan or BasisPlan()
    found = [_aligned(n, first, task, rotatable, plan) for n in others]
    aligned = [m.source_to_target.apply(n) for m, n in zip(found, others, strict=True)]
    return NetworkAverage(mean_of_networks([first, *aligned]), tuple(found))


def mean_of_networks(networks: Sequence[Weights]) -> dict[str, Tensor]:
    """Return the mean of networks as they are.

    Args:
        networks: At least one, of the same layout.

    Returns:
        The mean of each tensor; integers are the first network's.
    """
    first = networks[0]
    return {
        name: torch.stack([weights[name].detach() for weights in networks]).mean(0)
        if is_continuous(value)
        else value.detach().clone()
        for name, value in first.items()
    }


def _aligned(
    source: Weights, target: Weights, task: Task | None, rotatable: RotatableGroups, plan: BasisPlan
) -> BasisMatching | Matching:
    if rotatable.rotatable or plan.learn_steps:
        return match_basis(source, target, task, rotatable=rotatable, plan=plan)
    if plan.method == "weights":
        return match_weights(source, target, groups=rotatable.groups)
    if task is None:
        raise ValueError('A task with data is needed: give it, or use BasisPlan("weights").')
    seen = replace(task, data=list(islice(task.unlabelled_batches, plan.batches)))
    return match_activations(source, target, seen, groups=rotatable.groups)
