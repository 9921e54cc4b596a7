"""How a vector of changes is written into few bytes; what is lost is kept for the next time.

An encoding is a pure function of the vector. Sender and receiver both decode, so both know what
arrived; the sender adds the rest, the *residual*, to what it sends next (error feedback).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, np.ndarray]

BLOCK = 256  # values that share a scale


class Encoding(Protocol):
    """Writes a float32 vector into arrays, and reads it back, perhaps not exactly."""

    def encode(self, vector: Tensor) -> Arrays:
        """Return the arrays to send."""

    def decode(self, arrays: Mapping[str, np.ndarray], length: int) -> Tensor:
        """Return the vector of `length` values that the arrays stand for."""


@dataclass(frozen=True)
class Exact:
    """Four bytes a value, nothing lost.

    Example:
        >>> Exact().encode(torch.ones(2))
        {'values': array([1., 1.], dtype=float32)}
    """

    def encode(self, vector: Tensor) -> Arrays:
        """Return the values."""
        return {"values": vector.float().cpu().numpy()}

    def decode(self, arrays: Mapping[str, np.ndarray], length: int) -> Tensor:
        """Return the values."""
        return _sized(_tensor(arrays, "values", "float32"), length)


@dataclass(frozen=True)
class EightBit:
    """One byte a value, and a scale for each block of 256: multiples of the largest over 127.

    Example:
        >>> arrays = EightBit().encode(torch.tensor([1.0, -0.5, 0.001]))
        >>> arrays["values"].tolist(), EightBit().decode(arrays, 3)[0].item()
        ([127, -64, 0], 1.0)
    """

    def encode(self, vector: Tensor) -> Arrays:
        """Return the multiples and the scales."""
        blocks = _blocks(vector.float().cpu())
        scales = blocks.abs().amax(1) / 127
        steps = blocks / scales.where(scales > 0, torch.ones_like(scales))[:, None]
        # A NaN stays visible in its scale; the byte itself must be a number.
        values = steps.round().nan_to_num(0, 0, 0).to(torch.int8).flatten()[: len(vector)]
        return {"values": values.numpy(), "scales": scales.numpy()}

    def decode(self, arrays: Mapping[str, np.ndarray], length: int) -> Tensor:
        """Return multiples times scales."""
        values = _sized(_tensor(arrays, "values", "int8"), length)
        scales = _tensor(arrays, "scales", "float32")
        _sized(scales, math.ceil(length / BLOCK))
        return (_blocks(values.float()) * scales[:, None]).flatten()[:length]


@dataclass(frozen=True)
class TopK:
    """The largest values by magnitude, and where they are: as numbers or bits, what is shorter.

    Example:
        >>> arrays = TopK(share=0.5).encode(torch.tensor([0.1, -3.0, 2.0, 0.0]))
        >>> TopK(share=0.5).decode(arrays, 4)
        tensor([ 0., -3.,  2.,  0.])
    """

    share: float = 0.1  # of the values

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share of TopK must be above 0 and at most 1, got {self.share}.")

    def encode(self, vector: Tensor) -> Arrays:
        """Return the kept values and their places."""
        vector = vector.float().cpu()
        kept = vector.abs().topk(math.ceil(self.share * len(vector))).indices.sort().values
        numbers = kept.numpy().astype(np.uint32)
        bits = pack(kept, len(vector))
        return {
            "values": vector[kept].numpy(),
            "places": numbers if numbers.nbytes < bits.nbytes else bits,
        }

    def decode(self, arrays: Mapping[str, np.ndarray], length: int) -> Tensor:
        """Return the kept values at their places, zeros elsewhere."""
        vector = torch.zeros(length)
        places = _array(arrays, "places", "uint8", "uint32")
        known = unpack(places, length) if places.dtype == np.uint8 else _below(places, length)
        vector[known] = _sized(_tensor(arrays, "values", "float32"), len(known))
        return vector


def encoding_from(description: Mapping[str, Any]) -> Encoding:
    """Return the encoding that a description names.

    Args:
        description: What `describe_encoding` returned: `{"name": "top-k", "share": 0.1}`.

    Returns:
        The encoding.

    Raises:
        ValueError: If there is no encoding of this name.
    """
    options = dict(description)
    name = options.pop("name")
    if name not in ENCODINGS:
        raise ValueError(f"There is no encoding {name!r}; there are {', '.join(ENCODINGS)}.")
    encoding: Encoding = ENCODINGS[name](**options)
    return encoding


def describe_encoding(encoding: Encoding) -> dict[str, Any]:
    """Return the name and the options of an encoding, as plain data."""
    (name,) = (name for name, kind in ENCODINGS.items() if type(encoding) is kind)
    return {"name": name, **vars(encoding)}


def pack(places: Tensor, length: int) -> np.ndarray:
    """Return places below `length` as bits, eight to a byte."""
    bits = np.zeros(length, dtype=bool)
    bits[places.numpy()] = True
    return np.packbits(bits)


def unpack(packed: np.ndarray, length: int) -> Tensor:
    """Return the places that `pack` wrote, in order."""
    if len(packed) != math.ceil(length / 8):
        raise ValueError(f"Expected {math.ceil(length / 8)} bytes of places, got {len(packed)}.")
    return torch.from_numpy(np.flatnonzero(np.unpackbits(packed, count=length)))


ENCODINGS: dict[str, Any] = {"exact": Exact, "8-bit": EightBit, "top-k": TopK}


def _array(arrays: Mapping[str, np.ndarray], name: str, *dtypes: str) -> np.ndarray:
    """An array of a message, if it is what the encoding writes."""
    found = arrays[name]
    if found.ndim != 1 or str(found.dtype) not in dtypes:
        raise ValueError(
            f"Expected {name} as a vector of {' or '.join(dtypes)}, got {found.dtype} "
            f"{found.shape}."
        )
    return found


def _tensor(arrays: Mapping[str, np.ndarray], name: str, dtype: str) -> Tensor:
    return torch.from_numpy(_array(arrays, name, dtype).copy())


def _below(places: np.ndarray, length: int) -> Tensor:
    if len(places) and places.max() >= length:
        raise ValueError(f"Expected places below {length}, got {places.max()}.")
    return torch.from_numpy(places.astype(np.int64))


def _blocks(vector: Tensor) -> Tensor:
    """The vector, filled up with zeros, in rows of `BLOCK`."""
    missing = -len(vector) % BLOCK
    return torch.nn.functional.pad(vector, (0, missing)).view(-1, BLOCK)


def _sized(values: Tensor, length: int) -> Tensor:
    if len(values) != length:
        raise ValueError(f"Expected {length} values, got {len(values)}.")
    return values
