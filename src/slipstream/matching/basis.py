"""Matching by rotations: the basis in which two independent networks are most alike."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from slipstream.evaluation import Task
from slipstream.matching.activations import covariances_of, match_activations
from slipstream.matching.assignment import assign
from slipstream.matching.learned_basis import learn
from slipstream.matching.plans import BasisPlan
from slipstream.matching.tensors import match_weights
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.norms import fold
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.rotation import (
    GroupRotation,
    RotatableGroups,
    nearest_rotation,
    rotated,
    rows_of,
)
from slipstream.weights import Weights, check_same_layout, check_shapes

_ENOUGH = 1e-6  # a sweep that gains a smaller share of the objective is the last


@dataclass(frozen=True)
class BasisMatching:
    """Result of `match_basis`."""

    source_to_target: GroupRotation
    objective: float  # inner product of the folded weights, the source's in the new basis
    identity_objective: float  # the same with the source folded and nothing else
    sweeps: int
    converged: bool
    seconds: float  # of processor time
    losses: tuple[float, ...] = ()  # of the steps that were learned, each at a random point between

    @property
    def gain(self) -> float:
        """What the rotation adds to the objective of the identity."""
        return self.objective - self.identity_objective


def match_basis(
    source: Weights,
    target: Weights,
    task: Task | None = None,
    *,
    rotatable: RotatableGroups,
    plan: BasisPlan | None = None,
) -> BasisMatching:
    """Find the rotation, with the order of all other neurons, that aligns `source` to `target`.

    By activations, the basis of a stream is the orthogonal Procrustes solution between the inputs
    of the linear layers that read it, and the other neurons are matched by correlation. By weights,
    it is that between the weights, in turns with the order of the other neurons, until nothing
    improves. Heads are compared by the best rotation of their features: the nuclear norm of the
    products of each pair. With `learn_steps`, the rotations are then trained on the loss at
    random points between the two networks.

    Args:
        source: Weights that are rotated.
        target: Weights that stay; the same layout.
        task: The model and data; of activations the inputs, of learning the loss. Not needed for
            weights without learning.
        rotatable: What may be rotated and permuted, as of `find_rotatable_groups`.
        plan: How.

    Returns:
        The rotation, which gives the source the target's gains, with objective and cost.

    Raises:
        ValueError: If no group may be rotated, the layouts differ, the target's gains are zero, or
            data that the plan needs is missing.

    Source: "Generalized Linear Mode Connectivity for Transformers" (Theus et al., 2025), section 4.
    """
    began = time.process_time()
    plan = plan or BasisPlan()
    _check(source, target, rotatable)
    task = _task(task, plan)
    pair = _Pair.of(source, target, rotatable)
    if plan.method == "weights":
        permutation, matrices, sweeps, converged = _by_weights(pair, plan)
    else:
        permutation, matrices = _by_activations(pair, source, target, task, plan)
        sweeps, converged = 1, True
    losses: list[float] = []
    if plan.learn_steps:
        permuted = permutation.apply(pair.source)
        matrices, losses = learn(
            permuted, pair.target, task, rotatable=rotatable, matrices=matrices, plan=plan
        )
    norms = {n: v.detach() for n, v in rotatable.norm_values(target).items()}
    return BasisMatching(
        GroupRotation(rotatable, permutation, matrices, norms),
        objective=pair.value(permutation, matrices),
        identity_objective=pair.value(Permutation.identity(rotatable.groups), {}),
        sweeps=sweeps,
        converged=converged,
        seconds=time.process_time() - began,
        losses=tuple(losses),
    )


@dataclass(frozen=True)
class _Pair:
    """Both networks with their gains folded, in float64, and what is matched how."""

    rotatable: RotatableGroups
    source: dict[str, Tensor]
    target: dict[str, Tensor]
    streams: tuple[str, ...]  # rotatable, with one basis
    heads: Mapping[str, tuple[str, ...]]  # groups of heads, and the rotatable groups inside
    inner: tuple[str, ...]  # all rotatable groups with a basis for each head
    plain: NeuronGroups  # what is permuted

    @classmethod
    def of(cls, source: Weights, target: Weights, rotatable: RotatableGroups) -> "_Pair":
        groups, names = rotatable.groups, rotatable.names
        folded = [
            fold({n: w[n].detach().double() for n in w if n in groups.shapes}, rotatable.norms)
            for w in (source, target)
        ]
        inner = tuple(name for name in names if groups[name].parents)
        heads: dict[str, tuple[str, ...]] = {}
        for name in inner:
            (parent, *others) = groups[name].parents
            if not others and not groups[parent].parents:
                heads[parent] = (*heads.get(parent, ()), name)
        outer = {parent for name in inner for parent in groups[name].parents}
        free = [name for name in groups.sizes() if name not in (*names, *outer)]
        streams = tuple(name for name in names if name not in inner)
        return cls(rotatable, folded[0], folded[1], streams, heads, inner, groups.keep(free))

    def moved(self, permutation: Permutation, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The source, permuted and rotated."""
        return rotated(permutation.apply(self.source), self.rotatable, matrices)

    def value(self, permutation: Permutation, matrices: Mapping[str, Tensor]) -> float:
        moved = self.moved(permutation, matrices)
        return sum(float((moved[name] * value).sum()) for name, value in self.target.items())

    def products(self, moved: Weights, name: str, only: set[str] | None = None) -> Tensor:
        """Inner products of all neurons of a group, (*parents, target neurons, source neurons)."""
        groups = self.rotatable.groups
        return sum(
            (
                rows_of(self.target[b.tensor], groups, b, name)
                @ rows_of(moved[b.tensor], groups, b, name).mT
                for b in self.rotatable.blocks_of(name)
                if only is None or b.tensor in only
            ),
            torch.zeros(self.rotatable.matrix_shape(name), dtype=torch.float64),
        )

    def best(self, moved: Weights, name: str, only: set[str] | None = None) -> Tensor:
        """The rotation of a group with the largest inner product, all others as they are."""
        keeps_mean = self.rotatable[name].keeps_mean
        return nearest_rotation(self.products(moved, name, only), keeps_mean=keeps_mean)

    def anchors(self, name: str) -> set[str]:
        """Tensors in which no other neurons are matched: embeddings, heads of classes."""
        groups = self.rotatable.groups
        tensors = {block.tensor for block in self.rotatable.blocks_of(name)}
        return {t for t in tensors if {g for b in groups.blocks_on(t) for g in b.groups} == {name}}


