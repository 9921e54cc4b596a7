"""Weights as tokens: one for each permutable neuron, and chunks of what no neuron owns."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from slipstream.symmetry.neuron_groups import Block, NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import Weights


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Which parameters make which token, of every tensor that is learned.

    The tokens of a kind are the neurons of a group: what comes in (row, bias, gain), and of
    tensors that no group lists on an earlier axis also what goes out. A permutation of the neurons
    of a network with one hidden layer is a permutation of its tokens. The rest is cut into chunks,
    each a kind of its own.
    """

    shapes: Mapping[str, tuple[int, ...]]  # of the tensors, in the order of the flat weights
    kinds: tuple[Tensor, ...]  # each (tokens, numbers): positions in the flat weights

    @classmethod
    def of(
        cls, groups: NeuronGroups, names: Iterable[str] | None = None, *, chunk: int = 512
    ) -> "TokenLayout":
        """Return the tokens of a model.

        Args:
            groups: Its neuron groups. Those with parents have no tokens: their parents have.
            names: The tensors to take; by default all.
            chunk: The size of tokens of what no group lists.

        Returns:
            The layout; every number belongs to one token.

        Example:
            >>> from slipstream.symmetry.neuron_groups import NeuronGroup
            >>> blocks = (Block("in", 0, 0, ("units",)), Block("out", 1, 0, ("units",)))
            >>> shapes = {"in": (3, 2), "out": (1, 3), "bias": (1,)}
            >>> groups = NeuronGroups((NeuronGroup("units", 3),), blocks, shapes)
            >>> [tuple(kind.shape) for kind in TokenLayout.of(groups).kinds]
            [(3, 3), (1, 1)]
        """
        names = list(groups.shapes if names is None else names)
        shapes = {name: tuple(groups.shapes[name]) for name in names}
        units = [group for group in groups.groups if not group.parents]
        first, count = {}, 0  # the number of the first neuron of each group
        for group in units:
            first[group.name], count = count, count + group.size
        owner = torch.cat([_owners(groups, name, first).flatten() for name in names])
        order = owner.argsort(stable=True)  # the numbers of no neuron, then neuron by neuron
        counts = owner[owner >= 0].bincount(minlength=count)
        sizes = [int((owner < 0).sum()), *counts.tolist()]
        rest, *owned = torch.split(order, sizes)
        kinds = [
            torch.stack(owned[first[group.name] : first[group.name] + group.size])
            for group in units
        ]
        kinds += [part[None] for part in torch.split(rest, chunk)]
        return cls(shapes, tuple(kind for kind in kinds if kind.numel()))

    @cached_property
    def sizes(self) -> list[int]:
        """How many numbers each tensor has."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @cached_property
    def _order(self) -> Tensor:
        return torch.cat([kind.flatten() for kind in self.kinds])

    @cached_property
    def _back(self) -> Tensor:
        return self._order.argsort()

    def flatten(self, weights: Weights) -> Tensor:
        """Return the tensors of this layout as one, (numbers,)."""
        return torch.cat([weights[name].detach().flatten() for name in self.shapes])

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Return a flat tensor by names, the inverse of `flatten`."""
        parts = zip(self.shapes.items(), torch.split(flat, self.sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return flat weights (batch, numbers) as tokens, each kind (batch, tokens, numbers)."""
        parts = torch.split(flat[:, self._order], [kind.numel() for kind in self.kinds], 1)
        pairs = zip(parts, self.kinds, strict=True)
        return [part.view(len(flat), *kind.shape) for part, kind in pairs]

    def join(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return tokens as flat weights, the inverse of `split`."""
        return torch.cat([part.flatten(1) for part in tokens], 1)[:, self._back]

    def moves(self, permutation: Permutation) -> tuple[Tensor, Tensor]:
        """Return what a permutation does to flat weights: `flat[places] * signs`."""
        numbers = self.unflatten(torch.arange(1, 1 + sum(self.sizes)))
        moved = self.flatten(permutation.apply(numbers))
        return moved.abs() - 1, moved.sign()


def _owners(groups: NeuronGroups, name: str, first: Mapping[str, int]) -> Tensor:
    """The number of the neuron that each entry of a tensor belongs to; -1 where there is none."""
    owner = torch.full(groups.shapes[name], -1)
    for block in sorted(groups.blocks_on(name), key=lambda block: block.axis):
        if group := next((factor for factor in block.groups if factor in first), None):
            units = first[group] + _units(groups, block, group)
            shape = [-1 if axis == block.axis else 1 for axis in range(owner.dim())]
            part = owner.narrow(block.axis, block.offset, len(units))
            part.copy_(torch.where(part < 0, units.view(shape), part))
    return owner


def _units(groups: NeuronGroups, block: Block, group: str) -> Tensor:
    """Which neuron of a group stands at each position of a block."""
    sizes = [groups[f].size if isinstance(f, str) else f for f in block.factors]
    at = block.factors.index(group)
    inside = math.prod(sizes[at + 1 :])
    return torch.arange(groups.length(block)) // inside % sizes[at]
