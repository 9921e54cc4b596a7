"""What a packed safetensors file holds and where, read without torch; see `packed_file`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from itertools import accumulate
from pathlib import Path

from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.tensor_header import Place, parse_header, read_places
from slipstream.storage.zstd_text import unpack_text

SUFFIX = ".packed"
MAGIC = b"SLIPPACK"
_BLOCK = 1 << 17  # numbers; in half as many, the order by exponents saves less
Stamp = tuple[int, int, int]  # what changes when another file takes a name


@dataclass(frozen=True)
class Description:
    """What a packed file tells about itself."""

    base: str | None  # the name, without suffix, of the file that differences refer to
    header: str  # of the safetensors file
    digest: str  # blake2b of the whole safetensors file
    blocks: list[int]  # bytes of each


@dataclass(frozen=True)
class Block:
    """Neighbouring numbers of one kind."""

    form: TensorForm  # (count,)
    start: int

    @property
    def count(self) -> int:
        """How many values."""
        return self.form.shape[0]

    @property
    def stop(self) -> int:
        """Where the next block starts."""
        return self.start + self.form.bytes


@dataclass(frozen=True)
class Contents:
    """A description, ready to find blocks with."""

    places: Mapping[str, Place]
    base: str | None
    blocks: tuple[Block, ...]
    starts: list[int]  # of the blocks
    packed: list[int]  # where each lies in the packed file, and the end


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
    contents = contents_of(path)
    if contents.base is not None:
        base = beside(path, contents.base)
        if not base.exists():
            raise ValueError(f"{contents.base}, which it is a difference to, is missing")
        places_of(base)
    return contents.places


def in_present_form(path: Path) -> Path:
    """Return the file, or its other form if that is what is there: it may just have been packed."""
    other = path.with_suffix(".safetensors" if path.suffix == SUFFIX else SUFFIX)
    return other if not path.exists() and other.exists() else path


def contents_of(path: Path) -> Contents:
    """Return what a packed file holds; the last ones asked for are kept in memory."""
    return parsed(path, stamp_of(path))


@lru_cache(maxsize=256)
def parsed(path: Path, stamp: Stamp) -> Contents:
    """Return the same; `stamp` is that of the file, which may have been replaced."""
    described = describe(path)
    header = described.header.encode()
    places, _ = parse_header(header)
    blocks = tuple(cut(places, 8 + len(header)))
    packed = list(accumulate(described.blocks, initial=len(MAGIC)))
    return Contents(places, described.base, blocks, [b.start for b in blocks], packed)


def describe(path: Path) -> Description:
    """Read what a packed file tells about itself."""
    with FileIO(path) as file:
        end = file.seek(0, 2) - len(MAGIC) - 8
        file.seek(max(end, 0))
        length, magic = int.from_bytes(file.read(8), "little"), file.read(8)
        if magic != MAGIC or length > end:
            raise ValueError("the file is cut short, or is no packed snapshot")
        file.seek(end - length)
        text = unpack_text(file.read(length))
    return Description(**json.loads(text))


def cut(places: Mapping[str, Place], start: int) -> Iterator[Block]:
    """Cut a safetensors file into blocks, from the byte `start` to the end."""
    stretches: list[tuple[TensorForm, int, int]] = []  # of one kind of numbers, start and stop
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != start:
            raise ValueError(f"the bytes before tensor {name!r} belong to no tensor")
        first = start
        if stretches and stretches[-1][0].dtype_name == place.form.dtype_name:
            first = stretches.pop()[1]
        start = place.stop
        stretches.append((place.form, first, start))
    for form, first, stop in stretches:
        for at in range(first, stop, _BLOCK * form.itemsize):
            count = min(_BLOCK, (stop - at) // form.itemsize)
            yield Block(TensorForm((count,), form.dtype_name), at)


def beside(path: Path, base: str) -> Path:
    """Return the file that `path` is a difference to; plain, if there are both forms."""
    return in_present_form(path.with_name(f"{base}.safetensors"))


def stamp_of(path: Path) -> Stamp:
    """Return what changes when another file takes the name."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
