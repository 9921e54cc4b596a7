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
            name, rows = group.name, torch.arange(group.size)
            even, odd = _similarities(groups, pairs, permutation, group)
            _, columns = linear_sum_assignment((even + odd.abs()).numpy(), maximize=True)
            order = torch.from_numpy(columns)
            sign = torch.where(odd[rows, order] < 0, -1, 1).to(torch.int8)
            held = permutation.orders[name]
            held_sign = permutation.signs.get(name, torch.ones(group.size))
            gain = (even[rows, order] + sign * odd[rows, order]).sum()
            gain -= (even[rows, held] + held_sign * odd[rows, held]).sum()
            if gain > 1e-9 * (even + odd.abs()).abs().amax(-1).sum():
                signs = {**permutation.signs, name: sign} if group.signed else permutation.signs
                permutation = Permutation(groups, {**permutation.orders, name: order}, signs)
                changed = True
        if not changed:
            break
    return permutation


def _similarities(groups, pairs, permutation, group):
    """What exchanges are worth: whatever the sign, and times the sign."""
    still = {**permutation.orders, group.name: torch.arange(group.size)}
    signs = {name: sign for name, sign in permutation.signs.items() if name != group.name}
    others = Permutation(groups, still, signs)
    parts = torch.zeros(2, group.size, group.size, dtype=torch.float64)
    for target, source in pairs:
        for block in groups.blocks_of(group.name):
            product = _product(groups, block, target, source, others)
            parts[int(group.name in block.signs)] += product
    return parts


def _product(groups, block, target, source, others):
    moved = others.apply({block.tensor: source[block.tensor]})[block.tensor]
    size = groups.length(block)
    neurons = next(groups[f].size for f in block.factors if isinstance(f, str))
    rows = []
    for tensor in (target[block.tensor], moved):
        part = tensor.narrow(block.axis, block.offset, size).movedim(block.axis, 0)
        rows.append(part.reshape(neurons, -1).double())
    return rows[0] @ rows[1].T
