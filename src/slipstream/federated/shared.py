"""What server and clients know alike: the weights of a version, and what may move of them.

The server writes a *packet* for each new version; whoever holds the version before applies it and
holds the new one, bit by bit. A packet is arrays: a `step` along the coordinates, then a `change`
of the embedding, and the buffers as they are.
"""

import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.federated.encodings import Arrays, Encoding, pack, unpack
from slipstream.modes.embedding import FREE, HELD, Embedding
from slipstream.trajectory.layout import Layout
from slipstream.weights import Weights, parameter_names


@dataclass(frozen=True)
class Form:
    """The tensors of a model, and which of them are trained: those become one flat vector."""

    layout: Layout
    trained: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, *, local: Collection[str] = ()) -> "Form":
        """Return the form of `model`.

        Args:
            model: Any module.
            local: Tensors that are no part of it: every client keeps its own.

        Returns:
            The form of all others.

        Raises:
            ValueError: If a trained tensor is complex: messages are float32; or if there is no
                such local tensor, or it is tied to one that is not local.
        """
        layout = _without(Layout.of(model), local)
        for name, value in model.named_parameters():
            if name in layout.tensors and value.is_complex():
                raise ValueError(
                    f"Tensor {name!r} is complex, which federated messages cannot hold: train its "
                    "real and imaginary parts as two tensors (torch.view_as_real)."
                )
        trained = tuple(name for name in parameter_names(model) if name in layout.tensors)
        return cls(layout, trained)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of weights of each trained tensor, in the order of the flat vector."""
        return {name: math.prod(self.layout.tensors[name].shape) for name in self.trained}

    def to_json(self) -> dict[str, Any]:
        """Return the form as plain data that `from_json` reads."""
        return {"layout": self.layout.to_json(), "trained": list(self.trained)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Form":
        """Read what `to_json` returned."""
        return cls(Layout.from_json(data["layout"]), tuple(data["trained"]))

    def flatten(self, weights: Weights) -> Tensor:
        """Return the trained tensors as one float32 vector."""
        return torch.cat([weights[name].detach().float().cpu().flatten() for name in self.trained])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the trained tensors that `flatten` made a vector of."""
        pieces = zip(self.trained, torch.split(vector, list(self.sizes.values())), strict=True)
        forms = self.layout.tensors
        return {name: p.view(forms[name].shape).to(forms[name].dtype) for name, p in pieces}

    def buffers(self, weights: Weights) -> dict[str, Tensor]:
        """Return copies of the tensors that are not trained: a model keeps changing its own."""
        others = [name for name in self.layout.tensors if name not in self.trained]
        return {name: weights[name].detach().cpu().clone() for name in others}


@dataclass(frozen=True)
class Shared:
    """The weights of a version, and what may move."""

    version: int
    vector: Tensor  # (weights,) float32
    embedding: Embedding
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, form: Form, weights: Weights) -> "Shared":
        """Return version 0, in which every weight is free."""
        vector = form.flatten(weights)
        return cls(0, vector, Embedding.none(vector), form.buffers(weights))

    def weights(self, form: Form) -> dict[str, Tensor]:
        """Return ordinary weights, under every name of the state dict."""
        own = form.unflatten(self.vector) | dict(self.buffers)
        return own | {name: own[first] for name, first in form.layout.aliases.items()}

    def after(self, packet: Mapping[str, np.ndarray], encoding: Encoding) -> "Shared":
        """Return the next version."""
        coordinates = encoding.decode(part(packet, "step"), self.embedding.coordinates)
        return Shared(
            self.version + 1,
            self.vector + self.embedding.lift(coordinates),
            read_change(self.embedding, part(packet, "change")),
            buffers_in(packet),
        )

    def pack(self) -> Arrays:
        """Return all of it, as arrays for a client that has nothing."""
        arrays: Arrays = {"weights": self.vector.numpy()}
        if (self.embedding.mode != FREE).any():
            arrays["mode"] = _short(self.embedding.mode)
            arrays["scale"] = self.embedding.scale[self.embedding.members].numpy()
        return arrays | buffer_arrays(self.buffers)

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], version: int) -> "Shared":
        """Return what `pack` wrote."""
        vector = torch.from_numpy(arrays["weights"].copy())
        embedding = Embedding.none(vector)
        if "mode" in arrays:
            mode = torch.from_numpy(arrays["mode"].astype(np.int16))
            scale = torch.zeros_like(vector)
            scale[mode >= 0] = torch.from_numpy(arrays["scale"].copy())
            embedding = Embedding(mode, scale)
        return cls(version, vector, embedding, buffers_in(arrays))

    @property
    def checksum(self) -> int:
        """A number that differs where two states differ."""
        weights = zlib.crc32(self.vector.numpy().tobytes())
        return zlib.crc32(self.embedding.mode.numpy().tobytes(), weights)


