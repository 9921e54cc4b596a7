"""The average of networks that were trained apart, in the basis of the first."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.evaluation import Task
from slipstream.matching import BasisMatching, BasisPlan, match_basis
from slipstream.symmetry.rotation import RotatableGroups
from slipstream.weights import Weights, is_continuous


@dataclass(frozen=True)
class NetworkAverage:
    """Result of `average_networks`."""

    weights: dict[str, Tensor]
    matchings: tuple[BasisMatching, ...]  # of all networks but the first


def average_networks(
    networks: Sequence[Weights],
    task: Task | None = None,
    *,
    rotatable: RotatableGroups,
    plan: BasisPlan | None = None,
) -> NetworkAverage:
    """Average networks that were trained apart, each rotated into the basis of the first.

    Without the rotation, the mean of independent networks computes nothing. With it, the loss of
    the mean of two is what `align_then_barrier` measures in the middle: measure it before use. The
    gains of normalisations are the first network's; the architecture does not change.

    Args:
        networks: At least two, of the same layout.
        task: The model and training data, as for `match_basis`.
        rotatable: What may be rotated and permuted, as of `find_rotatable_groups`.
        plan: How each is aligned.

    Returns:
        The mean, and how each network was aligned; integers are the first network's.

    Raises:
        ValueError: If there are fewer than two networks, or as of `match_basis`.

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
    found = [match_basis(n, first, task, rotatable=rotatable, plan=plan) for n in others]
    aligned = [m.source_to_target.apply(n) for m, n in zip(found, others, strict=True)]
    weights = {
        name: torch.stack([value.detach(), *(w[name].detach() for w in aligned)]).mean(0)
        if is_continuous(value)
        else value.detach().clone()
        for name, value in first.items()
    }
    return NetworkAverage(weights, tuple(found))
