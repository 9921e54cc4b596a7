"""A permutation of neurons, and what it does to weights, gradients and optimiser state."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from slipstream.symmetry.neuron_groups import Block, NeuronGroups
from slipstream.weights import Weights, check_shapes


@dataclass(frozen=True)
class Permutation:
    """An order of the neurons of every group: place i receives neuron `orders[group][i]`.

    A variable is named after its direction: `source_to_target.apply(source)` lays the source's
    neurons out in the target's order. Where a group has parents, the order has one row for each
    place of the parents, and the row of a place refers to the parent neuron that *receives* there.
    """

    groups: NeuronGroups
    orders: Mapping[str, Tensor]  # int64, (*sizes of the parents, size)

    def __post_init__(self) -> None:
        _check_orders(self.groups, self.orders)

    @classmethod
    def identity(cls, groups: NeuronGroups) -> "Permutation":
        """Return the permutation that leaves every neuron in its place."""
        return cls(groups, _orders(groups, lambda size: torch.arange(size)))

    @classmethod
    def random(cls, groups: NeuronGroups, *, seed: int) -> "Permutation":
        """Return a uniformly random permutation of every group.

        Args:
            groups: What may be permuted.
            seed: Seed of the draw; the global generator is not touched.

        Returns:
            The permutation; the same for the same groups and seed.
        """
        generator = torch.Generator().manual_seed(seed)
        return cls(groups, _orders(groups, lambda size: torch.randperm(size, generator=generator)))

    def apply(self, weights: Weights) -> dict[str, Tensor]:
        """Return `weights` with every neuron in its new place.

        Args:
            weights: Weights, gradients or displacements: some or all tensors of the model.

        Returns:
            New tensors of the same shape, dtype and device where something moves; the others are
            passed on.

        Raises:
            ValueError: If a tensor is not in the model or has another shape.

        Example:
            >>> from slipstream.symmetry.neuron_groups import Block, NeuronGroup
            >>> groups = NeuronGroups(
            ...     (NeuronGroup("units", 3),), (Block("bias", 0, 0, ("units",)),), {"bias": (3,)}
            ... )
            >>> Permutation(groups, {"units": torch.tensor([2, 0, 1])}).apply(
            ...     {"bias": torch.tensor([10.0, 11.0, 12.0])}
            ... )
            {'bias': tensor([12., 10., 11.])}
        """
        check_shapes(weights, self.groups.shapes)
        return {name: self.apply_to(name, value) for name, value in weights.items()}

    def apply_to(self, name: str, value: Tensor) -> Tensor:
        """Return the tensor `value`, laid out like the model's `name`, with its neurons moved."""
        return take(value, self.indices(name))

    def indices(self, name: str) -> dict[int, Tensor]:
        """Return, for each axis of the tensor `name` that moves, from where its places receive.

        Args:
            name: A tensor of the model.

        Returns:
            What `take` reads: (length of the axis,), or as wide as the whole tensor where the order
            on one axis depends on the place on another.
        """
        return self._indices.get(name, {})

    def apply_optimizer_state(self, state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
        """Return the state dict of an optimiser over `model` with its per-weight tensors moved.

        Args:
            state: `optimizer.state_dict()`; the optimiser was given the model's parameters in
                `model.parameters()` order (in one or several groups).
            model: Gives the names of the parameters.

        Returns:
            A state dict to load: momentum, Adam moments and whatever else has a parameter's shape.

        Raises:
            ValueError: If the state holds more parameters than the model.
        """
        named = list(model.named_parameters())
        if state["state"] and max(state["state"]) >= len(named):
            raise ValueError(
                f"The optimiser state is of {max(state['state']) + 1} parameters, "
                f"the model has {len(named)}."
            )
        moved = {
            index: {
                key: self.apply_to(named[index][0], value)
                if isinstance(value, Tensor) and value.shape == named[index][1].shape
                else value
                for key, value in entry.items()
            }
            for index, entry in state["state"].items()
        }
        return {**state, "state": moved}

    def invert(self) -> "Permutation":
        """Return the permutation that undoes this one.

        Example:
            >>> from slipstream.symmetry.neuron_groups import NeuronGroup
            >>> groups = NeuronGroups((NeuronGroup("units", 3),), (), {})
            >>> Permutation(groups, {"units": torch.tensor([2, 0, 1])}).invert().orders["units"]
            tensor([1, 2, 0])
        """
        inverse: dict[str, Tensor] = {}
        for group in self.groups.groups:
            rows = _moved_rows(self.groups, group.name, self.orders[group.name], inverse)
            inverse[group.name] = rows.argsort(-1)
        return Permutation(self.groups, inverse)

    def after(self, first: "Permutation") -> "Permutation":
        """Return the permutation that applies `first`, then this one.

        Args:
            first: A permutation of the same groups.

        Returns:
            `second.after(first).apply(w) == second.apply(first.apply(w))`.

        Raises:
            ValueError: If the groups differ.
        """
        if first.groups.sizes() != self.groups.sizes():
            raise ValueError("The two permutations are of different neuron groups.")
        orders: dict[str, Tensor] = {}
        for group in self.groups.groups:
            rows = _moved_rows(self.groups, group.name, first.orders[group.name], self.orders)
            orders[group.name] = rows.gather(-1, self.orders[group.name])
        return Permutation(self.groups, orders)

    def moved(self) -> float:
        """Return the share of neurons that change places."""
        stays = [order == torch.arange(order.shape[-1]) for order in self.orders.values()]
        count = sum(s.numel() for s in stays)
        return 1 - sum(int(s.sum()) for s in stays) / count if count else 0.0

    def same_as(self, other: "Permutation") -> bool:
        """Return whether both put every neuron in the same place."""
        return self.orders.keys() == other.orders.keys() and all(
            torch.equal(order, other.orders[name]) for name, order in self.orders.items()
        )

    def save(self, path: str | Path) -> None:
        """Write the orders to a safetensors file, the groups in its header."""
        orders = {name: order.contiguous() for name, order in self.orders.items()}
        save_file(orders, path, metadata={"neuron_groups": self.groups.to_json()})

    @classmethod
    def load(cls, path: str | Path) -> "Permutation":
        """Read a permutation that `save` wrote.

        Args:
            path: The safetensors file.

        Returns:
            The permutation, with its groups.

        Raises:
            ValueError: If the file holds no permutation.
        """
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "neuron_groups" not in metadata:
                raise ValueError(f"{path} holds no permutation of neurons.")
            groups = NeuronGroups.from_json(metadata["neuron_groups"])
            return cls(groups, {g.name: file.get_tensor(g.name) for g in groups.groups})

    @cached_property
    def _indices(self) -> dict[str, dict[int, Tensor]]:
        """For every axis that moves: one index per place, 1-D or as wide as the whole tensor."""
        indices: dict[str, dict[int, Tensor]] = {}
        for name in dict.fromkeys(block.tensor for block in self.groups.blocks):
            shape = self.groups.shapes[name]
            axes = sorted({block.axis for block in self.groups.blocks_on(name)})
            indices[name] = {axis: self._axis_index(name, axis, shape) for axis in axes}
        return indices

    def _axis_index(self, name: str, axis: int, shape: tuple[int, ...]) -> Tensor:
        blocks = self.groups.blocks_on(name, axis)
        index = torch.arange(shape[axis])
        if all(self.orders[f].dim() == 1 for b in blocks for f in b.factors if isinstance(f, str)):
            for block in blocks:
                places = self._plain_index(block) + block.offset
                index[block.offset : block.offset + len(places)] = places
            return index
        index = _along(index, axis, len(shape))
        for block in blocks:
            places = self._block_index(block, shape) + block.offset
            wide = [max(*sizes) for sizes in zip(index.shape, places.shape, strict=True)]
            wide[axis] = shape[axis]
            index = index.expand(wide).clone()
            index.narrow(axis, block.offset, places.shape[axis]).copy_(places)
        return index.flatten() if index.numel() == shape[axis] else index

    def _plain_index(self, block: Block) -> Tensor:
        """The place inside the block from which each receives, if no group has parents."""
        places = torch.zeros(1, dtype=torch.int64)
        for factor in block.factors:
            order = torch.arange(factor) if isinstance(factor, int) else self.orders[factor]
            places = (places[:, None] * len(order) + order).flatten()
        return places

    def _block_index(self, block: Block, shape: tuple[int, ...]) -> Tensor:
        """The place inside the block from which each of its places receives: broadcastable."""
        groups = self.groups
        coordinates = _coordinates(groups, block)
        for other in groups.blocks_on(block.tensor):
            if other.axis != block.axis and groups.length(other) == shape[other.axis]:
                coordinates = _coordinates(groups, other) | coordinates
        sizes = groups.sizes()
        numbers = _grid(groups, block)
        places: Tensor | int = 0
        for factor, number in zip(block.factors, numbers, strict=True):
            size = factor if isinstance(factor, int) else sizes[factor]
            source = _along(number, block.axis, len(shape))
            if isinstance(factor, str):
                at = tuple(
                    _along(*coordinates[parent], len(shape)) for parent in groups[factor].parents
                )
                source = self.orders[factor][*at, source]
            places = places * size + source
        return torch.as_tensor(places)


def take(value: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    """Return `value` gathered along several axes.

    Args:
        value: Any tensor.
        indices: From where the places of an axis receive, as `Permutation.indices` returns it.

    Returns:
        A new tensor, or `value` itself if no axis moves.
    """
    if all(index.dim() == 1 for index in indices.values()):
        for axis, index in indices.items():
            value = value.index_select(axis, index.to(value.device))
        return value
    ranges = {axis: torch.arange(size) for axis, size in enumerate(value.shape)} | dict(indices)
    wide = (_along(ranges[axis], axis, value.dim()) for axis in range(value.dim()))
    return value[tuple(index.to(value.device) for index in wide)]


def _grid(groups: NeuronGroups, block: Block) -> tuple[Tensor, ...]:
    """For each factor of the block, its coordinate at every place of the block."""
    sizes = groups.sizes()
    ranges = [torch.arange(sizes[f] if isinstance(f, str) else f) for f in block.factors]
    return tuple(axis.flatten() for axis in torch.meshgrid(*ranges, indexing="ij"))


def _coordinates(groups: NeuronGroups, block: Block) -> dict[str, tuple[Tensor, int]]:
    """For each group among the factors: its coordinate at every place, and the block's axis."""
    grid = zip(block.factors, _grid(groups, block), strict=True)
    return {factor: (number, block.axis) for factor, number in grid if isinstance(factor, str)}


def _moved_rows(groups: NeuronGroups, name: str, order: Tensor, by: Mapping[str, Tensor]) -> Tensor:
    """The rows of `order`, one per place of its parents, rearranged as `by` moves the parents."""
    parents = groups[name].parents
    if not parents:
        return order
    ranges = [torch.arange(groups[parent].size) for parent in parents]
    at = dict(zip(parents, torch.meshgrid(*ranges, indexing="ij"), strict=True))
    moved = (by[p][*(at[q] for q in groups[p].parents), at[p]] for p in parents)
    return order[tuple(moved)]


def _along(index: Tensor, axis: int, rank: int) -> Tensor:
    """View a 1-D tensor as one of `rank` dimensions that varies along `axis` only."""
    if index.dim() == rank and rank != 1:
        return index
    return index.view([-1 if position == axis else 1 for position in range(rank)])


def _orders(groups: NeuronGroups, draw: Callable[[int], Tensor]) -> dict[str, Tensor]:
    """One draw for every group and every place of its parents."""
    sizes = groups.sizes()
    orders = {}
    for group in groups.groups:
        outer = [sizes[parent] for parent in group.parents]
        rows = [draw(group.size) for _ in range(math.prod(outer))]
        orders[group.name] = torch.stack(rows).view(*outer, group.size)
    return orders


def _check_orders(groups: NeuronGroups, orders: Mapping[str, Tensor]) -> None:
    sizes = groups.sizes()
    for group in groups.groups:
        expected = (*(sizes[parent] for parent in group.parents), group.size)
        order = orders.get(group.name)
        if order is None or tuple(order.shape) != expected:
            came = "nothing" if order is None else str(tuple(order.shape))
            raise ValueError(f"The order of {group.name!r} must have shape {expected}, got {came}.")
        if not torch.equal(order.sort(-1).values, torch.arange(group.size).expand(expected)):
            raise ValueError(f"The order of {group.name!r} does not list every neuron once.")
