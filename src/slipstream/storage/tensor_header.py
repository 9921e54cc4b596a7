"""The header of a safetensors file: what it holds and where, read without torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slipstream.storage.reading import open_regular
from slipstream.storage.strict_json import read_json
from slipstream.storage.tensor_form import TensorForm

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes, as in the library: a longer one is a damaged file


@dataclass(frozen=True)
class Place:
    """Where in its file a tensor lies."""

    form: TensorForm
    start: int  # bytes from the start of the file
    stop: int


def file_order(forms: Mapping[str, TensorForm]) -> list[str]:
    """Return in which order tensors lie in a file: wide numbers first, so that all are aligned."""
    return sorted(forms, key=lambda name: -forms[name].itemsize)


def header_of(forms: Mapping[str, TensorForm], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return what a safetensors file of such tensors begins with.

    Args:
        forms: Shape and dtype of every tensor.
        metadata: Text to keep with them.

    Returns:
        The length and the header; the tensors follow in `file_order`.

    Raises:
        ValueError: If the format has no code for a dtype.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in file_order(forms):
        form = forms[name]
        if name == "__metadata__":
            raise ValueError("No tensor can be named __metadata__ in a safetensors file.")
        if form.dtype_name not in _CODES:
            raise ValueError(f"Tensor {name!r} is {form}, which safetensors cannot hold.")
        start, end = end, end + form.bytes
        header[name] = {
            "dtype": _CODES[form.dtype_name],
            "shape": list(form.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_places(path: Path) -> Mapping[str, Place]:
    """Return where each tensor of a safetensors file lies, without reading the tensors.

    Args:
        path: The file.

    Returns:
        The places by name, in the order of the file.

    Raises:
        OSError: If the file is missing.
        ValueError: If it is cut short or is not a safetensors file.
    """
    with open_regular(path) as file:
        return places_in(file)


def read_header(path: Path) -> bytes:
    """Return the header of a safetensors file as it stands there, without its length."""
    with open_regular(path) as file:
        return header_in(file)


@lru_cache(maxsize=64)
def parse_header(text: bytes) -> tuple[Mapping[str, Place], int]:
    """Return the places a header lists, and where the last ends; one run repeats the same header.

    Args:
        text: What `read_header` returns.

    Returns:
        The places by name, and the size of the file.

    Raises:
        ValueError: If it is damaged.
    """
    base = 8 + len(text)
    places: dict[str, Place] = {}
    try:
        for name, entry in read_json(text).items():
            if name == "__metadata__":
                _check_metadata(entry)
            else:
                places[name] = _place(name, entry, base)
        end = _end(places, base)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        kind = "cannot be read" if "not known here" in str(error) else "is damaged"
        raise ValueError(f"the header of the file {kind}: {error}") from error
    return MappingProxyType(places), end


def _place(name: str, entry: Mapping[str, Any], base: int) -> Place:
    shape, offsets = entry["shape"], entry["data_offsets"]
    if set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} has entries that the format does not know")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has a shape or offsets that are not whole numbers from 0 on")
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name!r} has the dtype {entry['dtype']}, which is not known here")
    form = TensorForm(tuple(shape), _DTYPES[entry["dtype"]])
    start, stop = offsets
    if stop - start != form.bytes:
        raise ValueError(f"{name!r} {form} does not take {stop - start} bytes")
    return Place(form, base + start, base + stop)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_metadata(entry: Any) -> None:
    if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
        raise ValueError("__metadata__ must hold texts by name")


def _end(places: Mapping[str, Place], base: int) -> int:
    """Where the last tensor ends; they lie one after the other, without holes."""
    end = base
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != end:
            raise ValueError(f"{name!r} overlaps another tensor, or lies behind a hole")
        end = place.stop
    return end


def header_in(file: FileIO) -> bytes:
    """Return the header of an open file, without its length."""
    size = file.seek(0, 2)
    if size < 8:
        raise ValueError("the file is cut short, or is not a safetensors file")
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _LONGEST_HEADER):
        raise ValueError("the file is cut short, or is not a safetensors file")
    return file.read(length)


def places_in(file: FileIO) -> Mapping[str, Place]:
    """Return where each tensor of an open file lies, and check its size."""
    places, end = parse_header(header_in(file))
    if end != (size := file.seek(0, 2)):
        raise ValueError(f"the file is damaged: it has {size} bytes, its header lists {end}")
    return places