def _without(layout: Layout, local: Collection[str]) -> Layout:
    """The layout of all other tensors."""
    known = {*layout.tensors, *layout.aliases}
    if unknown := [name for name in local if name not in known]:
        raise ValueError(f"local: the model has no tensor {unknown[0]!r}.")
    left = {name: form for name, form in layout.tensors.items() if name not in local}
    for name, first in layout.aliases.items():
        if (name in local) != (first in local):
            raise ValueError(f"local: {name!r} and {first!r} are tied; name both, or neither.")
    aliases = {name: first for name, first in layout.aliases.items() if name not in local}
    return replace(layout, tensors=left, aliases=aliases)


def write_change(old: Embedding, new: Embedding) -> Arrays:
    """Return the arrays that make `new` of `old`.

    Args:
        old: What the receiver has.
        new: What it should have; weights that follow a reference keep following it.

    Returns:
        Nothing if there is no change. Else a bit for each weight; and unless the changed weights
        just start or stop to be held, the new mode of each and the scale of those that have one.
    """
    places = torch.nonzero(old.mode != new.mode).squeeze(1)
    if not len(places):
        return {}
    modes = new.mode[places]
    bits = pack(places, len(old.mode))
    if torch.equal(modes, _toggled(old.mode[places])):
        return {"places": bits}
    return {"places": bits, "mode": _short(modes), "scale": new.scale[places[modes >= 0]].numpy()}


def read_change(old: Embedding, arrays: Mapping[str, np.ndarray]) -> Embedding:
    """Return the embedding that `write_change` described."""
    if not arrays:
        return old
    places = unpack(arrays["places"], len(old.mode))
    modes, scale = old.mode.clone(), old.scale.clone()
    if "mode" in arrays:
        modes[places] = torch.from_numpy(arrays["mode"].astype(np.int16))
        scale[places[modes[places] >= 0]] = torch.from_numpy(arrays["scale"].copy())
    else:
        modes[places] = _toggled(modes[places])
    return Embedding(modes, scale)


def buffer_arrays(buffers: Mapping[str, Tensor]) -> Arrays:
    """Return buffers as arrays, under names that `buffers_in` finds."""
    return {f"buffer/{name}": value.numpy() for name, value in buffers.items()}


def buffers_in(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the buffers that `buffer_arrays` wrote."""
    return {n: torch.from_numpy(value.copy()) for n, value in part(arrays, "buffer").items()}


def part(arrays: Mapping[str, np.ndarray], name: str) -> Arrays:
    """Return the arrays below `name/`, without that in their names."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): v for key, v in arrays.items() if key.startswith(prefix)}


def _short(modes: Tensor) -> np.ndarray:
    """One byte a weight, if there are not too many modes."""
    return modes.numpy().astype(np.int8 if modes.max() < 128 else np.int16)


def _toggled(modes: Tensor) -> Tensor:
    return torch.where(modes == FREE, HELD, FREE).to(modes)
