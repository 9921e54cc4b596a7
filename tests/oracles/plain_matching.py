"""Matching as one would write it down: dense gradients, every product anew in every sweep."""

import torch
from scipy.optimize import linear_sum_assignment

from slipstream.symmetry.permutation import Permutation


def plain_value(pairs, permutation):
    """The objective by its definition: each source permuted whole."""
    return sum(
        float((target[name] * permutation.apply({name: source[name]})[name]).sum())
        for target, source in pairs
        for name in target
    )


def plain_solve(groups, pairs, *, start=None, max_sweeps=100):
    """Coordinate ascent for groups without parents whose blocks hold no other group."""
    permutation = start or Permutation.identity(groups)
    for _ in range(max_sweeps):
        changed = False
        for group in groups.groups:
            similarity = torch.zeros(group.size, group.size, dtype=torch.float64)
            still = {**permutation.orders, group.name: torch.arange(group.size)}
            others = Permutation(groups, still)
            for target, source in pairs:
                for block in groups.blocks_of(group.name):
                    similarity += _product(groups, block, target, source, others)
            held = permutation.orders[group.name]
            _, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
            order = torch.from_numpy(columns)
            rows = torch.arange(group.size)
            gain = similarity[rows, order].sum() - similarity[rows, held].sum()
            if gain > 1e-9 * similarity.abs().amax(-1).sum():
                permutation = Permutation(groups, {**permutation.orders, group.name: order})
                changed = True
        if not changed:
            break
    return permutation


def _product(groups, block, target, source, others):
    moved = others.apply({block.tensor: source[block.tensor]})[block.tensor]
    size = groups.length(block)
    neurons = next(groups[f].size for f in block.factors if isinstance(f, str))
    rows = []
    for tensor in (target[block.tensor], moved):
        part = tensor.narrow(block.axis, block.offset, size).movedim(block.axis, 0)
        rows.append(part.reshape(neurons, -1).double())
    return rows[0] @ rows[1].T
