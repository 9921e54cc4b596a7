"""What a packed safetensors file holds and where, read without torch; see `packed_file`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from slipstream.storage.reading import open_regular
from slipstream.storage.strict_json import read_json
from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.tensor_header import Place, parse_header, read_places
from slipstream.storage.zstd_text import unpack_text

SUFFIX = ".packed"
MAGIC = b"SLIPPACK"
_BLOCK = 1 << 17  # numbers; in half as many, the order by exponents saves less
_NAME = re.compile(r"[\w-]+", re.ASCII)
LONGEST_CHAIN = 256  # files that are differences to each other
Stamp = tuple[int, int, int]  # what changes when another file takes a name


@dataclass(frozen=True)
class Description:
    """What the header of a packed file says."""

    base: str | None  # the name, without suffix, of the file that differences refer to
    header: str  # of the safetensors file
    digest: str  # blake2b of the whole safetensors file
    blocks: list[int]  # bytes of each


@dataclass(frozen=True)
class PackedBlock:
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
    blocks: tuple[PackedBlock, ...]
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
    for file in chain_of(path):
        contents_of(file) if file.suffix == SUFFIX else read_places(file)
    return contents_of(path).places


def chain_of(path: Path) -> list[Path]:
    """Return the files that a packed file is a difference to, one after the other, and itself.

    Raises:
        ValueError: If one is missing, or they are differences to each other in a circle.
    """
    chain = [path]
    while chain[-1].suffix == SUFFIX and (base := contents_of(chain[-1]).base) is not None:
        file = file_beside(chain[-1], base)
        if not file.exists():
            raise ValueError(f"{base}, which it is a difference to, is missing")
        if file in chain:
            raise ValueError(f"{base}, which it is a difference to, is a difference to it")
        if len(chain) > LONGEST_CHAIN:
            raise ValueError(f"it is a difference to more than {LONGEST_CHAIN} files in a row")
        chain.append(file)
    return chain


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
    # One more than expected is enough: a hostile header can claim endless blocks.
    blocks = tuple(islice(cut(places, 8 + len(header)), len(described.blocks) + 1))
    if len(blocks) != len(described.blocks):
        raise ValueError("the file is damaged: it has not the blocks that its tensors take")
    packed = list(accumulate(described.blocks, initial=len(MAGIC)))
    if packed[-1] > path.stat().st_size:
        raise ValueError("the file is cut short")
    return Contents(places, described.base, blocks, [b.start for b in blocks], packed)


def describe(path: Path) -> Description:
    """Read the header of a packed file."""
    with open_regular(path) as file:
        end = file.seek(0, 2) - len(MAGIC) - 8
        file.seek(max(end, 0))
        length, magic = int.from_bytes(file.read(8), "little"), file.read(8)
        if magic != MAGIC or length > end:
            raise ValueError("the file is cut short, or is not a packed snapshot")
        file.seek(end - length)
        text = unpack_text(file.read(length))
    return _description(read_json(text), path)


def _description(given: Any, path: Path) -> Description:
    """Checked before anything is done by it: the file may come from anywhere."""
    if not isinstance(given, dict) or set(given) != {field.name for field in fields(Description)}:
        raise ValueError("the file is damaged: its description has other entries")
    described = Description(**given)
    base, blocks = described.base, described.blocks
    if not isinstance(described.header, str) or not isinstance(described.digest, str):
        raise ValueError("the file is damaged: its description holds no header or digest")
    if not isinstance(blocks, list) or not all(type(size) is int and size > 0 for size in blocks):
        raise ValueError("the file is damaged: blocks must be a list of sizes")
    if base is not None and (not isinstance(base, str) or not _NAME.fullmatch(base)):
        raise ValueError("the file is damaged: its base is not a file beside it")
    if base == path.stem:
        raise ValueError("the file is damaged: it is a difference to itself")
    return described


def cut(places: Mapping[str, Place], start: int) -> Iterator[PackedBlock]:
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
            yield PackedBlock(TensorForm((count,), form.dtype_name), at)


def file_beside(path: Path, base: str) -> Path:
    """Return the file that `path` is a difference to; plain, if there are both forms."""
    return in_present_form(path.with_name(f"{base}.safetensors"))


def stamp_of(path: Path) -> Stamp:
    """Return what changes when another file takes the name."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
