"""The methods that carry a path to a new start: each yields one step per stage."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slipstream.evaluation import Batch
from slipstream.matching import Matching, Objective, Solver, match_weights
from slipstream.matching.activations import ActivationPair
from slipstream.matching.gradients import Gradient, dense, inner_product, parts, scaled
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.trajectory import Trajectory
from slipstream.transfer.plan import SignSteps, SignWeights, TransferPlan
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


def activations(
    state: TransferState, path: Trajectory, start: Weights, first: Permutation, plan: TransferPlan
) -> Iterator[Step]:
    """Carry the path by the permutation that aligns what the neurons compute: no label is seen.

    Yields:
        The target's weights after each stage.

    Source: matching as in "Git Re-Basin" (Ainsworth, Hayase, Srinivasa, 2023), Section 3.1, but of
    a trained network with one at its start; the choice among several, and the transfer by it, are
    this project's.
    """
    matching = min(_tried(state, path, start, first, plan), key=lambda tried: tried.apart).matching
    permutation = matching.source_to_target
    for stage in range(1, len(path)):
        yield Step(state.carry(start, path, stage, permutation), permutation, matching)


@dataclass(frozen=True, eq=False)
class _Tried:
    """A permutation, and how far the outputs of what it carries are from the source's."""

    matching: Matching
    apart: float


def _tried(
    state: TransferState, path: Trajectory, start: Weights, first: Permutation, plan: TransferPlan
) -> list[_Tried]:
    """Permutations by either end of the source, then by its end beside what the nearest carried."""
    tried: list[_Tried] = []
    unmatched: list[_Tried] = []  # beside what these carry, nothing was matched yet
    last = len(path) - 1
    begun, batches = _descended(state, path, start, plan), state.next_unlabelled()
    ends = [0, last] if plan.observed == "start" else [last, 0]
    for number in range(plan.permutations_tried):
        position, beside, permutation = last, begun, first
        if number < len(ends):
            position = ends[number]
        else:
            nearest = min(unmatched, key=lambda candidate: candidate.apart)
            if nearest.apart == math.inf:
                break
            unmatched.remove(nearest)
            permutation = nearest.matching.source_to_target
            beside = state.carry(start, path, last, permutation)
        observed = state.observed(path, position, beside, first.groups, batches)
        matching = _Matcher(first.groups, plan, observed).solve(permutation)
        state.clock.add("products", matching.seconds_products)
        state.clock.add("assignments", matching.seconds_assignments)
        if plan.permutations_tried == 1:
            return [_Tried(matching, 0.0)]
        carried = state.carry(start, path, last, matching.source_to_target)
        tried.append(_Tried(matching, state.apart(path, carried, first.groups, batches)))
        unmatched.append(tried[-1])
    return tried


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
    matcher: _Matcher | None = None
    observed = _observed(state, path, start, first, plan) if plan.activation_weight else None
    for stage in range(1, len(path)):
        batches = state.next_batches()
        source = state.source(path, stage - 1, permutation)
        seen.append((batches, state.gradient(source, batches, plan.batch_statistics)))
        matcher = _Matcher(first.groups, plan, observed, like=matcher)
        for earlier, (batches, gradient) in enumerate(seen):
            if earlier or at_start is None:
                there = state.carry(start, path, earlier, permutation)
                renewed = state.gradient(there, batches, plan.batch_statistics)
            else:
                renewed = at_start  # nothing is carried there yet, whatever the permutation
            if not earlier:
                at_start = renewed
            with state.clock("products"):
                matcher.add(target=renewed, source=gradient)
        state.kept_bytes = matcher.objective.kept_bytes
        matching = matcher.solve(permutation if plan.warm_start else first)
        permutation = matching.source_to_target
        yield Step(state.carry(start, path, stage, permutation), permutation, matching)


def signed(
    state: TransferState, path: Trajectory, start: Weights, matched: Step, signs: SignWeights
) -> Iterator[Step]:
    """Carry the path's increments, each beside a step against the sign of the target's gradient.

    Yields:
        The target's weights after each stage.
    """
    permutation = matched.source_to_target
    weights = dict(start)
    for stage in range(1, len(path)):
        gradient = state.gradient(weights, state.next_batches())
        move = state.move(path, stage, permutation)
        strength = signs.strength(stage, len(path) - 1)
        for name, whole in move.items():
            value, slope = parts(whole), parts(dense(gradient[name]))
            size = value.abs()
            size.lerp_(size.mean(), signs.smoothing)
            size.mul_(slope.sign())
            value.mul_(signs.displacement).sub_(size, alpha=strength)
        weights = state.displaced(weights, move)
        yield Step(weights, permutation, matched.matching)


