"""The methods that carry a path to a new start: each yields one step per stage."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from slipstream.evaluation import Batch
from slipstream.matching import Matching, Objective, Solver, match_weights
from slipstream.matching.gradients import Gradient, dense, inner_product, scaled
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.trajectory import Trajectory
from slipstream.transfer.plan import SignWeights, TransferPlan
from slipstream.transfer.transfer_state import TransferState
from slipstream.weights import Weights, difference


@dataclass(frozen=True)
class Step:
    """The target's weights after one more stage, and what chose them."""

    weights: dict[str, Tensor]
    source_to_target: Permutation
    matching: Matching | None = None


def fixed(
    state: TransferState, path: Trajectory, start: Weights, permutation: Permutation
) -> Iterator[Step]:
    """Carry the path by one permutation: the naive, random and oracle baselines."""
    for stage in range(1, len(path)):
        yield Step(state.carry(start, path, stage, permutation), permutation)


def oracle(
    path: Trajectory,
    start: Weights,
    trained: Weights,
    groups: NeuronGroups,
    carried: tuple[str, ...],
) -> Matching:
    """Match the source's displacement with that of a trained target."""
    source, target = (
        difference(*({name: weights[name] for name in carried} for weights in ends))
        for ends in ((path[-1].weights, path[0].weights), (trained, start))
    )
    return match_weights(source, target, groups=groups)


def gmt(
    state: TransferState, path: Trajectory, start: Weights, first: Permutation, plan: TransferPlan
) -> Iterator[Step]:
    """Gradient matching along the trajectory: all target gradients are renewed at every stage.

    Yields:
        The target's weights after each stage.

    Source: "Transferring Learning Trajectories of Neural Networks" (Chijiwa, 2024), Algorithm 1.
    """
    permutation = first
    seen: list[tuple[list[Batch], dict[str, Gradient]]] = []
    at_start: dict[str, Gradient] | None = None
    solver: Solver | None = None
    for stage in range(1, len(path)):
        batches = state.next_batches()
        source = state.source(path, stage - 1, permutation)
        seen.append((batches, state.gradient(source, batches)))
        objective = Objective(first.groups)
        for earlier, (batches, gradient) in enumerate(seen):
            if earlier or at_start is None:
                there = state.carry(start, path, earlier, permutation)
                renewed = state.gradient(there, batches)
            else:
                renewed = at_start  # nothing is carried there yet, whatever the permutation
            if not earlier:
                at_start = renewed
            with state.clock("products"):
                objective.add(target=renewed, source=_paired(gradient, renewed, plan))
        state.kept_bytes = objective.kept_bytes
        solver = Solver(objective, like=solver)
        matching = solver.solve(
            permutation if plan.warm_start else first, max_sweeps=plan.max_sweeps
        )
        permutation = matching.source_to_target
        yield Step(state.carry(start, path, stage, permutation), permutation, matching)


def signed(
    state: TransferState, path: Trajectory, start: Weights, matched: Step, signs: SignWeights
) -> Iterator[Step]:
    """Carry the path's increments, each beside a step against the sign of the target's gradient.

    BatchNorm normalises by batch statistics here, as in training: the signs then fit much better.

    Yields:
        The target's weights after each stage.
    """
    permutation = matched.source_to_target
    weights = dict(start)
    for stage in range(1, len(path)):
        gradient = state.gradient(weights, state.next_batches(), batch_statistics=True)
        move = state.move(path, stage, permutation)
        strength = signs.strength(stage, len(path) - 1)
        for name, value in move.items():
            size = value.abs()
            size.lerp_(size.mean(), signs.smoothing)
            size.mul_(dense(gradient[name]).sign())
            value.mul_(signs.displacement).sub_(size, alpha=strength)
        weights = state.displaced(weights, move)
        yield Step(weights, permutation, matched.matching)


def fgmt(
    state: TransferState, path: Trajectory, start: Weights, first: Permutation, plan: TransferPlan
) -> Iterator[Step]:
    """Fast gradient matching along the trajectory: each stage adds one pair and keeps the others.

    Yields:
        The target's weights after each stage.

    Source: "Transferring Learning Trajectories of Neural Networks" (Chijiwa, 2024), Algorithm 2.
    """
    permutation = first
    objective = Objective(first.groups)
    solver = Solver(objective)
    weights = dict(start)
    for stage in range(1, len(path)):
        batches = state.next_batches()
        source = state.source(path, stage - 1, permutation)
        gradient = state.gradient(source, batches)
        other = state.gradient(weights, batches)
        with state.clock("products"):
            objective.add(target=other, source=_paired(gradient, other, plan))
        state.kept_bytes = objective.kept_bytes
        matching = solver.solve(
            permutation if plan.warm_start else first, max_sweeps=plan.max_sweeps
        )
        permutation = matching.source_to_target
        weights = state.carry(start, path, stage, permutation)
        yield Step(weights, permutation, matching)


def _paired(
    source: dict[str, Gradient], target: dict[str, Gradient], plan: TransferPlan
) -> dict[str, Gradient]:
    """The source's gradients, scaled so that a normalised pair adds the cosine of the angle."""
    if plan.pairs == "plain":
        return source
    # Gradients shrink along the path: as they are, the first stages choose the permutation.
    length = _norm(source.values()) * _norm(target.values())
    if not length > 0:
        return source
    return {name: scaled(gradient, 1 / length) for name, gradient in source.items()}


def _norm(gradients: Iterable[Gradient]) -> float:
    return float(sum(inner_product(gradient, gradient) for gradient in gradients) ** 0.5)
