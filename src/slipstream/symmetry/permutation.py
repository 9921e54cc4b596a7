"""A permutation of neurons, and what it does to weights, gradients and optimiser state."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from slipstream.storage.reading import parsing
from slipstream.storage.tensor_file import tensor_chunks
from slipstream.storage.writing import write_whole
from slipstream.symmetry.gather import multiply, sign_factors, source_places, take
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.optimizer_state import moved_along
from slipstream.weights import Weights, check_shapes

SIGNS = "signs of "  # before the name of a group, in a file
_PLUS = torch.ones((), dtype=torch.int8)


@dataclass(frozen=True)
class Permutation:
    """An order of the neurons of every group: position i receives neuron `orders[group][i]`.

    A variable is named after its direction: `source_to_target.apply(source)` lays the source's
    neurons out in the target's order. Where a group has parents, the order has one row for each
    entry of the parents, and the row of a entry refers to the parent neuron that *receives* there.
    The neurons of a signed group may change their sign on the way: position i receives
    `signs[group][i]` times that neuron, in the blocks that say so.
    """

    groups: NeuronGroups
    orders: Mapping[str, Tensor]  # int64, (*sizes of the parents, size)
    signs: Mapping[str, Tensor] = field(default_factory=dict)  # int8, as the orders; +1 if absent

    def __post_init__(self) -> None:
        _check_orders(self.groups, self.orders)
        _check_signs(self.groups, self.signs)

    @classmethod
    def identity(cls, groups: NeuronGroups) -> "Permutation":
        """Return the permutation that leaves every neuron, and its sign, as it is."""
        return cls(groups, _orders(groups, lambda size: torch.arange(size)))

    @classmethod
    def random(cls, groups: NeuronGroups, *, seed: int) -> "Permutation":
        """Return a uniformly random permutation of every group, with random signs if it is signed.

        Args:
            groups: What may be permuted.
            seed: Seed of the draw; the global generator is not touched.

        Returns:
            The permutation; the same for the same groups and seed.
        """
        generator = torch.Generator().manual_seed(seed)
        orders = _orders(groups, lambda size: torch.randperm(size, generator=generator))
        signs = {
            group.name: torch.randint(2, orders[group.name].shape, generator=generator) * 2 - 1
            for group in groups.groups
            if group.signed
        }
        return cls(groups, orders, {name: sign.to(torch.int8) for name, sign in signs.items()})

    def apply(self, weights: Weights) -> dict[str, Tensor]:
        """Return `weights` with every neuron in its new position.

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
        return multiply(take(value, self.indices(name)), self.factors(name))

    def indices(self, name: str) -> dict[int, Tensor]:
        """Return, for each axis of the tensor `name` that moves, from where its positions receive.

        Args:
            name: A tensor of the model.

        Returns:
            What `take` reads: (length of the axis,), or as wide as the whole tensor where the order
            on one axis depends on the position on another.
        """
        if name not in self._places:
            self._places[name] = source_places(self.groups, name, self.orders)
        return self._places[name]

    def factors(self, name: str) -> dict[int, Tensor]:
        """Return, for each axis of the tensor `name` with signs, by what positions are multiplied.

        Args:
            name: A tensor of the model.

        Returns:
            What `multiply` reads: +1 and -1, of shape (length of the axis,), or as wide as the
            whole tensor where the sign on one axis depends on the position on another.
        """
        return sign_factors(self.groups, name, self.signs)

    def apply_optimizer_state(self, state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
        """Return the state dict of an optimiser over `model` with its per-weight tensors moved.

        Args:
            state: `optimizer.state_dict()`; the optimiser was given the model's parameters in
                `model.parameters()` order (in one or several groups).
            model: Gives the names of the parameters.

        Returns:
            A state dict to load: momentum, Adam moments and whatever else lies along a parameter.
            Squares and other sizes keep their sign.

        Raises:
            ValueError: If the state holds more parameters than the model, or a tensor of which
                nobody knows how it goes along with its parameter.
        """
        named = list(model.named_parameters())
        if state["state"] and max(state["state"]) >= len(named):
            raise ValueError(
                f"The optimiser state is of {max(state['state']) + 1} parameters, "
                f"the model has {len(named)}."
            )
        moved = {
            index: {
                key: moved_along(
                    key,
                    value,
                    weight=(name := named[index][0]),
                    shape=tuple(named[index][1].shape),
                    indices=self.indices(name),
                    factors=self.factors(name),
                )
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
        orders: dict[str, Tensor] = {}
        signs: dict[str, Tensor] = {}
        for name in self.orders:
            orders[name] = _moved_rows(self.groups, name, self.orders[name], orders).argsort(-1)
            if name in self.signs:
                rows = _moved_rows(self.groups, name, self.signs[name], orders)
                signs[name] = rows.gather(-1, orders[name])
        return Permutation(self.groups, orders, signs)

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
        signs = dict(self.signs)
        for name, order in self.orders.items():
            rows = _moved_rows(self.groups, name, first.orders[name], self.orders)
            orders[name] = rows.gather(-1, order)
            if name in first.signs:
                rows = _moved_rows(self.groups, name, first.signs[name], self.orders)
                signs[name] = rows.gather(-1, order) * signs.get(name, 1)
        return Permutation(self.groups, orders, signs)

    def moved(self) -> float:
        """Return the share of neurons that change their position or sign."""
        identity = Permutation.identity(self.groups)
        stays = [
            (order == identity.orders[name]) & (self.signs.get(name, _PLUS) == 1)
            for name, order in self.orders.items()
        ]
        count = sum(s.numel() for s in stays)
        return 1 - sum(int(s.sum()) for s in stays) / count if count else 0.0

    def same_as(self, other: "Permutation") -> bool:
        """Return whether both put every neuron in the same position with the same sign."""
        return self.orders.keys() == other.orders.keys() and all(
            torch.equal(order, other.orders[name])
            and bool((self.signs.get(name, _PLUS) == other.signs.get(name, _PLUS)).all())
            for name, order in self.orders.items()
        )

    def save(self, path: str | Path) -> None:
        """Write the orders and the signs to a safetensors file, the groups in its header."""
        tensors = {name: order.contiguous() for name, order in self.orders.items()}
        for name, sign in self.signs.items():
            tensors[SIGNS + name] = sign.to(torch.int8).contiguous()
        metadata = {"neuron_groups": self.groups.to_json()}
        write_whole(Path(path), tensor_chunks(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> "Permutation":
        """Read a permutation that `save` wrote.

        Args:
            path: The safetensors file.

        Returns:
            The permutation, with its groups.

        Raises:
            OSError: If the file is missing.
            ValueError: If it holds no permutation, or is damaged.
        """
        with parsing(path, "permutation"), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "neuron_groups" not in metadata:
                raise ValueError(f"{path} holds no permutation of neurons.")
            groups = NeuronGroups.from_json(metadata["neuron_groups"])
            stored = set(file.keys())
            names = [group.name for group in groups.groups]
            orders = {name: file.get_tensor(name) for name in names}
            signed = [name for name in names if SIGNS + name in stored]
            return cls(groups, orders, {name: file.get_tensor(SIGNS + name) for name in signed})

    @cached_property
    def _places(self) -> dict[str, dict[int, Tensor]]:
        """What `indices` has returned."""
        return {}


def _moved_rows(groups: NeuronGroups, name: str, order: Tensor, by: Mapping[str, Tensor]) -> Tensor:
    """The rows of `order`, one per entry of its parents, rearranged as `by` moves the parents."""
    parents = groups[name].parents
    if not parents:
        return order
    ranges = [torch.arange(groups[parent].size) for parent in parents]
    at = dict(zip(parents, torch.meshgrid(*ranges, indexing="ij"), strict=True))
    moved = (by[p][*(at[q] for q in groups[p].parents), at[p]] for p in parents)
    return order[tuple(moved)]


def _orders(groups: NeuronGroups, draw: Callable[[int], Tensor]) -> dict[str, Tensor]:
    """One draw for every group and every position of its parents."""
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


def _check_signs(groups: NeuronGroups, signs: Mapping[str, Tensor]) -> None:
    sizes = groups.sizes()
    for name, sign in signs.items():
        if name not in sizes or not groups[name].signed:
            raise ValueError(f"Signs are given for {name!r}, which is no signed neuron group.")
        expected = (*(sizes[parent] for parent in groups[name].parents), sizes[name])
        if tuple(sign.shape) != expected or not bool((sign.abs() == 1).all()):
            raise ValueError(
                f"The signs of {name!r} must be +1 or -1, of shape {expected}, got "
                f"{tuple(sign.shape)} with values from {sign.min()} to {sign.max()}."
            )
