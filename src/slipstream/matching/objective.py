"""The matching objective: a sum of inner products of target tensors with permuted source tensors.

What a neuron group can still gain is a similarity matrix, one product for every block that lists
its neurons, summed over all pairs of gradients. The product of a tensor that lists one group only
is final: it is added up, and the pair is let go. Any other depends on the order of the groups on
the tensor's *other* axes; it is kept and brought up to date by what has changed: new pairs, or the
few columns whose neurons changed positions. That is what makes many stages affordable.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.matching.gradients import (
    Gradient,
    as_real,
    dtype_of,
    inner_product,
    without_autocast,
)
from slipstream.matching.products import Moves, Pair, Product
from slipstream.symmetry.neuron_groups import Block, NeuronGroups
from slipstream.symmetry.permutation import Permutation

ROOM = 1 << 26  # values that products may keep in any case; else a sixteenth of what pairs take


@dataclass(frozen=True)
class Similarity:
    """Entry [i, j] is what the objective gets when position i receives source neuron j."""

    even: Tensor  # (*parents, n, n): whatever the sign
    odd: Tensor | None = None  # the same times the sign of the neuron, in a signed group

    @property
    def best(self) -> Tensor:
        """Every entry with its better sign, (*parents, n, n)."""
        return self.even if self.odd is None else self.even + self.odd.abs()

    def signs(self, order: Tensor) -> Tensor | None:
        """Return the better sign of each position, (*parents, n) int8; None without a choice."""
        if self.odd is None:
            return None
        return torch.where(_entries_at(self.odd, order) < 0, -1, 1).to(torch.int8)

    def worth(self, order: Tensor, signs: Tensor | None = None) -> float:
        """Return what an order is worth, with signs that are +1 by default.

        Args:
            order: (*parents, n) the source neuron that each position receives.
            signs: (*parents, n) its sign.

        Returns:
            The sum of the chosen entries.

        Example:
            >>> entries = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
            >>> Similarity(entries, entries).worth(torch.tensor([1, 0]), torch.tensor([1, -1]))
            10.0
        """
        value = _entries_at(self.even, order)
        if self.odd is not None:
            odd = _entries_at(self.odd, order)
            value = value + (odd if signs is None else odd * signs.to(odd))
        return float(value.sum(dtype=torch.float64))


class Objective:
    """`sum over pairs and tensors of <target, source_to_target.apply(source)>`, to be maximised.

    Args:
        groups: What may be permuted.
        keep_products: Whether to keep products for the next time, which takes memory; one that is
            not kept is made anew.
    """

    def __init__(self, groups: NeuronGroups, *, keep_products: bool = True) -> None:
        self._keep_products = keep_products
        self.groups = groups
        self.identity = 0.0  # the objective of the identity
        self.kept_bytes = 0  # of the pairs that are kept because their product may still change
        self._constant = 0.0  # what no permutation changes
        self._precision = torch.float32
        self._kept = 0  # values of all products together
        self._final: dict[tuple[str, bool], Tensor] = {}  # (n, n), of tensors of one group only
        self._pairs: dict[str, list[Pair]] = {}  # by tensor: those that list several
        moves = Moves(groups)
        self._products = {
            (group.name, block): Product(groups, group.name, block, moves)
            for group in groups.groups
            for block in groups.blocks_of(group.name)
        }

    @without_autocast
    def add(self, *, target: Mapping[str, Gradient], source: Mapping[str, Gradient]) -> None:
        """Add one pair to the sum.

        Args:
            target: Tensors that stay, by name: weights or gradients, plain or low-rank.
            source: Tensors that are permuted; the same names.
        """
        for name in target:
            value, moving = as_real(target[name]), as_real(source[name])
            product = inner_product(value, moving)
            self.identity += product
            self._precision = torch.promote_types(self._precision, dtype_of(value))
            blocks = self.groups.blocks_on(name)
            group = self._only_group(blocks)
            if group is not None:
                single = self._products[group, blocks[0]]
                key = group, single.signed
                before = self._final.get(key)
                held = 0.0 if before is None else _traced(before)
                self._final[key] = single.unmoved((value, moving), total=before)
                self._constant += product - (_traced(self._final[key]) - held)
            elif blocks:
                self._pairs.setdefault(name, []).append((value, moving))
                self.kept_bytes += sum(
                    side.numel() * dtype_of(side).itemsize for side in (value, moving)
                )
            else:
                self._constant += product

    def _only_group(self, blocks: tuple[Block, ...]) -> str | None:
        """The group of a tensor whose product no permutation of other groups changes."""
        names = [f for block in blocks for f in block.factors if isinstance(f, str)]
        if len(blocks) != 1 or len(names) != 1 or self.groups[names[0]].parents:
            return None
        return names[0]

    @without_autocast
    def similarity(self, group: str, permutation: Permutation) -> Similarity:
        """Return what each exchange inside `group` would be worth, the other groups held.

        Args:
            group: Name of a neuron group.
            permutation: The orders and signs of all groups.

        Returns:
            Entries on the CPU, (*sizes of the parents, n, n), in the precision of the products.
        """
        if self.groups.children_of(group):
            return self._over_places(group, permutation)
        sizes = [self.groups[parent].size for parent in self.groups[group].parents]
        size = self.groups[group].size
        ways = 1 + self.groups[group].signed  # without its sign, and times its sign
        totals = torch.zeros(ways, math.prod(sizes), size, size, dtype=self._precision)
        for (name, signed), final in self._final.items():
            if name == group:
                totals[int(signed)] += final.cpu()
        for block in self.groups.blocks_of(group):
            if block.tensor in self._pairs:
                product = self._products[group, block]
                self._add_product(product, permutation, totals[int(product.signed)])
        return Similarity(*totals.view(ways, *sizes, size, size))

    @property
    def _most_kept(self) -> int:
        return max(ROOM, self.kept_bytes // 64) if self._keep_products else 0

    def _add_product(self, product: Product, permutation: Permutation, total: Tensor) -> None:
        pairs = self._pairs[product.block.tensor]
        others = self._kept - product.kept
        if others + product.numbers > self._most_kept:
            product.add_to(total, pairs, permutation)
        else:
            total += product.over(pairs, permutation).cpu()
        self._kept = others + product.kept

    def _over_places(self, group: str, permutation: Permutation) -> Similarity:
        """The similarity of neurons that hold other groups, whose order at a position stays."""
        turns = range(self.groups[group].size)
        rows = [self.worths(group, turned(permutation, group, by)) for by in turns]
        return Similarity(unturned(torch.stack(rows, -1)))

    @without_autocast
    def worths(self, group: str, permutation: Permutation) -> Tensor:
        """Return the worth of each position of `group` as it is now, (*sizes of the parents, n).

        Args:
            group: Name of a neuron group that lies on no two axes of one tensor.
            permutation: The orders and signs of all groups.

        Returns:
            Float64 on the CPU.
        """
        order = permutation.orders[group]
        total = torch.zeros(order.shape, dtype=torch.float64)
        for signed in (False, True):
            if (group, signed) in self._final:
                total += _chosen(self._final[group, signed], group, permutation, signed=signed)[0]
        for block in self.groups.blocks_of(group):
            if block.tensor in self._pairs:
                inner = self._products[block.groups[-1], block]
                by_child = (*self.groups[group].parents, group)
                part = None
                if self.groups[inner.group].parents == by_child:
                    part = self._at_hand(inner, permutation)
                if part is None:
                    product = self._products[group, block]
                    part = product.worths(self._pairs[block.tensor], permutation)
                total += part.reshape(*order.shape, -1).sum(-1).cpu()
        return total

    @without_autocast
    def value(self, permutation: Permutation, *, of: str | None = None) -> float:
        """Return the objective of `permutation`.

        Args:
            permutation: The orders and signs of all groups.
            of: Only the part of the tensors that list this group, which is quicker.

        Returns:
            A sum in float64.
        """
        listed = {block.tensor for block in self.groups.blocks_of(of)} if of else self._pairs.keys()
        return (
            (0.0 if of else self._constant)
            + sum(
                float(_chosen(final, name, permutation, signed=signed).sum())
                for (name, signed), final in self._final.items()
                if of in (None, name)
            )
            + sum(
                self._value_of(name, pairs, permutation)
                for name, pairs in self._pairs.items()
                if name in listed
            )
        )

    def _value_of(self, name: str, pairs: list[Pair], permutation: Permutation) -> float:
        for block in self.groups.blocks_on(name):
            product = self._products[block.groups[-1], block]
            if self.groups.length(block) == self.groups.shapes[name][block.axis]:
                # Its product sees all of the tensor; if it is at hand, there is little to do.
                chosen = self._at_hand(product, permutation)
                if chosen is not None:
                    return float(chosen.sum())
        return product.value(pairs, permutation)

    def _at_hand(self, product: Product, permutation: Permutation) -> Tensor | None:
        """The worth of each position by a product that was kept, (*sizes of the parents, n)."""
        entries = product.at_hand(self._pairs[product.block.tensor], permutation)
        if entries is None:
            return None
        chosen = _chosen(entries, product.group, permutation, signed=product.signed)
        return chosen.view(permutation.orders[product.group].shape)

    def neighbours(self, group: str) -> set[str]:
        """Return the groups on whose order the similarity of `group` depends."""
        return {
            factor
            for block in self.groups.blocks_of(group)
            for other in self.groups.blocks_on(block.tensor)
            for factor in other.factors
            if isinstance(factor, str) and (factor != group or other != block)
        }


def turned(permutation: Permutation, group: str, by: int) -> Permutation:
    """Return `permutation` with another order of `group`: position i receives neuron i + `by`."""
    held = permutation.orders[group]
    order = torch.arange(held.shape[-1]).roll(-by).expand_as(held)
    return Permutation(permutation.groups, {**permutation.orders, group: order}, permutation.signs)


def unturned(entries: Tensor) -> Tensor:
    """Return what is known by position and turn, (..., n, n), by position and neuron."""
    size = entries.shape[-1]
    turns = (torch.arange(size) - torch.arange(size)[:, None]) % size  # of position i for neuron j
    return entries.gather(-1, turns.expand_as(entries))


def _traced(entries: Tensor) -> float:
    """What the entries are worth with no neuron moved."""
    return float(entries.diagonal().sum(dtype=torch.float64))


def _chosen(entries: Tensor, group: str, permutation: Permutation, *, signed: bool) -> Tensor:
    """The worth of each position, of (parents' positions, n, n) or (n, n) entries; in float64."""
    order = permutation.orders[group]
    rows = entries.reshape(-1, *entries.shape[-2:])
    order = order.to(rows.device).reshape(len(rows), -1, 1)
    chosen = rows.gather(-1, order).squeeze(-1).double().cpu()
    if signed and group in permutation.signs:
        chosen = chosen * permutation.signs[group].view_as(chosen)
    return chosen


def _entries_at(entries: Tensor, order: Tensor) -> Tensor:
    return entries.gather(-1, order.to(entries.device).unsqueeze(-1)).squeeze(-1)
