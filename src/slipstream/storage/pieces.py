"""Tensors that lie in several files, each holding a rectangular piece, as sharded trainings leave.

A file notes in its header where its pieces belong, in the words of `HuggingFaceStorageWriter` of
torch.distributed.checkpoint, whose reader takes these files, too.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slipstream.storage.packed_header import SUFFIX, describe, places_of
from slipstream.storage.strict_json import read_json
from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.tensor_header import read_header

if TYPE_CHECKING:
    from torch import Tensor

_NOTED, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


@dataclass(frozen=True)
class Piece:
    """A tensor in a file: all of it, or what lies at some offsets."""

    path: Path
    form: TensorForm  # of the piece
    offsets: tuple[int, ...]


def sharding_note(offsets: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return what the header of a file notes of the pieces in it."""
    noted = {name: {_OFFSETS: list(given)} for name, given in offsets.items()}
    return {"DCP_VERSION": "1.0", _NOTED: json.dumps(noted, separators=(",", ":"))}


def pieces_of(path: Path) -> dict[str, Piece]:
    """Return the pieces in a safetensors file, packed or not; only its header is read.

    Args:
        path: The file.

    Returns:
        The pieces by name of the tensor.

    Raises:
        OSError: If the file is missing.
        ValueError: If it is damaged.
    """
    packed = path.suffix == SUFFIX
    places = places_of(path)
    header = describe(path).header.encode() if packed else read_header(path)
    noted = read_json(header).get("__metadata__", {}).get(_NOTED)
    offsets = {} if noted is None else _offsets(read_json(noted.encode()))
    found = {}
    for name, place in places.items():
        start = offsets.get(name, (0,) * len(place.form.shape))
        if len(start) != len(place.form.shape):
            raise ValueError(f"the offsets {start} of tensor {name!r} {place.form} do not fit")
        found[name] = Piece(path, place.form, start)
    return found


def _offsets(noted: Any) -> dict[str, tuple[int, ...]]:
    """Checked: the file may come from anywhere."""
    try:
        found = {name: tuple(entry[_OFFSETS]) for name, entry in noted.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its note of shards is damaged: {error!r}") from error
    sizes = [number for given in found.values() for number in given]
    if not all(type(number) is int and 0 <= number < 1 << 48 for number in sizes):
        raise ValueError("its note of shards has offsets that are not whole numbers from 0 on")
    return found


def whole_form(name: str, pieces: Iterable[Piece]) -> TensorForm:
    """Return the form of the tensor that pieces make up.

    Args:
        name: The tensor, for the message.
        pieces: All there are.

    Returns:
        Its form.

    Raises:
        ValueError: If one is missing, two overlap, or they differ in dtype.
    """
    first, *others = given = list(pieces)
    if not others and not any(first.offsets):
        return first.form
    if any(len(p.offsets) != len(first.offsets) for p in others) or (
        {p.form.dtype_name for p in others} - {first.form.dtype_name}
    ):
        raise ValueError(f"the pieces of tensor {name!r} differ in dtype or dimensions")
    import numpy as np  # runs without pieces are read without it

    low = np.array([piece.offsets for piece in given], dtype=np.int64)  # (pieces, dimensions)
    high = low + np.array([piece.form.shape for piece in given], dtype=np.int64)
    shape = tuple(map(int, high.max(0)))
    for number, (start, stop) in enumerate(zip(low, high, strict=True)):
        shared = np.minimum(stop, high[:number]) - np.maximum(start, low[:number])
        if (shared > 0).all(1).any():
            raise ValueError(f"two files hold the same part of tensor {name!r}")
    if sum(math.prod(piece.form.shape) for piece in given) != math.prod(shape):
        raise ValueError(f"a piece of tensor {name!r} {shape} is missing")
    return TensorForm(shape, first.form.dtype_name)


def read_pieces(
    pieces: Iterable[Piece],
    out: "Tensor",
    *,
    shape: tuple[int, ...],
    start: int,
    read: "Callable[[Piece, Tensor, int], None]",
) -> None:
    """Read a stretch of a tensor from its pieces, touching only what is asked for.

    Args:
        pieces: Those of one tensor.
        out: Receives the numbers, as many as it holds; contiguous.
        shape: Of the whole tensor.
        start: The first number of the flattened tensor to read.
        read: Reads numbers of a piece, from a number of it on, into a tensor.
    """
    row = math.prod(shape[1:])
    first, last = start // row, -(-(start + out.numel()) // row)
    exact = (last - first) * row == out.numel()
    rows = (out if exact else out.new_empty((last - first) * row)).view(-1, *shape[1:])
    for piece in pieces:
        offset, *beside = piece.offsets
        sizes = piece.form.shape
        low, high = max(first, offset), min(last, offset + sizes[0])
        if low >= high:
            continue
        columns = tuple(slice(o, o + size) for o, size in zip(beside, sizes[1:], strict=True))
        target = rows[slice(low - first, high - first), *columns]
        part = target if target.is_contiguous() else target.new_empty(target.shape)
        read(piece, part, (low - offset) * math.prod(sizes[1:]))
        if part is not target:
            target.copy_(part)
    if not exact:
        out.view(-1).copy_(rows.view(-1)[start - first * row :][: out.numel()])
