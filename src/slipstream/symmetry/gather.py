"""From where the positions of a tensor's axes receive, and by which sign they are multiplied.

What belongs to the entries of an axis is a 1-D tensor, or one as wide as the whole tensor where it
depends on the position on another axis: the order inside a group is another one in each group.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from slipstream.symmetry.neuron_groups import Block, NeuronGroups

Table = Mapping[str, Tensor]  # by group: (*sizes of the parents, size)


def source_places(groups: NeuronGroups, name: str, orders: Table) -> dict[int, Tensor]:
    """Return, for each axis of the tensor `name` that moves, from where its positions receive."""

    def inside(block: Block) -> Tensor:
        places = torch.zeros((), dtype=torch.int64)
        for factor, own in _numbers(groups, block):
            source = own if isinstance(factor, int) else _read(groups, block, factor, own, orders)
            places = places * _size(groups, factor) + source
        return places + block.offset

    return _by_axis(groups, name, groups.blocks_on(name), inside, torch.arange)


def sign_factors(groups: NeuronGroups, name: str, signs: Table) -> dict[int, Tensor]:
    """Return, for each axis of the tensor `name` with signs, by what its entries are multiplied."""

    def inside(block: Block) -> Tensor:
        product = torch.ones((), dtype=torch.int8)
        for factor, own in _numbers(groups, block):
            if isinstance(factor, str) and factor in block.signs and factor in signs:
                product = product * _read(groups, block, factor, own, signs)
        return product

    changing = [b for b in groups.blocks_on(name) if any(factor in signs for factor in b.signs)]
    return _by_axis(groups, name, changing, inside, _plus)


def take(value: Tensor, places: Mapping[int, Tensor]) -> Tensor:
    """Return `value` gathered along several axes.

    Args:
        value: Any tensor.
        places: From where the positions of an axis receive, as `Permutation.indices` returns it.

    Returns:
        A new tensor, or `value` itself if no axis moves.
    """
    if all(index.dim() == 1 for index in places.values()):
        for axis, index in places.items():
            value = value.index_select(axis, index.to(value.device))
        return value
    ranges = {axis: torch.arange(size) for axis, size in enumerate(value.shape)} | dict(places)
    wide = (_along(ranges[axis], axis, value.dim()) for axis in range(value.dim()))
    return value[tuple(index.to(value.device) for index in wide)]


def multiply(value: Tensor, factors: Mapping[int, Tensor]) -> Tensor:
    """Return `value` multiplied along several axes.

    Args:
        value: Any tensor.
        factors: By what the entries of an axis are multiplied, as `Permutation.factors` returns it.

    Returns:
        A new tensor of the same dtype, or `value` itself if there is no factor.
    """
    for axis, factor in factors.items():
        value = value * _along(factor, axis, value.dim()).to(value)
    return value


def _by_axis(
    groups: NeuronGroups,
    name: str,
    blocks: Iterable[Block],
    inside: Callable[[Block], Tensor],
    elsewhere: Callable[[int], Tensor],
) -> dict[int, Tensor]:
    """For each axis, what is `inside` its blocks, and `elsewhere` on it."""
    shape = groups.shapes[name]
    filled: dict[int, Tensor] = {}
    for block in sorted(blocks, key=lambda block: block.axis):
        length = shape[block.axis]
        whole = filled.get(block.axis, _along(elsewhere(length), block.axis, len(shape)))
        part = inside(block)
        wide = [max(*sizes) for sizes in zip(whole.shape, part.shape, strict=True)]
        wide[block.axis] = length
        whole = whole.expand(wide).clone()
        whole.narrow(block.axis, block.offset, groups.length(block)).copy_(part)
        filled[block.axis] = whole
    return {
        axis: whole.flatten() if whole.numel() == shape[axis] else whole
        for axis, whole in filled.items()
    }


def _read(groups: NeuronGroups, block: Block, group: str, own: Tensor, table: Table) -> Tensor:
    """The entry of `group` at every position of the block: that of the position of its parents."""
    parents = groups[group].parents
    if not parents:
        return table[group][own]
    shape = groups.shapes[block.tensor]
    numbers = {f: number for f, number in _numbers(groups, block) if f in parents}
    for other in groups.blocks_on(block.tensor):
        if other.axis != block.axis and groups.length(other) == shape[other.axis]:
            numbers = {f: n for f, n in _numbers(groups, other) if f in parents} | numbers
    return table[group][*(numbers[parent] for parent in parents), own]


def _numbers(groups: NeuronGroups, block: Block) -> list[tuple[str | int, Tensor]]:
    """Each factor with the number that its neurons have at the positions of the block."""
    sizes = tuple(_size(groups, factor) for factor in block.factors)
    numbers = _grid(sizes, block.axis, len(groups.shapes[block.tensor]))
    return list(zip(block.factors, numbers, strict=True))


@lru_cache(maxsize=256)
def _grid(sizes: tuple[int, ...], axis: int, rank: int) -> tuple[Tensor, ...]:
    """The number of each factor at every position; nobody may write into these."""
    # It is kept, so no default device of the moment, such as "meta", may decide where it lies.
    grid = torch.meshgrid(*(torch.arange(size, device="cpu") for size in sizes), indexing="ij")
    return tuple(_along(number.flatten(), axis, rank) for number in grid)


def _size(groups: NeuronGroups, factor: str | int) -> int:
    return factor if isinstance(factor, int) else groups[factor].size


def _along(values: Tensor, axis: int, rank: int) -> Tensor:
    """View a 1-D tensor as one of `rank` dimensions that varies along `axis` only."""
    if values.dim() == rank and rank != 1:
        return values
    return values.view([-1 if position == axis else 1 for position in range(rank)])


def _plus(size: int) -> Tensor:
    return torch.ones(size, dtype=torch.int8)