def _by_weights(pair: _Pair, plan: BasisPlan) -> tuple[Permutation, dict[str, Tensor], int, bool]:
    """Streams in turns with everything else, from what the anchors say."""
    permutation = Permutation.identity(pair.rotatable.groups)
    matrices = {name: pair.best(pair.source, name, pair.anchors(name)) for name in pair.streams}
    before, sweep = -float("inf"), 0
    while sweep < plan.max_sweeps:
        sweep += 1
        permutation, inner = _rest(pair, {name: matrices[name] for name in pair.streams}, None)
        matrices |= inner
        for name in pair.streams:
            others = {other: m for other, m in matrices.items() if other != name}
            matrices[name] = pair.best(pair.moved(permutation, others), name)
        value = pair.value(permutation, matrices)
        if value - before <= _ENOUGH * abs(value):
            return permutation, matrices, sweep, True
        before = value
    return permutation, matrices, sweep, False


def _by_activations(
    pair: _Pair, source: Weights, target: Weights, task: Task, plan: BasisPlan
) -> tuple[Permutation, dict[str, Tensor]]:
    """Streams by the inputs of the layers that read them, the rest in their basis."""
    task = replace(task, data=list(islice(task.unlabelled_batches, plan.batches)))
    groups = pair.rotatable.groups
    first, second = (
        {n: own[n].to(given[n]) for n in own}
        for own, given in ((pair.source, source), (pair.target, target))
    )
    covariances = covariances_of(first, second, task, groups=groups.keep(pair.streams))
    matrices = {}
    for name in pair.streams:
        seen = [
            (site, c.covariance())
            for site, c in covariances.items()
            if c.count > 1 and [b.factors for b in site.blocks] == [(name,)]
        ]
        # What layers read is normalised, so that no one of them outweighs the others.
        read = [value for site, value in seen if not site.output]
        if not seen:
            raise ValueError(
                f"No linear layer takes in or gives out the neurons of {name!r}: use the method "
                "weights."
            )
        total = sum(read or [value for _, value in seen], torch.zeros(()))
        keeps_mean = pair.rotatable[name].keeps_mean
        matrices[name] = nearest_rotation(total.double(), keeps_mean=keeps_mean)
    found = None
    if len(pair.plain):
        found = match_activations(source, target, task, groups=pair.plain).source_to_target
    permutation, inner = _rest(pair, matrices, found)
    return permutation, matrices | inner


def _rest(
    pair: _Pair, streams: Mapping[str, Tensor], plain: Permutation | None
) -> tuple[Permutation, dict[str, Tensor]]:
    """Heads, their bases, and by weights the plain groups if they are not known."""
    groups = pair.rotatable.groups
    orders = dict(Permutation.identity(groups).orders)
    turned = rotated(pair.source, pair.rotatable, streams)
    for head, inside in pair.heads.items():
        orders[head] = _heads(pair, turned, head, inside)
    moved = Permutation(groups, orders).apply(turned)
    inner = {name: pair.best(moved, name) for name in pair.inner}
    if len(pair.plain):
        if plain is None:
            moved = rotated(moved, pair.rotatable, inner)
            plain = match_weights(moved, pair.target, groups=pair.plain).source_to_target
        orders |= {n: order.expand_as(orders[n]) for n, order in plain.orders.items()}
    signs = {n: s.expand_as(orders[n]) for n, s in plain.signs.items()} if plain else {}
    return Permutation(groups, orders, signs), inner


def _heads(pair: _Pair, turned: Weights, head: str, inside: tuple[str, ...]) -> Tensor:
    """The order of heads, each pair of which is worth what it is in the best basis for it."""
    groups = pair.rotatable.groups
    size = groups[head].size
    values = torch.zeros(size, size, dtype=torch.float64)
    for shift in range(size):
        order = (torch.arange(size) + shift) % size
        orders = {**Permutation.identity(groups).orders, head: order}
        moved = Permutation(groups, orders).apply(turned)
        worth = sum(torch.linalg.svdvals(pair.products(moved, name)).sum(-1) for name in inside)
        values[torch.arange(size), order] = torch.as_tensor(worth)
    return assign(values).order


def _check(source: Weights, target: Weights, rotatable: RotatableGroups) -> None:
    check_same_layout(source, target, names=("source", "target"))
    shapes = rotatable.groups.shapes
    check_shapes({n: v for n, v in source.items() if n in shapes}, shapes)
    if not rotatable.rotatable:
        reasons = [f"{pin.where}: {pin.reason}" for pin in rotatable.refused]
        raise ValueError(f"No neuron group may be rotated. {'; '.join(reasons[:2])}.")


def _task(task: Task | None, plan: BasisPlan) -> Task:
    """The task, if it is needed."""
    if task is None and (plan.method == "activations" or plan.learn_steps):
        raise ValueError(
            "A task with data is needed to match activations or to learn: give it, or use "
            'BasisPlan("weights").'
        )
    return Task(nn.Identity()) if task is None else task
