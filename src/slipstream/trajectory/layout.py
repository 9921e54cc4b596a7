"""Which tensors the snapshots of a run hold: names, shapes, dtypes and ties."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slipstream.deprecated import moved_names
from slipstream.storage.tensor_form import TensorForm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from slipstream.weights import Weights

__getattr__ = moved_names(__name__)  # of version 0.1

_MOST = 1 << 60  # values of a tensor: more have no address
STATISTICS = ("running_mean", "running_var")  # of BatchNorm: estimated, not learned


@dataclass(frozen=True)
class Layout:
    """The tensors of every snapshot of a run, each tied tensor once."""

    tensors: Mapping[str, TensorForm]
    aliases: Mapping[str, str] = field(default_factory=dict)  # further names of tied tensors
    model: str = ""  # the class of the model, if known

    @property
    def learned(self) -> tuple[str, ...]:
        """The tensors that training moves: floating, and no statistics of BatchNorm."""
        return tuple(
            name
            for name, form in self.tensors.items()
            if form.continuous and name.rpartition(".")[2] not in STATISTICS
        )

    @classmethod
    def of(cls, model: "nn.Module") -> "Layout":
        """Return the layout of the weights of `model`, in the order of `weights_of`.

        Example:
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            >>> model[1].weight = model[0].weight
            >>> Layout.of(model).aliases
            {'1.weight': '0.weight'}
        """
        from slipstream.sharded import class_of
        from slipstream.weights import unwrapped, weights_of

        model = unwrapped(model)
        weights = weights_of(model)  # first: FSDP2 then frees what it has gathered
        named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        named |= dict(model.named_buffers(remove_duplicate=False))
        firsts = {id(named[name]): name for name in weights}
        aliases = {
            name: firsts[id(value)]
            for name, value in named.items()
            if name not in weights and id(value) in firsts
        }
        owner = class_of(model)
        return cls(_forms(weights), aliases, f"{owner.__module__}.{owner.__qualname__}")

    @classmethod
    def of_weights(cls, weights: "Weights", *, ties: bool = False) -> "Layout":
        """Return the layout of `weights`.

        Args:
            weights: Names to tensors.
            ties: Whether names that share the same memory are one tied tensor.

        Returns:
            The layout, in the order of `weights`.
        """
        firsts = {_place(value): name for name, value in reversed(list(weights.items()))}
        aliases = {
            name: firsts[_place(value)]
            for name, value in weights.items()
            if ties and value.numel() and firsts[_place(value)] != name
        }
        return cls(_forms({n: v for n, v in weights.items() if n not in aliases}), aliases)

    def resolve(self, name: str) -> str:
        """Return the name under which the tensor `name`, perhaps a tied one, is stored.

        Args:
            name: A name of the state dict.

        Returns:
            The same name, or the first name of a tied tensor.

        Raises:
            KeyError: If there is no such tensor.
        """
        stored = self.aliases.get(name, name)
        if stored not in self.tensors:
            listed = ", ".join(list(self.tensors)[:6])
            raise KeyError(f"No tensor is named {name!r}; there are {listed}, ...")
        return stored

    def check(self, forms: Mapping[str, TensorForm], *, where: str) -> None:
        """Raise unless `forms` are the tensors of this layout.

        Args:
            forms: What came.
            where: The snapshot it came with, such as "step 200", for the message.

        Raises:
            ValueError: Naming the first tensor that is missing, unknown or differs, and both forms.
        """
        for name, form in forms.items():
            if name not in self.tensors:
                raise ValueError(f"{where}: the tensor {name!r} {form} is unknown.")
            if form != self.tensors[name]:
                raise ValueError(
                    f"{where}: the tensor {name!r} is {form}, expected {self.tensors[name]}."
                )
        for name, form in self.tensors.items():
            if name not in forms:
                raise ValueError(f"{where}: the tensor {name!r} {form} is missing.")

    def untie(self, weights: "Weights", *, where: str) -> "dict[str, Tensor]":
        """Return `weights` in the order of this layout, each tied tensor once.

        Args:
            weights: Names to tensors; further names of tied tensors may be there or not.
            where: The snapshot they belong to, for the message.

        Returns:
            The same tensors, not copied, checked against this layout.

        Raises:
            ValueError: If the layout is another one, or tied tensors are not equal.
        """
        for name, first in self.aliases.items():
            if name in weights and first in weights and not _same(weights[name], weights[first]):
                raise ValueError(f"{where}: {name!r} and {first!r}, tied in this run, differ.")
        kept = {name: value for name, value in weights.items() if name not in self.aliases}
        self.check(_forms(kept), where=where)
        return {name: kept[name] for name in self.tensors}

    def to_json(self) -> dict[str, Any]:
        """Return the layout as plain data that `from_json` reads."""
        tensors = {
            name: {"shape": list(form.shape), "dtype": form.dtype_name}
            for name, form in self.tensors.items()
        }
        return {"class": self.model, "tensors": tensors, "aliases": dict(self.aliases)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Layout":
        """Read what `to_json` returned.

        Args:
            data: Plain data.

        Returns:
            The layout.

        Raises:
            ValueError: If it is something else: it may come from anywhere.
        """
        tensors = {}
        for name, form in data["tensors"].items():
            shape, dtype = form["shape"], form["dtype"]
            sizes = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
            if not sizes or math.prod(n or 1 for n in shape) > _MOST or not isinstance(dtype, str):
                raise ValueError(f"the tensor {name!r} has the shape {shape} and the dtype {dtype}")
            tensors[name] = TensorForm(tuple(shape), dtype)
        aliases, model = dict(data["aliases"]), data["class"]
        unknown = [alias for alias, name in aliases.items() if name not in tensors]
        if unknown or not isinstance(model, str):
            raise ValueError(f"the aliases {unknown} are of no tensor, or class is not a text")
        return cls(tensors, aliases, model)


def _place(value: "Tensor") -> tuple[Any, ...]:
    return value.data_ptr(), value.shape, value.stride(), value.dtype


def _same(first: "Tensor", second: "Tensor") -> bool:
    import torch

    return _place(first) == _place(second) or torch.equal(first, second)


def _forms(weights: "Weights") -> dict[str, TensorForm]:
    return {name: TensorForm.of(v) for name, v in weights.items()}
