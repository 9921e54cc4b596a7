"""Coordinate ascent over neuron groups, an exact assignment for each, until none improves."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slipstream.matching.assignment import Assignment, assign
from slipstream.matching.objective import Objective, turned, unturned
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation

WORTH_A_THREAD = 48 * 48  # entries of one assignment: the orders inside heads do not wait in turn


@dataclass(frozen=True)
class Matching:
    """Result of a matching: the permutation, what it is worth and what it cost."""

    source_to_target: Permutation
    objective: float  # sum of inner products with the source permuted
    identity_objective: float  # the same with the source as it is
    sweeps: int  # passes over all groups, the last one without a change
    converged: bool
    seconds_products: float
    seconds_assignments: float

    @property
    def seconds(self) -> float:
        """What it took altogether."""
        return self.seconds_products + self.seconds_assignments

    @property
    def gain(self) -> float:
        """What the permutation adds to the objective of the identity."""
        return self.objective - self.identity_objective


class Solver:
    """Coordinate ascent that remembers prices, so that the next, similar objective is quicker."""

    def __init__(self, objective: Objective, *, like: "Solver | None" = None) -> None:
        self.objective = objective
        self._prices: dict[str, list[Tensor | None]] = {} if like is None else like._prices

    def solve(
        self, start: Permutation, *, max_sweeps: int = 100, turns: Sequence[str] | None = None
    ) -> Matching:
        """Improve `start` until no group improves.

        Args:
            start: A permutation of the objective's groups.
            max_sweeps: Where to stop at the latest.
            turns: The groups in the order in which they are improved; by default that of the model.

        Returns:
            The permutation with its objective and its cost.
        """
        objective, groups = self.objective, self.objective.groups
        permutation = start
        seconds = {"products": 0.0, "assignments": 0.0}
        stale = {group.name for group in groups.groups}
        turns = list(groups.sizes()) if turns is None else turns
        sweeps = 0
        while stale and sweeps < max_sweeps:
            sweeps += 1
            for group in turns:
                if group not in stale:
                    continue
                stale.discard(group)
                better = self._improve(group, permutation, seconds)
                if better is not None:
                    permutation = better
                    for moved in (group, *groups.children_of(group)):
                        stale |= objective.neighbours(moved)
        began = time.perf_counter()
        value = objective.value(permutation)
        seconds["products"] += time.perf_counter() - began
        return Matching(
            permutation,
            objective=value,
            identity_objective=objective.identity,
            sweeps=sweeps,
            converged=not stale,
            seconds_products=seconds["products"],
            seconds_assignments=seconds["assignments"],
        )

    def _improve(
        self, group: str, permutation: Permutation, seconds: dict[str, float]
    ) -> Permutation | None:
        """The permutation with the best order of one group, or None if it gains nothing."""
        objective = self.objective
        inside = objective.groups.children_of(group)
        choose = self._choose_with_inside if inside else self._choose
        better = choose(group, permutation, seconds)
        if better is None or not (inside or group in objective.neighbours(group)):
            return better
        # On two axes of a tensor the similarity is only the slope.
        began = time.perf_counter()
        before, after = (objective.value(p, of=group) for p in (permutation, better))
        seconds["products"] += time.perf_counter() - began
        return better if after - before > 1e-9 * (abs(after) + abs(before)) else None

    def _choose(
        self, group: str, permutation: Permutation, seconds: dict[str, float]
    ) -> Permutation | None:
        """The permutation with the best order and signs of one group, if they gain anything."""
        began = time.perf_counter()
        similarity = self.objective.similarity(group, permutation)
        between = time.perf_counter()
        held = permutation.orders[group]
        best = similarity.best
        order = self._assign(group, best).view_as(held)
        signs = similarity.signs(order)
        seconds["products"] += between - began
        seconds["assignments"] += time.perf_counter() - between
        gain = similarity.worth(order, signs)
        gain -= similarity.worth(held, permutation.signs.get(group))
        if not gain > 1e-9 * float(best.amax(-1).maximum(-best.amin(-1)).sum()):
            return None
        return _with(permutation, group, order, signs)

    def _choose_with_inside(
        self, group: str, permutation: Permutation, seconds: dict[str, float]
    ) -> Permutation:
        """The best order of a group whose neurons hold other groups, and the best orders inside."""
        # What a neuron is worth at a position is only known when the orders inside are chosen for
        # that position. So in each turn every position tries another neuron.
        groups = self.objective.groups
        nested = groups.children_of(group)
        turns, worths = [], []
        for by in range(groups[group].size):
            turn = turned(permutation, group, by)
            for child in nested:
                if set(groups[child].parents) == {*groups[group].parents, group}:
                    within = groups.children_of(child)
                    choose = self._choose_with_inside if within else self._choose
                    turn = choose(child, turn, seconds) or turn
            began = time.perf_counter()
            worths.append(self.objective.worths(group, turn))
            seconds["products"] += time.perf_counter() - began
            turns.append(turn)
        order = self._assign(group, unturned(torch.stack(worths, -1)))
        order = order.view_as(permutation.orders[group])
        taken = (order - torch.arange(order.shape[-1])) % order.shape[-1]  # turn of each position
        chosen = _with(permutation, group, order, None)
        for child in nested:
            at = _spread(groups, taken, group, child)
            rows = _pick(torch.stack([turn.orders[child] for turn in turns]), at)
            plus = torch.ones_like(rows, dtype=torch.int8)
            signs = torch.stack([turn.signs.get(child, plus) for turn in turns])
            chosen = _with(chosen, child, rows, _pick(signs, at) if groups[child].signed else None)
        return chosen

    def _assign(self, group: str, similarity: Tensor) -> Tensor:
        matrices = similarity.reshape(-1, *similarity.shape[-2:])
        prices = self._prices.setdefault(group, [None] * len(matrices))
        if len(matrices) > 1 and matrices[0].numel() >= WORTH_A_THREAD:
            with ThreadPoolExecutor(min(len(matrices), os.cpu_count() or 1)) as threads:
                found = list(threads.map(_assigned, matrices, prices))
        else:
            found = list(map(_assigned, matrices, prices))
        self._prices[group] = [assignment.prices for assignment in found]
        return torch.stack([assignment.order for assignment in found])


def solve(
    objective: Objective,
    *,
    start: Permutation | None = None,
    max_sweeps: int = 100,
    restarts: int = 0,
    seed: int = 0,
) -> Matching:
    """Maximise `objective` by coordinate ascent over its neuron groups.

    Each step is the best order of one group with all others held, an exact assignment. A group is
    looked at again only when a group that shares a tensor with it has changed, so the end is a
    permutation that no single group can improve. Which one it is depends on whose turn is first.

    Args:
        objective: Pairs of tensors whose inner products are summed.
        start: Where to start; the identity by default.
        max_sweeps: Where to stop at the latest.
        restarts: How many times to start again, with the groups in a random order.
        seed: Of those orders.

    Returns:
        The best permutation found, with its objective; the cost is that of all starts together.

    Raises:
        ValueError: If `restarts` is negative.

    Source: "Git Re-Basin" (Ainsworth, Hayase, Srinivasa, 2023), Algorithm 1, run to convergence.
    """
    if restarts < 0:
        raise ValueError(f"restarts must be 0 or more, got {restarts}.")
    first = Permutation.identity(objective.groups) if start is None else start
    solver = Solver(objective)
    found = [solver.solve(first, max_sweeps=max_sweeps)]
    names = list(objective.groups.sizes())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(restarts):
        turns = [names[i] for i in torch.randperm(len(names), generator=generator)]
        found.append(solver.solve(first, max_sweeps=max_sweeps, turns=turns))
    return replace(
        max(found, key=lambda matching: matching.objective),
        seconds_products=sum(matching.seconds_products for matching in found),
        seconds_assignments=sum(matching.seconds_assignments for matching in found),
    )


def _assigned(matrix: Tensor, prices: Tensor | None) -> Assignment:
    return assign(matrix, prices=prices)


def _with(permutation: Permutation, group: str, order: Tensor, signs: Tensor | None) -> Permutation:
    """The permutation with another order of one group, and other signs if there are any."""
    changed = {} if signs is None else {group: signs}
    return Permutation(
        permutation.groups, {**permutation.orders, group: order}, {**permutation.signs, **changed}
    )


def _spread(groups: NeuronGroups, taken: Tensor, group: str, child: str) -> Tensor:
    """What is known for each position of `group`, for each position of the child's parents."""
    parents = groups[child].parents
    axes = torch.meshgrid(*(torch.arange(groups[p].size) for p in parents), indexing="ij")
    at = dict(zip(parents, axes, strict=True))
    return taken[tuple(at[name] for name in (*groups[group].parents, group))]


def _pick(turns: Tensor, at: Tensor) -> Tensor:
    """Of (turns, *places, n), the row of each position at its turn."""
    index = at[None, ..., None].expand(1, *at.shape, turns.shape[-1])
    return turns.gather(0, index).squeeze(0)
