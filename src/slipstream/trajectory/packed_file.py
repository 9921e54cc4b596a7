"""A packed safetensors file: its tensors in blocks, its header as it was.

    SLIPPACK        eight bytes
    blocks          tensor after tensor, each in stretches of 2^17 numbers
    description     JSON in a zstd frame, see `Description`
    length          of the description, eight bytes, little-endian
    SLIPPACK

A file may refer to another one beside it, its base, packed or not: then a block holds the
difference to the block at the same place there. Only blocks that are asked for are read, here and
along the chain of bases.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import FileIO
from itertools import accumulate, chain
from pathlib import Path

import torch
from torch import Tensor

from slipstream.trajectory.layout import TensorForm
from slipstream.trajectory.packed_numbers import Bits, bits_of, pack, pack_text, unpack, unpack_text
from slipstream.trajectory.tensor_file import (
    Place,
    parse_header,
    read_header,
    read_places,
    read_tensor,
)

SUFFIX = ".packed"
_MAGIC = b"SLIPPACK"
_BLOCK = 1 << 17  # numbers
_Stamp = tuple[int, int, int]  # what changes when another file takes a name
_CACHED = 128  # blocks, at most 1 MiB each: whoever reads a run in order finds the bases here


@dataclass(frozen=True)
class Description:
    """What a packed file tells about itself."""

    base: str | None  # the name, without suffix, of the file that differences refer to
    header: str  # of the safetensors file
    digest: str  # blake2b of the whole safetensors file
    blocks: Mapping[str, list[int]]  # bytes of each block, by tensor, in the order of the file
    alone: list[str]  # tensors that are no differences


@dataclass(frozen=True)
class _Contents:
    """A description, ready to find blocks with."""

    places: Mapping[str, Place]  # in the safetensors file
    base: str | None
    blocks: Mapping[str, list[tuple[int, int]]]  # where each lies, and its length
    alone: frozenset[str]


def packed_chunks(path: Path, *, base: Path | None) -> Iterator[bytes]:
    """Yield the bytes of a packed file.

    Args:
        path: The safetensors file to pack.
        base: A file that will lie beside the packed one, itself packed or not.

    Yields:
        Block after block, then the description.

    Raises:
        ValueError: If the file is damaged, or has bytes that belong to no tensor.
    """
    header = read_header(path)
    places = read_places(path)
    _check_covered(places, 8 + len(header))
    before = {} if base is None else places_of(base)
    digest = _Digest(header)
    blocks: dict[str, list[int]] = {}
    alone = []
    yield _MAGIC
    for name, place in _in_order(places):
        known = base if name in before and before[name].form == place.form else None
        if known is None:
            alone.append(name)
        blocks[name] = []
        for number in range(_block_count(place.form)):
            bits = _block(path, name, number)
            digest.add(bits)
            other = None if known is None else _block(known, name, number)
            packed = pack(bits, other, dtype=place.form.dtype)
            blocks[name].append(len(packed))
            yield packed
    described = Description(
        None if base is None else base.stem, header.decode(), digest.hex(), blocks, alone
    )
    text = pack_text(json.dumps(asdict(described), separators=(",", ":")).encode())
    yield text
    yield len(text).to_bytes(8, "little") + _MAGIC


def unpacked_chunks(path: Path) -> Iterator[memoryview]:
    """Yield the bytes of the safetensors file that was packed.

    Args:
        path: The packed file.

    Yields:
        Its header, then the tensors in stretches.

    Raises:
        OSError: If the file or its base is missing.
        ValueError: If they are damaged; perhaps only at the end, when all bytes are known.
    """
    described = _describe(path)
    header = described.header.encode()
    digest = _Digest(header)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for name, place in _in_order(_contents(path).places):
        for number in range(_block_count(place.form)):
            bits = _block(path, name, number)
            digest.add(bits)
            yield bits.data.cast("B")
    if digest.hex() != described.digest:
        raise ValueError("the file or one that it is a difference to is not what it was")


def places_of(path: Path) -> Mapping[str, Place]:
    """Return the places of the tensors in the safetensors file, packed or not, and check it.

    Args:
        path: A safetensors file, or a packed one.

    Returns:
        Places by name, in the order of the header.

    Raises:
        OSError: If the file or its base is missing.
        ValueError: If it is damaged.
    """
    if path.suffix != SUFFIX:
        return read_places(path)
    contents = _contents(path)
    if contents.base is not None:
        base = _beside(path, contents.base)
        if not base.exists():
            raise ValueError(f"{base.stem}, which it is a difference to, is missing")
        places_of(base)
    return contents.places


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
    place = _contents(path).places.get(name)
    if place is None or place.form != form:
        came = "is missing" if place is None else f"is {place.form}"
        raise ValueError(f"tensor {name!r} {came}, expected {form}")
    bits = bits_of(out)
    stop = start + len(bits)
    for number in range(start // _BLOCK, -(-stop // _BLOCK)):
        first = number * _BLOCK
        low, high = max(start, first), min(stop, first + _BLOCK)
        bits[low - start : high - start] = _block(path, name, number)[low - first : high - first]


def unpack_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a packed file, in memory."""
    tensors = {}
    for name, place in _contents(path).places.items():
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


