"""Products of target tensors with source tensors along one block, kept up to date cheaply."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from slipstream.matching.gradients import Gradient, LowRank, dense, inner_product, wide
from slipstream.symmetry.gather import Table, multiply, sign_factors, source_places, take
from slipstream.symmetry.neuron_groups import Block, NeuronGroups
from slipstream.symmetry.permutation import Permutation

Pair = tuple[Gradient, Gradient]  # target, source
CHUNK = 1 << 22  # values of a tensor that are permuted at once
REMEMBERED = 1 << 14  # numbers that say a move, of which many are remembered


@dataclass(frozen=True)
class Move:
    """What a permutation does to a tensor, axis by axis."""

    positions: dict[int, Tensor]  # what `take` reads
    factors: dict[int, Tensor]  # what `multiply` reads

    @property
    def numbers(self) -> int:
        """How many numbers say it."""
        return sum(v.numel() for m in (self.positions, self.factors) for v in m.values())

    def __call__(self, value: Tensor) -> Tensor:
        """Return the tensor with its neurons moved."""
        return multiply(take(value, self.positions), self.factors)

    def of_gradient(self, value: Gradient) -> Gradient:
        """Return the moved gradient, low-rank if it was and can be."""
        if not isinstance(value, LowRank) or not (self.is_plain(0) and self.is_plain(1)):
            return self(wide(value))
        return LowRank(self.on(0, of=1)(value.left), self.on(1, of=1)(value.right))

    def on(self, axis: int, *, of: int) -> "Move":
        """The move along one axis, as one along axis `of` of another tensor."""
        return Move(*({of: m[axis]} if axis in m else {} for m in (self.positions, self.factors)))

    def without(self, axis: int) -> "Move":
        """The move along all other axes."""
        return Move(
            *({a: v for a, v in m.items() if a != axis} for m in (self.positions, self.factors))
        )

    def part(self, axis: int, chosen: Tensor) -> "Move":
        """The move to the chosen positions of one axis, along which it is the same everywhere."""
        return Move(
            *(
                {**m, axis: m[axis][chosen]} if axis in m else m
                for m in (self.positions, self.factors)
            )
        )

    def is_plain(self, axis: int) -> bool:
        """Return whether the move along an axis is the same at all positions of the others."""
        return all(m[axis].dim() == 1 for m in (self.positions, self.factors) if axis in m)

    def differs(self, other: "Move", axis: int) -> Tensor:
        """Return which positions of an axis receive something else than by another move."""
        differs = torch.zeros((), dtype=torch.bool)
        for mine, its in ((self.positions, other.positions), (self.factors, other.factors)):
            if axis in mine:
                differs = differs | (mine[axis] != its[axis])
        return differs

    def same_form(self, other: "Move") -> bool:
        """Return whether both move the same axes."""
        return (self.positions.keys(), self.factors.keys()) == (
            other.positions.keys(),
            other.factors.keys(),
        )


_Place = tuple[str, int | None]  # a tensor, and an axis of it that does not count


class Moves:
    """The moves of tensors, remembered as long as the orders that they depend on are the same."""

    def __init__(self, groups: NeuronGroups) -> None:
        self._groups = groups
        self._listed: dict[_Place, frozenset[str]] = {}  # groups that a move depends on
        self._known: dict[_Place, list[tuple[list[Tensor | None], Move]]] = {}  # the latest first

    def of(self, name: str, orders: Table, signs: Table, *, but: int | None = None) -> Move:
        """Return what orders and signs do to a tensor, on all axes or on all but one."""
        listed = sorted(self._groups_on(name, but))
        given = [orders[group] for group in listed] + [signs.get(group) for group in listed]
        known = self._known.setdefault((name, but), [])
        for entry in known:
            if all(_same(*pair) for pair in zip(given, entry[0], strict=True)):
                return entry[1]
        move = Move(
            source_places(self._groups, name, orders), sign_factors(self._groups, name, signs)
        )
        move = move if but is None else move.without(but)
        known.insert(0, (given, move))
        del known[2 if move.numbers > REMEMBERED else 16 :]
        return move

    def _groups_on(self, name: str, but: int | None) -> frozenset[str]:
        if (name, but) not in self._listed:
            blocks = (block for block in self._groups.blocks_on(name) if block.axis != but)
            listed = {group for block in blocks for group in block.groups}
            parents = (self._groups[group].parents for group in listed)
            self._listed[name, but] = frozenset(listed.union(*parents))
        return self._listed[name, but]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


@dataclass
class Product:
    """What one block adds to the similarity of one group, over the pairs seen so far."""

    groups: NeuronGroups
    group: str
    block: Block
    moves: Moves = field(repr=False)
    _total: Tensor | None = field(default=None, repr=False)  # (rows, n, n), or of all rows at once
    _move: Move = field(default_factory=lambda: Move({}, {}), repr=False)  # that of `_total`
    _seen: int = 0  # pairs in `_total`

    @property
    def signed(self) -> bool:
        """Whether the neurons bring their sign along in this block."""
        return self.group in self.block.signs

    @property
    def numbers(self) -> int:
        """How many values the product has."""
        outer = math.prod(self._size(parent) for parent in self.groups[self.group].parents)
        return outer * self._size(self.group) ** 2 * (outer if self._for_all_parents else 1)

    @property
    def kept(self) -> int:
        """How many values are kept for the next time."""
        return 0 if self._total is None else self._total.numel()

    def over(self, pairs: list[Pair], permutation: Permutation) -> Tensor:
        """Return the product summed over all pairs, and keep it to be corrected the next time.

        Args:
            pairs: Those of earlier calls, and perhaps more.
            permutation: The orders and signs of all groups.

        Returns:
            (positions of the parents, n, n): entry [i, j] is what the block gets when position i
            receives source neuron j, with a positive sign and the other groups as `permutation` has
            them.
        """
        move = self._around(permutation, whole=self._for_all_parents)
        changed = self._changed(move, pairs)
        if self._total is None or changed is None:
            total = self._sum(pairs, move, whole=self._for_all_parents)
        else:
            total = self._total  # it is brought up to date where it lies
            for axis, positions in changed.items():
                self._correct(total, pairs[: self._seen], move, axis, positions)
            if self._seen < len(pairs):
                self._sum(pairs[self._seen :], move, total, whole=self._for_all_parents)
        self._total, self._move, self._seen = total, move, len(pairs)
        return self._with_parents_of(total, permutation)

    def add_to(self, total: Tensor, pairs: list[Pair], permutation: Permutation) -> None:
        """Add the same to `total`, on the CPU, and keep nothing."""
        self._total = None
        move = self._around(permutation, whole=False)
        sides = [
            side.left if isinstance(side, LowRank) else side for pair in pairs for side in pair
        ]
        if all((side.device.type, side.dtype) == ("cpu", total.dtype) for side in sides):
            self._sum(pairs, move, total)
        else:
            total += self._sum(pairs, move).cpu()

    def at_hand(self, pairs: list[Pair], permutation: Permutation) -> Tensor | None:
        """Return the product if it was kept, with the other groups as they are now."""
        if self._total is None or self._seen != len(pairs):
            return None
        move = self._around(permutation, whole=self._for_all_parents)
        if self._changed(move, pairs) != {}:
            return None
        return self._with_parents_of(self._total, permutation)

    def unmoved(self, pair: Pair, *, total: Tensor | None = None) -> Tensor:
        """Return one pair's product with no neuron moved, (n, n), added to `total` in place."""
        return self._sum([pair], Move({}, {}), None if total is None else total[None])[0]

    def worths(self, pairs: list[Pair], permutation: Permutation) -> Tensor:
        """Return the worth of each position as it is now, (positions of the parents, n)."""
        total: Tensor | float = 0.0
        move = self.moves.of(self.block.tensor, permutation.orders, permutation.signs)
        for target, source in pairs:
            moved = move(wide(source))
            total = total + (self._rows(wide(target)) * self._rows(moved)).sum(-1)
        return torch.as_tensor(total)

    def value(self, pairs: list[Pair], permutation: Permutation) -> float:
        """Return what the whole tensor of the block is worth, permuted piece by piece."""
        move = self.moves.of(self.block.tensor, permutation.orders, permutation.signs)
        total = 0.0
        for target, source in pairs:
            if isinstance(target, LowRank) or isinstance(source, LowRank):
                total += inner_product(target, move.of_gradient(source))
            else:
                total += sum(inner_product(*piece) for piece in self._pieces(target, source, move))
        return total

    @cached_property
    def _for_all_parents(self) -> bool:
        """Whether one product can be kept that holds the entries for every order of the parents."""
        parents = self.groups[self.group].parents
        blocks = self.groups.blocks_on(self.block.tensor)
        across = [f for b in blocks if b.axis != self.block.axis for f in b.groups]
        elsewhere = {*across}.union(*(self.groups[name].parents for name in across))
        return (
            bool(parents)
            and sorted(self.block.groups) == sorted((*parents, self.group))
            and elsewhere.union(self.block.signs).isdisjoint(parents)
            and all(self.groups[p].parents == parents[:k] for k, p in enumerate(parents))
        )

    def _with_parents_of(self, total: Tensor, permutation: Permutation) -> Tensor:
        """The entries of a kept product that the order of the parents asks for."""
        if not self._for_all_parents:
            return total
        places = torch.zeros((), dtype=torch.int64)
        for parent in self.groups[self.group].parents:
            places = places.unsqueeze(-1) * self._size(parent) + permutation.orders[parent]
        here, there = torch.arange(places.numel()), places.flatten()
        n = self._size(self.group)
        return total.view(len(here), n, len(here), n)[here, :, there]

    def _around(self, permutation: Permutation, *, whole: bool) -> Move:
        """The move of every axis, with this group left alone on the block's own axis."""
        name, own = self.block.tensor, self.block.axis
        if whole or all(f == self.group or isinstance(f, int) for f in self.block.factors):
            return self.moves.of(name, permutation.orders, permutation.signs, but=own)
        move = self.moves.of(name, permutation.orders, permutation.signs)
        still = torch.arange(self._size(self.group)).expand_as(permutation.orders[self.group])
        orders = {**permutation.orders, self.group: still}
        signs = {group: sign for group, sign in permutation.signs.items() if group != self.group}
        mine = self.moves.of(name, orders, signs).on(own, of=own)
        rest = move.without(own)
        return Move(rest.positions | mine.positions, rest.factors | mine.factors)

    def _changed(self, move: Move, pairs: list[Pair]) -> dict[int, Tensor] | None:
        """Positions of every other axis whose source changed; None: recompute all."""
        changed: dict[int, Tensor] = {}
        if self._total is None or not move.same_form(self._move):
            return None
        for axis in move.positions | move.factors:
            positions = torch.nonzero(move.differs(self._move, axis))
            if not len(positions):
                continue
            few = positions.shape[1] == 1 and len(positions) < self._worth_correcting(axis, pairs)
            # An axis that lists the block's neurons or their parents is compared whole.
            if changed or not few or self._split(axis):
                return None
            changed[axis] = positions.flatten()
        return changed

    def _worth_correcting(self, axis: int, pairs: list[Pair]) -> float:
        """Of how many positions of an axis a correction is quicker than the product anew."""
        length = self._length(axis)
        first = pairs[0][0]
        if not isinstance(first, LowRank):
            return 2 / 3 * length
        # By multiplications; a correction makes columns of the dense gradients.
        own, rank = self._length(self.block.axis), len(first.left)
        return rank * (own**2 + rank * (own + length)) / (own**2 + 2 * rank * own)

    def _sum(
        self, pairs: list[Pair], move: Move, total: Tensor | None = None, *, whole: bool = False
    ) -> Tensor:
        """Sum over pairs of `target @ source.T` along the block's axis, added to `total`."""
        for pair in pairs:
            for target, source in self._pieces(*pair, move):
                rows, others = (self._rows(side, whole=whole) for side in (target, source))
                others = others.transpose(1, 2)
                if total is None:
                    total = torch.bmm(rows, others)
                else:
                    total.baddbmm_(rows, others)
        return torch.zeros(()) if total is None else total  # there is no pair

    def _pieces(
        self, target: Gradient, source: Gradient, move: Move
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Tensors whose products along the block's own axis add up to that of the pair."""
        if isinstance(target, LowRank) and isinstance(source, LowRank):
            yield self._contract(target, source, move)
            return
        target, source = dense(target), dense(source)
        axis = self._axis_to_cut(target, move)
        if axis is None or target.numel() <= CHUNK:
            yield wide(target), move(wide(source))
            return
        length = target.shape[axis]
        size = max(1, CHUNK * length // target.numel())
        for chosen in torch.split(torch.arange(length), size):
            here = move.positions[axis][chosen] if axis in move.positions else chosen
            piece = source.index_select(axis, here.to(source.device))
            rest = move.without(axis)
            factors = move.part(axis, chosen).on(axis, of=axis).factors
            moved = multiply(rest(wide(piece)), factors)
            yield wide(target.narrow(axis, int(chosen[0]), len(chosen))), moved

    def _axis_to_cut(self, value: Tensor, move: Move) -> int | None:
        """Another axis than the block's, along which the product is a sum."""
        plain = all(move.is_plain(axis) for axis in range(value.dim()))
        free = [a for a in range(value.dim()) if a != self.block.axis and not self._split(a)]
        return max(free, key=lambda axis: value.shape[axis]) if plain and free else None

    def _contract(self, target: LowRank, source: LowRank, move: Move) -> tuple[Tensor, Tensor]:
        # In target = left.T @ right the rows of the factors stand where the other axis stood.
        own, other = self.block.axis, 1 - self.block.axis
        rows = target.factor(other) @ move.on(other, of=1)(source.factor(other)).T
        mixed = rows @ move.on(own, of=1)(source.factor(own))
        return (target.left.T, mixed.T) if own == 0 else (target.right, mixed)

    def _correct(
        self, total: Tensor, pairs: list[Pair], move: Move, axis: int, positions: Tensor
    ) -> None:
        """Add what moving other neurons to `positions` of another axis changes in the sum."""
        rest = move.without(axis)
        there = positions.to(total.device)
        steps = [m.part(axis, positions).on(axis, of=axis) for m in (move, self._move)]

        def change(factor: Tensor) -> Tensor:
            new, old = (step.on(axis, of=1)(factor) for step in steps)
            return new - old

        for target, source in pairs:
            moved: Gradient
            part: Gradient
            if isinstance(target, LowRank) and isinstance(source, LowRank):
                moved = rest.of_gradient(source.along(axis, change))
                part = target.along(axis, lambda v: v.index_select(1, there))
            else:
                new, old = (step(wide(source)) for step in steps)
                moved, part = rest(new - old), wide(target).index_select(axis, there)
            rows, others = (
                self._rows(wide(side), whole=self._for_all_parents) for side in (part, moved)
            )
            total.baddbmm_(rows, others.transpose(1, 2))

    def _rows(self, value: Tensor, *, whole: bool = False) -> Tensor:
        """The block's part of `value` as (positions of the parents, neurons, everything else)."""
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
        outer = 1 if whole else math.prod(sizes[:-1])
        return split.reshape(outer, math.prod(sizes) // outer, -1)

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

    def _length(self, axis: int) -> int:
        return self.groups.shapes[self.block.tensor][axis]

    def _size(self, factor: str | int) -> int:
        return factor if isinstance(factor, int) else self.groups[factor].size
