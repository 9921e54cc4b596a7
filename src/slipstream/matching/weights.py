"""Matching of the weights themselves, or of displacements."""

from slipstream.matching.objective import Objective
from slipstream.matching.solve import Matching, solve
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import Weights, check_same_layout, check_shapes


def match_weights(
    source: Weights,
    target: Weights,
    *,
    groups: NeuronGroups,
    start: Permutation | None = None,
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
        start: Where the search starts; the identity by default.
        restarts: How many times to start again, with the groups in a random order.
        seed: Of those orders.

    Returns:
        The permutation with its objective and its cost.

    Raises:
        ValueError: If the weights differ in a name or a shape, from each other or from the
            groups, or hold a NaN.

    Source: "Git Re-Basin" (Ainsworth, Hayase, Srinivasa, 2023), Section 3.2.
    """
    check_same_layout(source, target, names=("source", "target"))
    check_shapes({n: v for n, v in source.items() if n in groups.shapes}, groups.shapes)
    moving = [n for n, value in source.items() if value.is_floating_point()]
    objective = Objective(groups)
    objective.add(
        target={name: target[name].detach() for name in moving},
        source={name: source[name].detach().to(target[name]) for name in moving},
    )
    return solve(objective, start=start, restarts=restarts, seed=seed)
