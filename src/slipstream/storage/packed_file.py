"""A packed safetensors file: its numbers in blocks, its header as it was.

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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import FileIO
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slipstream.storage.packed_numbers import Bits, bits_of, pack, pack_text, unpack, unpack_text
from slipstream.storage.tensor_file import Place, parse_header, read_header, read_places
from slipstream.storage.tensor_form import TensorForm

SUFFIX = ".packed"
_MAGIC = b"SLIPPACK"
_BLOCK = 1 << 17  # numbers; in half as many, the order by exponents saves less
_CACHED = 256  # blocks, at most 1 MiB each: whoever reads a run in order finds the bases here
_Stamp = tuple[int, int, int]  # what changes when another file takes a name


@dataclass(frozen=True)
class Description:
    """What a packed file tells about itself."""

    base: str | None  # the name, without suffix, of the file that differences refer to
    header: str  # of the safetensors file
    digest: str  # blake2b of the whole safetensors file
    blocks: list[int]  # bytes of each


@dataclass(frozen=True)
class _Block:
    """Neighbouring numbers of one kind."""

    dtype: torch.dtype
    start: int
    count: int  # numbers

    @property
    def stop(self) -> int:
        return self.start + self.count * self.dtype.itemsize


@dataclass(frozen=True)
class _Contents:
    """A description, ready to find blocks with."""

    places: Mapping[str, Place]
    base: str | None
    blocks: tuple[_Block, ...]
    starts: list[int]  # of the blocks
    packed: list[int]  # where each lies in the packed file, and the end


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
    yield _MAGIC
    for number, block in enumerate(_cut(places, 8 + len(header))):
        bits = _read_plain(path, block)
        digest.add(bits)
        other = None if base is None else _bits(base, block, number)
        packed = pack(bits, other, dtype=block.dtype)
        lengths.append(len(packed))
        yield packed
    described = Description(
        None if base is None else base.stem, header.decode(), digest.hex(), lengths
    )
    text = pack_text(json.dumps(asdict(described), separators=(",", ":")).encode())
    yield text
    yield len(text).to_bytes(8, "little") + _MAGIC


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
    described = _describe(path)
    header = described.header.encode()
    digest = _Digest(header)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for number, block in enumerate(_contents(path).blocks):
        bits = _bits(path, block, number)
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
        OSError: If the file is missing.
        ValueError: If it is damaged, or its base is missing or damaged.
    """
    if path.suffix != SUFFIX:
        return read_places(path)
    contents = _contents(path)
    if contents.base is not None:
        base = _beside(path, contents.base)
        if not base.exists():
            raise ValueError(f"{contents.base}, which it is a difference to, is missing")
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
    contents = _contents(path)
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


def in_present_form(path: Path) -> Path:
    """Return the file, or its other form if that is what is there: it may just have been packed."""
    other = path.with_suffix(".safetensors" if path.suffix == SUFFIX else SUFFIX)
    return other if not path.exists() and other.exists() else path


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


def _bits(path: Path, block: _Block, number: int) -> Bits:
    """The numbers of a block, of a packed file or of a safetensors file."""
    if path.suffix == SUFFIX:
        return _unpacked(path, _stamp(path), number)
    return _read_plain(path, block)


@lru_cache(maxsize=_CACHED)
def _unpacked(path: Path, stamp: _Stamp, number: int) -> Bits:
    contents = _parsed(path, stamp)
    block = contents.blocks[number]
    start, stop = contents.packed[number : number + 2]
    with FileIO(path) as file:
        file.seek(start)
        packed = file.read(stop - start)
    other = None
    if contents.base is not None:
        other = _bits(_beside(path, contents.base), block, number)
    return unpack(packed, other, dtype=block.dtype, count=block.count)


def _read_plain(path: Path, block: _Block) -> Bits:
    out = np.empty(block.stop - block.start, np.uint8)
    with FileIO(path) as file:
        file.seek(block.start)
        if file.readinto(out.data) != len(out):
            raise ValueError("the file is cut short")
    return bits_of(torch.from_numpy(out).view(block.dtype))


def _contents(path: Path) -> _Contents:
    return _parsed(path, _stamp(path))


@lru_cache(maxsize=256)
def _parsed(path: Path, stamp: _Stamp) -> _Contents:
    described = _describe(path)
    header = described.header.encode()
    places, _ = parse_header(header)
    blocks = tuple(_cut(places, 8 + len(header)))
    packed = list(accumulate(described.blocks, initial=len(_MAGIC)))
    return _Contents(places, described.base, blocks, [b.start for b in blocks], packed)


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


def _cut(places: Mapping[str, Place], start: int) -> Iterator[_Block]:
    """Cut a safetensors file into blocks, from the byte `start` to the end."""
    stretches: list[tuple[torch.dtype, int, int]] = []  # of one kind of numbers, start and stop
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != start:
            raise ValueError(f"the bytes before tensor {name!r} belong to no tensor")
        first = start
        if stretches and stretches[-1][0] == place.form.dtype:
            first = stretches.pop()[1]
        start = place.stop
        stretches.append((place.form.dtype, first, start))
    for dtype, first, stop in stretches:
        for at in range(first, stop, _BLOCK * dtype.itemsize):
            yield _Block(dtype, at, min(_BLOCK, (stop - at) // dtype.itemsize))


def _beside(path: Path, base: str) -> Path:
    """The file that `path` is a difference to; plain, if there are both forms."""
    return in_present_form(path.with_name(f"{base}.safetensors"))


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
