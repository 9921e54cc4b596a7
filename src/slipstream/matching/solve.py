"""Coordinate ascent over neuron groups, an exact assignment for each, until none improves."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.matching.assignment import assign
from slipstream.matching.objective import Objective
from slipstream.symmetry.permutation import Permutation


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
    def gain(self) -> float:
        """What the permutation adds to the objective of the identity."""
        return self.objective - self.identity_objective


class Solver:
    """Coordinate ascent that remembers prices, so that the next, similar objective is quicker."""

    def __init__(self, objective: Objective, *, like: "Solver | None" = None) -> None:
        self.objective = objective
        self._prices: dict[str, list[Tensor | None]] = {} if like is None else like._prices

    def solve(self, start: Permutation, *, max_sweeps: int = 100) -> Matching:
        """Improve `start` until no group improves.

        Args:
            start: A permutation of the objective's groups.
            max_sweeps: Where to stop at the latest.

        Returns:
            The permutation with its objective and its cost.
        """
        objective, groups = self.objective, self.objective.groups
        permutation = start
        seconds = {"products": 0.0, "assignments": 0.0}
        stale = {group.name for group in groups.groups}
        sweeps = 0
        while stale and sweeps < max_sweeps:
            sweeps += 1
            for group in groups.groups:
                if group.name not in stale:
                    continue
                stale.discard(group.name)
                better = self._improve(group.name, permutation, seconds)
                if better is not None:
                    permutation = better
                    stale |= objective.neighbours(group.name)
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
        began = time.perf_counter()
        similarity = self.objective.similarity(group, permutation)
        between = time.perf_counter()
        held = permutation.orders[group]
        order = self._assign(group, similarity).view_as(held)
        seconds["products"] += between - began
        seconds["assignments"] += time.perf_counter() - between
        gain = _worth(similarity, order) - _worth(similarity, held)
        scale = float(similarity.abs().amax(-1).sum())
        if not gain > 1e-9 * scale:
            return None
        better = Permutation(permutation.groups, {**permutation.orders, group: order})
        if group not in self.objective.neighbours(group):
            return better
        # The group stands on two axes of one tensor: the similarity is only the slope there.
        began = time.perf_counter()
        rises = self.objective.value(better) > self.objective.value(permutation)
        seconds["products"] += time.perf_counter() - began
        return better if rises else None

    def _assign(self, group: str, similarity: Tensor) -> Tensor:
        matrices = similarity.reshape(-1, *similarity.shape[-2:])
        prices = self._prices.setdefault(group, [None] * len(matrices))
        orders = []
        for row, matrix in enumerate(matrices):
            assignment = assign(matrix, prices=prices[row])
            prices[row] = assignment.prices
            orders.append(assignment.order)
        return torch.stack(orders)


def solve(
    objective: Objective, *, start: Permutation | None = None, max_sweeps: int = 100
) -> Matching:
    """Maximise `objective` by coordinate ascent over its neuron groups.

    Each step is the best order of one group with all others held, an exact assignment. A group is
    looked at again only when a group that shares a tensor with it has changed, so the end is a
    permutation that no single group can improve.

    Args:
        objective: Pairs of tensors whose inner products are summed.
        start: Where to start; the identity by default.
        max_sweeps: Where to stop at the latest.

    Returns:
        The permutation with its objective and its cost.

    Source: "Git Re-Basin" (Ainsworth, Hayase, Srinivasa, 2023), Algorithm 1, run to convergence.
    """
    first = Permutation.identity(objective.groups) if start is None else start
    return Solver(objective).solve(first, max_sweeps=max_sweeps)


def _worth(similarity: Tensor, order: Tensor) -> float:
    return float(similarity.gather(-1, order.unsqueeze(-1)).sum())
