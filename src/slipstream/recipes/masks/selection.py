"""Which weights stay: those with the highest scores, layer by layer or all together."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from slipstream.recipes.masks.plan import Ranking, Selection

Masks = Mapping[str, Tensor]  # bool, as the weights: true where a weight stays


def select(
    scores: Mapping[str, Tensor],
    shares: Mapping[str, float],
    *,
    selection: Selection = "layer",
    ranking: Ranking = "raw",
) -> dict[str, Tensor]:
    """Return which weights stay, m = 1[s >= t], t the quantile of the scores.

    Of n scores, the floor(share n) lowest are pruned. Scores that equal the threshold all stay, so
    that the mask depends on the scores alone, not on the order of the weights.

    Source: "What's Hidden in a Randomly Weighted Neural Network?" (Ramanujan et al., 2020),
    section 3.2, which ranks absolute scores and counts the share that is kept; raw scores and the
    share pruned are from "Pruning Randomly Initialized Neural Networks with Iterative
    Randomization" (Chijiwa, Yamaguchi, Ida, Umakoshi, Inoue, 2021), section 2.

    Args:
        scores: A score for each weight.
        shares: How much of each layer is pruned, in [0, 1); all alike if the selection is global.
        selection: Whether each layer has a threshold of its own, or all have one.
        ranking: Whether to rank scores as they are, or by their size.

    Returns:
        The masks, by the names of the scores.

    Example:
        >>> scores = {"w": torch.tensor([[0.3, -0.9, 0.1, 0.2]])}
        >>> select(scores, {"w": 0.5})["w"]
        tensor([[ True, False, False,  True]])
        >>> select(scores, {"w": 0.5}, ranking="absolute")["w"]
        tensor([[ True,  True, False, False]])
    """
    ranks = {
        n: s.detach().abs() if ranking == "absolute" else s.detach() for n, s in scores.items()
    }
    if selection == "layer":
        return {
            name: rank >= lowest_kept(rank.flatten(), shares[name]) for name, rank in ranks.items()
        }
    together = torch.cat([rank.flatten() for rank in ranks.values()])
    threshold = lowest_kept(together, next(iter(shares.values())))
    return {name: rank >= threshold for name, rank in ranks.items()}


def churn(before: Masks, after: Masks) -> float:
    """Return the share of all weights that are kept by one of two masks only.

    Example:
        >>> churn({"w": torch.tensor([True, False])}, {"w": torch.tensor([True, True])})
        0.5
    """
    changed = sum(int((before[name] != mask).sum()) for name, mask in after.items())
    return changed / sum(mask.numel() for mask in after.values())


def share_pruned(masks: Masks) -> dict[str, float]:
    """Return the share of the weights that is pruned, by layer."""
    return {name: 1 - int(mask.sum()) / mask.numel() for name, mask in masks.items()}


def lowest_kept(ranks: Tensor, share: float) -> Tensor:
    """Return the lowest rank that stays if a share is pruned: the threshold, 0-dim.

    Example:
        >>> lowest_kept(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5)
        tensor(3.)
    """
    # A share such as 0.29 of 100 must be 29 in spite of its binary digits.
    fallen = min(math.floor(share * ranks.numel() + 1e-9), ranks.numel() - 1)
    if ranks.is_cuda:  # kthvalue has no deterministic kernel there
        return ranks.sort().values[fallen]
    return ranks.kthvalue(fallen + 1).values
