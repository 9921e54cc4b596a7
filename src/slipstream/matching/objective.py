"""The matching objective: a sum of inner products of target tensors with permuted source tensors.

What a neuron group can still gain is a similarity matrix, one product for every block that lists
its neurons, summed over all pairs of gradients. The product of a tensor that lists one group only
is final: it is added up, and the pair is let go. Any other depends on the order of the groups on
the tensor's *other* axes; it is kept and brought up to date by what has changed: new pairs, or the
few columns whose neurons changed places. That is what makes many stages affordable.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slipstream.matching.low_rank import Gradient, LowRank, dense, inner
from slipstream.symmetry.neuron_groups import Block, NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.places import take

Pair = tuple[Gradient, Gradient]  # target, source
Indices = dict[int, Tensor]  # for each axis that moves, what `take` reads


class Objective:
    """`sum over pairs and tensors of <target, source_to_target.apply(source)>`, to be maximised."""

    def __init__(self, groups: NeuronGroups) -> None:
        self.groups = groups
        self.identity = 0.0  # the objective of the identity
        self._constant = 0.0  # what no permutation changes
        self._final: dict[str, Tensor] = {}  # by group, (n, n): tensors that list no other group
        self._pairs: dict[str, list[Pair]] = {}  # by tensor: those that list several
        self._products = {
            (group.name, block): _Product(groups, group.name, block)
            for group in groups.groups
            for block in groups.blocks_of(group.name)
        }

    def add(self, *, target: Mapping[str, Gradient], source: Mapping[str, Gradient]) -> None:
        """Add one pair to the sum.

        Args:
            target: Tensors that stay, by name: weights or gradients, plain or low-rank.
            source: Tensors that are permuted; the same names.
        """
        for name, value in target.items():
            product = inner(value, source[name])
            self.identity += product
            blocks = self.groups.blocks_on(name)
            group = self._only_group(blocks)
            if group is not None:
                final = self._products[group, blocks[0]].unmoved((value, source[name]))
                self._final[group] = self._final.get(group, 0.0) + final
                self._constant += product - float(final.diagonal().sum(dtype=torch.float64))
            elif blocks:
                self._pairs.setdefault(name, []).append((value, source[name]))
            else:
                self._constant += product

    @property
    def kept_bytes(self) -> int:
        """How many bytes the pairs take that are kept because their product may still change."""
        return sum(
            side.numel() * (side.left if isinstance(side, LowRank) else side).element_size()
            for pairs in self._pairs.values()
            for pair in pairs
            for side in pair
        )

    def _only_group(self, blocks: tuple[Block, ...]) -> str | None:
        """The group of a tensor whose product no permutation of other groups changes."""
        names = [f for block in blocks for f in block.factors if isinstance(f, str)]
        if len(blocks) != 1 or len(names) != 1 or self.groups[names[0]].parents:
            return None
        return names[0]

    def similarity(self, group: str, permutation: Permutation) -> Tensor:
        """Return what each exchange inside `group` would be worth, the other groups held.

        Args:
            group: Name of a neuron group.
            permutation: The orders of all groups.

        Returns:
            (*sizes of the parents, n, n) float64 on the CPU: entry [i, j] is what the objective
            gets when place i receives source neuron j.
        """
        sizes = [self.groups[parent].size for parent in self.groups[group].parents]
        size = self.groups[group].size
        total = torch.zeros(math.prod(sizes), size, size, dtype=torch.float64)
        if group in self._final:
            total += self._final[group].cpu()
        for block in self.groups.blocks_of(group):
            if block.tensor in self._pairs:
                product = self._products[group, block]
                total += product.similarity(self._pairs[block.tensor], permutation).cpu()
        return total.view(*sizes, size, size)

    def value(self, permutation: Permutation) -> float:
        """Return the objective of `permutation`."""
        return (
            self._constant
            + sum(_worth(final, permutation.orders[name]) for name, final in self._final.items())
            + sum(self._value_of(name, pairs, permutation) for name, pairs in self._pairs.items())
        )

    def _value_of(self, name: str, pairs: list[Pair], permutation: Permutation) -> float:
        for block in self.groups.blocks_on(name):
            if self.groups.length(block) == self.groups.shapes[name][block.axis]:
                # This product is at hand, and its block sees all of the tensor.
                group = next(f for f in reversed(block.factors) if isinstance(f, str))
                products = self._products[group, block].similarity(pairs, permutation)
                return _worth(products, permutation.orders[group])
        return sum(
            inner(dense(target), permutation.apply_to(name, dense(source)))
            for target, source in pairs
        )

    def neighbours(self, group: str) -> set[str]:
        """Return the groups on whose order the similarity of `group` depends."""
        return {
            factor
            for block in self.groups.blocks_of(group)
            for other in self.groups.blocks_on(block.tensor)
            for factor in other.factors
            if isinstance(factor, str) and (factor != group or other != block)
        }


@dataclass
class _Product:
    """What one block adds to the similarity of one group, over the pairs seen so far."""

    groups: NeuronGroups
    group: str
    block: Block
    _total: Tensor | None = field(default=None, repr=False)  # (rows, n, n)
    _indices: Indices = field(default_factory=dict, repr=False)  # those of `_total`
    _seen: int = 0  # pairs in `_total`

    def similarity(self, pairs: list[Pair], permutation: Permutation) -> Tensor:
        """The product summed over all pairs, with the other groups as `permutation` has them."""
        if self._children:
            return self._over_places(pairs, permutation)
        indices = self._around(permutation)
        changed = self._changed(indices, pairs)
        if self._total is None or changed is None:
            total = self._sum(pairs, indices)
        else:
            total = self._total
            for axis, places in changed.items():
                total = total + self._correction(pairs[: self._seen], indices, axis, places)
            if self._seen < len(pairs):
                total = total + self._sum(pairs[self._seen :], indices)
        self._total, self._indices, self._seen = total, indices, len(pairs)
        return total

    def unmoved(self, pair: Pair) -> Tensor:
        """The product of one pair with no neuron moved, (n, n)."""
        return self._sum([pair], {})[0]

    @property
    def _children(self) -> list[str]:
        present = {f for b in self.groups.blocks_on(self.block.tensor) for f in b.factors}
        return [child for child in self.groups.children_of(self.group) if child in present]

    def _around(self, permutation: Permutation) -> Indices:
        """The index of every axis, with this group left alone on the block's own axis."""
        own = self.block.axis
        name = self.block.tensor
        others = permutation.indices(name)
        if all(f == self.group or isinstance(f, int) for f in self.block.factors):
            return {axis: index for axis, index in others.items() if axis != own}
        still = torch.arange(self.groups[self.group].size)
        held = permutation.orders[self.group]
        orders = {**permutation.orders, self.group: still.expand_as(held)}
        return {**others, own: Permutation(self.groups, orders).indices(name)[own]}

    def _changed(self, indices: Indices, pairs: list[Pair]) -> dict[int, Tensor] | None:
        """Places of each other axis that receive another neuron than before; None to start anew."""
        changed: dict[int, Tensor] = {}
        if self._total is None or indices.keys() != self._indices.keys():
            return None
        for axis, index in indices.items():
            if torch.equal(index, self._indices[axis]):
                continue
            places = torch.nonzero(index != self._indices[axis])
            few = index.dim() == 1 and 3 * len(places) < len(index)
            # An axis that lists the block's neurons or their parents is compared whole.
            if changed or not few or self._split(axis) or isinstance(pairs[0][0], LowRank):
                return None
            changed[axis] = places.flatten()
        return changed

    def _sum(self, pairs: list[Pair], indices: Indices) -> Tensor:
        """Sum over pairs of `target @ source.T` along the block's axis."""
        total: Tensor | float = 0.0
        for target, source in pairs:
            total = total + self._multiply(*self._contract(target, source, indices))
        return torch.as_tensor(total)

    def _correction(self, pairs: list[Pair], indices: Indices, axis: int, places: Tensor) -> Tensor:
        """What moving other neurons to `places` of another axis changes in the sum over `pairs`."""
        total: Tensor | float = 0.0
        rest = {other: index for other, index in indices.items() if other != axis}
        for target, source in pairs:
            device = dense(source).device
            new, old = (i[axis][places].to(device) for i in (indices, self._indices))
            moved = dense(source).index_select(axis, new) - dense(source).index_select(axis, old)
            part = dense(target).index_select(axis, places.to(device))
            total = total + self._multiply(part, take(moved, rest))
        return torch.as_tensor(total)

    def _contract(
        self, target: Gradient, source: Gradient, indices: Indices
    ) -> tuple[Tensor, Tensor]:
        """Two tensors whose product along the block's own axis is that of the pair."""
        if not (isinstance(target, LowRank) and isinstance(source, LowRank)):
            return dense(target), take(dense(source), indices)
        # In target = left.T @ right the rows of the factors stand where the other axis stood.
        own, other = self.block.axis, 1 - self.block.axis
        rows = target.factor(other) @ take(source.factor(other), _on(indices, other)).T
        mixed = rows @ take(source.factor(own), _on(indices, own))
        flip = own == 0
        return (target.left.T, mixed.T) if flip else (target.right, mixed)

    def _multiply(self, target: Tensor, source: Tensor) -> Tensor:
        return torch.bmm(self._rows(target), self._rows(source).transpose(1, 2))

    def _over_places(self, pairs: list[Pair], permutation: Permutation) -> Tensor:
        """The product of a group whose neurons hold other groups, place by place."""
        # A source neuron that would come to a place brings its parts in the order of that place.
        rows: list[Tensor] = []
        for place in range(self.groups[self.group].size):
            orders = dict(permutation.orders)
            for child in self._children:
                axis = self.groups[child].parents.index(self.group)
                row = orders[child].narrow(axis, place, 1)
                orders[child] = row.expand_as(orders[child])
            indices = self._around(Permutation(self.groups, orders))
            total: Tensor | float = 0.0
            for target, source in pairs:
                stays, moves = self._contract(target, source, indices)
                here = self._rows(stays).narrow(1, place, 1)
                total = total + torch.bmm(here, self._rows(moves).transpose(1, 2))
            rows.append(torch.as_tensor(total))
        return torch.cat(rows, dim=1)

    def _rows(self, value: Tensor) -> Tensor:
        """The block's part of `value` as (places of the parents, neurons, everything else)."""
        part = value.narrow(self.block.axis, self.block.offset, self.groups.length(self.block))
        names: list[str | int] = []
        shape: list[int] = []
        for axis in range(value.dim()):
            factors = self._split(axis)
            names += factors or [0]
            shape += [self._size(f) for f in factors] or [part.shape[axis]]
        front = [names.index(name) for name in (*self.groups[self.group].parents, self.group)]
        rest = [position for position in range(len(names)) if position not in front]
        sizes = [shape[position] for position in front]
        split = part.reshape(shape).permute(*front, *rest)
        return split.reshape(math.prod(sizes[:-1]), sizes[-1], -1)

    def _split(self, axis: int) -> list[str | int]:
        """The factors of an axis, where they are the block's own or hold a parent that it lacks."""
        if axis == self.block.axis:
            return list(self.block.factors)
        missing = set(self.groups[self.group].parents) - set(self.block.factors)
        for other in self.groups.blocks_on(self.block.tensor, axis):
            if missing & set(other.factors):
                # Another factor keeps its size only: its name may stand on the own axis too.
                return [f if f in missing else self._size(f) for f in other.factors]
        return []

    def _size(self, factor: str | int) -> int:
        return factor if isinstance(factor, int) else self.groups[factor].size


def _on(indices: Indices, axis: int) -> Indices:
    """The index of one axis, as one of the second axis of a factor."""
    return {1: indices[axis]} if axis in indices else {}


def _worth(similarity: Tensor, order: Tensor) -> float:
    """What an order is worth, (rows, n, n) and (*parents, n)."""
    rows = similarity.reshape(-1, *similarity.shape[-2:])
    chosen = rows.gather(-1, order.to(rows.device).reshape(len(rows), -1, 1))
    return float(chosen.sum(dtype=torch.float64))