def sign_steps(
    state: TransferState, path: Trajectory, start: Weights, matched: Step, signs: SignSteps
) -> Iterator[Step]:
    """Carry the whole path at once, then step against the sign of the target's own gradient.

    BatchNorm normalises by batch statistics here, as in training.

    Yields:
        The target's weights after the carry, then after each step.
    """
    permutation, steps = matched.source_to_target, len(path) - 1
    moved = state.move(path, steps, permutation, since=0)
    weights = state.displaced(start, moved)
    yield Step(weights, permutation, matched.matching)
    sizes = {name: parts(value).abs() for name, value in moved.items()}
    for size in sizes.values():
        size.lerp_(size.mean(), signs.smoothing)
    directions = {name: torch.zeros_like(size) for name, size in sizes.items()}
    for step in range(1, steps + 1):
        gradient = state.gradient(weights, state.next_batches())
        share = signs.size_at(step, steps)
        for name, size in sizes.items():
            slope = parts(dense(gradient[name])).to(size)
            # Gradients shrink along the way: as they are, the first ones decide all directions.
            slope = slope / slope.abs().mean().clamp_min(torch.finfo(slope.dtype).tiny)
            direction = directions[name].mul_(signs.momentum).add_(slope)
            parts(moved[name]).addcmul_(size, direction.sign(), value=-share)
        weights = state.displaced(start, moved)  # low precision would lose small steps
        yield Step(weights, permutation)


def fgmt(
    state: TransferState, path: Trajectory, start: Weights, first: Permutation, plan: TransferPlan
) -> Iterator[Step]:
    """Fast gradient matching along the trajectory: each stage adds one pair and keeps the others.

    Yields:
        The target's weights after each stage.

    Source: "Transferring Learning Trajectories of Neural Networks" (Chijiwa, 2024), Algorithm 2.
    """
    permutation = first
    observed = _observed(state, path, start, first, plan) if plan.activation_weight else None
    matcher = _Matcher(first.groups, plan, observed)
    weights = dict(start)
    for stage in range(1, len(path)):
        batches = state.next_batches()
        source = state.source(path, stage - 1, permutation)
        gradient = state.gradient(source, batches, plan.batch_statistics)
        other = state.gradient(weights, batches, plan.batch_statistics)
        with state.clock("products"):
            matcher.add(target=other, source=gradient)
        state.kept_bytes = matcher.objective.kept_bytes
        matching = matcher.solve(permutation if plan.warm_start else first)
        permutation = matching.source_to_target
        weights = state.carry(start, path, stage, permutation)
        yield Step(weights, permutation, matching)


class _Matcher:
    """The objective of a matching: gradient pairs, activations, or both in one sum."""

    def __init__(
        self,
        groups: NeuronGroups,
        plan: TransferPlan,
        observed: ActivationPair | None = None,
        *,
        like: "_Matcher | None" = None,
    ) -> None:
        self._groups, self._plan = groups, plan
        together = groups if observed is None else _with_sites(groups, observed.groups)
        self.objective = Objective(together)
        if observed is not None:
            # A perfect correlation counts like gradients that are parallel.
            share = (plan.activation_weight or 1.0) / max(
                sum(map(len, observed.target.values())), 1
            )
            source = {name: value * share for name, value in observed.source.items()}
            self.objective.add(target=observed.target, source=source)
        self._solver: Solver = Solver(self.objective, like=None if like is None else like._solver)

    def add(self, *, target: dict[str, Gradient], source: dict[str, Gradient]) -> None:
        """Add a pair of gradients; beside activations it counts by its angle alone."""
        if self._plan.pairs == "normalised" or self._plan.activation_weight:
            # Gradients shrink along the path: as they are, the first stages choose the permutation.
            length = _norm(source.values()) * _norm(target.values())
            if length > 0:
                source = {name: scaled(gradient, 1 / length) for name, gradient in source.items()}
        self.objective.add(target=target, source=source)

    def solve(self, begun: Permutation) -> Matching:
        """Return the best permutation of the network's own groups."""
        start = Permutation(self.objective.groups, begun.orders, begun.signs)
        found = self._solver.solve(start, max_sweeps=self._plan.max_sweeps)
        chosen = found.source_to_target
        own = Permutation(self._groups, chosen.orders, chosen.signs)
        return replace(found, source_to_target=own)


def _observed(
    state: TransferState, path: Trajectory, start: Weights, first: Permutation, plan: TransferPlan
) -> ActivationPair:
    """The activations of one end of the path beside those of the target, after some sign steps."""
    position = 0 if plan.observed == "start" else len(path) - 1
    begun = _descended(state, path, start, plan)
    return state.observed(path, position, begun, first.groups, state.next_unlabelled())


def _descended(
    state: TransferState, path: Trajectory, start: Weights, plan: TransferPlan
) -> Weights:
    """The target after sign steps of its own; each tensor by the size of the source's move."""
    if not plan.descent_steps:
        return start
    first, last = path[0].weights, path[-1].weights
    sizes = {n: SignSteps().size * float((last[n] - first[n]).abs().mean()) for n in state.carried}
    weights = start
    for step in range(1, plan.descent_steps + 1):
        gradient = state.gradient(weights, state.next_batches())
        falling = -SignSteps(size=1.0).size_at(step, plan.descent_steps)
        move = {n: dense(gradient[n]).sign().mul_(falling * sizes[n]) for n in sizes}
        weights = state.displaced(weights, move)
    return weights


def _with_sites(groups: NeuronGroups, sites: NeuronGroups) -> NeuronGroups:
    """The same neurons, listed by tensors and by the sites where they are observed."""
    return NeuronGroups(
        groups.groups, (*groups.blocks, *sites.blocks), {**groups.shapes, **sites.shapes}
    )


def _norm(gradients: Iterable[Gradient]) -> float:
    return float(sum(inner_product(gradient, gradient) for gradient in gradients) ** 0.5)