def _block(path: Path, name: str, number: int) -> Bits:
    """A block of a tensor, of a packed file or of a safetensors file."""
    if path.suffix == SUFFIX:
        return _unpacked(path, _stamp(path), name, number)
    form = read_places(path)[name].form
    block = torch.empty(_block_length(form, number), dtype=form.dtype)
    read_tensor(path, name, block, form=form, start=number * _BLOCK)
    return bits_of(block)


@lru_cache(maxsize=_CACHED)
def _unpacked(path: Path, stamp: _Stamp, name: str, number: int) -> Bits:
    contents = _parsed(path, stamp)
    form = contents.places[name].form
    start, length = contents.blocks[name][number]
    with FileIO(path) as file:
        file.seek(start)
        packed = file.read(length)
    base = None
    if contents.base is not None and name not in contents.alone:
        base = _block(_beside(path, contents.base), name, number)
    return unpack(packed, base, dtype=form.dtype, count=_block_length(form, number))


def _contents(path: Path) -> _Contents:
    return _parsed(path, _stamp(path))


@lru_cache(maxsize=256)
def _parsed(path: Path, stamp: _Stamp) -> _Contents:
    described = _describe(path)
    places, _ = parse_header(described.header.encode())
    ends = accumulate(chain.from_iterable(described.blocks.values()), initial=len(_MAGIC))
    blocks = {
        name: [(next(ends), length) for length in lengths]
        for name, lengths in described.blocks.items()
    }
    return _Contents(places, described.base, blocks, frozenset(described.alone))


def _describe(path: Path) -> Description:
    with FileIO(path) as file:
        end = file.seek(0, 2) - len(_MAGIC) - 8
        file.seek(max(end, 0))
        length, magic = int.from_bytes(file.read(8), "little"), file.read(8)
        if magic != _MAGIC or length > end:
            raise ValueError("the file is cut short, or is no packed snapshot")
        file.seek(end - length)
        text = unpack_text(file.read(length))
    return Description(**json.loads(text))


def _beside(path: Path, base: str) -> Path:
    """The file that `path` is a difference to, in the form in which it is there now."""
    plain = path.with_name(f"{base}.safetensors")
    return plain if plain.exists() else path.with_name(base + SUFFIX)


def _in_order(places: Mapping[str, Place]) -> list[tuple[str, Place]]:
    return sorted(places.items(), key=lambda item: item[1].start)


def _check_covered(places: Mapping[str, Place], start: int) -> None:
    """Raise if some bytes of a safetensors file belong to no tensor, or to two."""
    for name, place in _in_order(places):
        if place.start != start:
            raise ValueError(f"the bytes before tensor {name!r} belong to no tensor")
        start = place.stop


def _block_count(form: TensorForm) -> int:
    return -(-math.prod(form.shape) // _BLOCK)


def _block_length(form: TensorForm, number: int) -> int:
    return min(_BLOCK, math.prod(form.shape) - number * _BLOCK)


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
