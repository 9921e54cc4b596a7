"""Matching of the weights themselves, or of displacements."""

from typing import Literal

from slipstream.matching.frank_wolfe import frank_wolfe
from slipstream.matching.objective import Objective
from slipstream.matching.solve import Matching, solve
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import Weights, check_same_layout, check_shapes, is_continuous


def match_weights(
    source: Weights,
    target: Weights,
    *,
    groups: NeuronGroups,
    start: Permutation | Literal["frank-wolfe"] | None = None,
    restarts: int = 0,
    seed: int = 0,
) -> Matching:
    """Find the permutation that lays `source` over `target`: the largest inner product.

    It is the smallest distance, too, because a permutation changes no norm. With displacements
    (trained minus start) for weights it is the oracle that learning transfer is held against.

    Args:
        source: Weights that are permuted: some or all tensors of the model.
        target: Weights that stay; the same layout.
        groups: What may be permuted.
        start: Where the search starts; the identity by default. "frank-wolfe" solves the relaxed
            problem first, all groups at once: slower, and no group has the first turn.
        restarts: How many times to start again, with the groups in a random order.
        seed: Of those orders.

    Returns:
        The permutation with its objective and its cost.

    Raises:
        ValueError: If the weights differ in a name or a shape, from each other or from the
            groups, or hold a NaN, or `start` is another word.

    Source: "Git Re-Basin" (Ainsworth, Hayase, Srinivasa, 2023), Section 3.2.
    """
    if isinstance(start, str) and start != "frank-wolfe":
        raise ValueError(f'start must be a permutation, "frank-wolfe" or None, got {start!r}.')
    check_same_layout(source, target, names=("source", "target"))
    check_shapes({n: v for n, v in source.items() if n in groups.shapes}, groups.shapes)
    moving = [n for n, value in source.items() if is_continuous(value)]
    stay = {name: target[name].detach() for name in moving}
    permuted = {name: source[name].detach().to(target[name]) for name in moving}
    objective = Objective(groups)
    objective.add(target=stay, source=permuted)
    if isinstance(start, str):
        start = frank_wolfe(permuted, stay, groups=groups)
    return solve(objective, start=start, restarts=restarts, seed=seed)
