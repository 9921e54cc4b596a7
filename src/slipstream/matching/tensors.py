"""Matching of tensors: of the weights themselves, of displacements, or of gradients."""

from typing import Literal

from slipstream.evaluation import Task, takes_task
from slipstream.matching.frank_wolfe import frank_wolfe
from slipstream.matching.gradients import GradientSampler
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
    keep_products: bool = True,
) -> Matching:
    """Find the permutation that aligns `source` to `target`: the largest inner product.

    It is the smallest distance, too, because a permutation changes no norm. With displacements
    (trained minus start) for weights it is the oracle that learning transfer is compared with.

    Args:
        source: Weights that are permuted: some or all tensors of the model.
        target: Weights that stay; the same layout.
        groups: What may be permuted.
        start: Where the search starts; the identity by default. "frank-wolfe" solves the relaxed
            problem first, all groups at once: slower, and no group has the first turn.
        restarts: How many times to start again, with the groups in a random order.
        seed: Of those orders.
        keep_products: Whether to keep products for the next sweep. Without, weights that are mapped
            from files are matched in a few times the memory of the largest tensor, but slower.

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
    objective = Objective(groups, keep_products=keep_products)
    objective.add(target=stay, source=permuted)
    if isinstance(start, str):
        start = frank_wolfe(permuted, stay, groups=groups)
    return solve(objective, start=start, restarts=restarts, seed=seed)


@takes_task
def match_gradients(
    source: Weights,
    target: Weights,
    task: Task,
    *,
    groups: NeuronGroups,
    start: Permutation | None = None,
    restarts: int = 0,
    seed: int = 0,
) -> Matching:
    """Find the permutation that aligns the source's gradient to the target's.

    Args:
        source: Where the gradient that is permuted is taken.
        target: Where the gradient that stays is taken; the same layout.
        task: The model with its loss and data; both gradients are means over the data.
        groups: What may be permuted.
        start: Where the search starts; the identity by default.
        restarts: How many times to start again, with the groups in a random order.
        seed: Of those orders.

    Returns:
        The permutation that maximises the inner product of the target's gradient with the permuted
        gradient of the source, with objective and cost.

    Raises:
        ValueError: If the data is empty or a loss is not finite.

    Source: "Transferring Learning Trajectories of Neural Networks" (Chijiwa, 2024), one term of
    its equation for gradient matching.
    """
    batches = list(task.data)
    sampler = GradientSampler(
        task.model, task.loss, names=tuple(groups.shapes), batch_size=task.batch_size
    )
    objective = Objective(groups)
    objective.add(target=sampler.sample(target, batches), source=sampler.sample(source, batches))
    return solve(objective, start=start, restarts=restarts, seed=seed)
