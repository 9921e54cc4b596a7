"""A packed safetensors file: its values in blocks, its header unchanged.

    SLIPPACK        eight bytes
    blocks          of up to 2^17 numbers of one kind, across the borders of tensors
    description     JSON in a zstd frame, see `Description`
    length          of the description, eight bytes, little-endian
    SLIPPACK

A file may refer to another one beside it, its base, packed or not, with the same tensors at the
same places: then a block holds the difference to the same block there. Only blocks that are asked
for are read, here and along the chain of bases. Places are bytes of the safetensors file.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slipstream.storage.packed_header import (
    MAGIC,
    SUFFIX,
    Description,
    PackedBlock,
    Stamp,
    chain_of,
    contents_of,
    cut,
    describe,
    file_beside,
    parsed,
    places_of,
    stamp_of,
)
from slipstream.storage.packed_numbers import Bits, bits_of, pack, unpack
from slipstream.storage.reading import open_regular
from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.tensor_header import read_header, read_places
from slipstream.storage.zstd_text import pack_text

_CACHED = 256  # blocks, at most 1 MiB each: whoever reads a run in order finds the bases here


def packed_chunks(path: Path, *, base: Path | None) -> Iterator[bytes]:
    """Yield the bytes of a packed file.

    Args:
        path: The safetensors file to pack.
        base: A file that will lie beside the packed one, itself packed or not. It is left alone
            if its tensors are others.

    Yields:
        Block after block, then the description.

    Raises:
        ValueError: If the file is damaged, or has bytes that belong to no tensor.
    """
    header, places = read_header(path), read_places(path)
    if base is not None and dict(places_of(base)) != dict(places):
        base = None
    digest = _Digest(header)
    lengths = []
    yield MAGIC
    for number, block in enumerate(cut(places, 8 + len(header))):
        bits = _read_plain(path, block)
        digest.add(bits)
        other = None if base is None else _bits(base, block, number)
        packed = pack(bits, other, dtype=block.form.dtype)
        lengths.append(len(packed))
        yield packed
    described = Description(
        None if base is None else base.stem, header.decode(), digest.hex(), lengths
    )
    text = pack_text(json.dumps(asdict(described), separators=(",", ":")).encode())
    yield text
    yield len(text).to_bytes(8, "little") + MAGIC


def unpacked_chunks(path: Path) -> Iterator[memoryview]:
    """Yield the bytes of the safetensors file that was packed.

    Args:
        path: The packed file.

    Yields:
        Its header, then block after block.

    Raises:
        OSError: If the file or its base is missing.
        ValueError: If they are damaged; perhaps only at the end, when all bytes are known.
    """
    described = describe(path)
    header = described.header.encode()
    digest = _Digest(header)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for number, block in enumerate(contents_of(path).blocks):
        bits = _bits(path, block, number)
        digest.add(bits)
        yield bits.data.cast("B")
    if digest.hex() != described.digest:
        raise ValueError("the file or one that it is a difference to is not what it was")


def read_packed(path: Path, name: str, out: Tensor, *, form: TensorForm, start: int = 0) -> None:
    """Read one tensor of a packed file into `out`, or a stretch of it; other blocks stay unread.

    Args:
        path: A packed file.
        name: Which tensor.
        out: Receives the numbers, as many as it holds; contiguous, of the same dtype.
        form: What the file should hold.
        start: The first number of the flattened tensor to read.

    Raises:
        OSError: If the file or its base is missing.
        ValueError: If they are damaged, lack the tensor, or hold it in another form.
    """
    chain_of(path)
    contents = contents_of(path)
    place = contents.places.get(name)
    if place is None or place.form != form:
        came = "is missing" if place is None else f"is {place.form}"
        raise ValueError(f"tensor {name!r} {came}, expected {form}")
    target = bits_of(out).view(np.uint8)
    at = place.start + start * out.itemsize
    number = bisect_right(contents.starts, at) - 1
    while len(target):
        block = contents.blocks[number]
        part = _bits(path, block, number).view(np.uint8)[at - block.start :][: len(target)]
        target[: len(part)] = part
        target, at, number = target[len(part) :], at + len(part), number + 1


def unpack_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a packed file, in memory."""
    tensors = {}
    chain_of(path)
    for name, place in contents_of(path).places.items():
        tensors[name] = torch.empty(place.form.shape, dtype=place.form.dtype)
        read_packed(path, name, tensors[name], form=place.form)
    return tensors


class _Digest:
    """The fingerprint of a safetensors file."""

    def __init__(self, header: bytes) -> None:
        self._hash = hashlib.blake2b(len(header).to_bytes(8, "little") + header, digest_size=16)

    def add(self, bits: Bits) -> None:
        self._hash.update(bits.data)

    def hex(self) -> str:
        return self._hash.hexdigest()


def _bits(path: Path, block: PackedBlock, number: int) -> Bits:
    """The numbers of a block, of a packed file or of a safetensors file."""
    if path.suffix == SUFFIX:
        return _unpacked(path, stamp_of(path), number)
    return _read_plain(path, block)


@lru_cache(maxsize=_CACHED)
def _unpacked(path: Path, stamp: Stamp, number: int) -> Bits:
    contents = parsed(path, stamp)
    block = contents.blocks[number]
    start, stop = contents.packed[number : number + 2]
    with open_regular(path) as file:
        file.seek(start)
        packed = file.read(stop - start)
    other = None
    if contents.base is not None:
        other = _bits(file_beside(path, contents.base), block, number)
    return unpack(packed, other, dtype=block.form.dtype, count=block.count)


def _read_plain(path: Path, block: PackedBlock) -> Bits:
    out = np.empty(block.stop - block.start, np.uint8)
    with open_regular(path) as file:
        file.seek(block.start)
        if file.readinto(out.data) != len(out):
            raise ValueError("the file is cut short")
    return bits_of(torch.from_numpy(out).view(block.form.dtype))
