"""The safetensors layout, to the byte: eight bytes of length, a JSON header, then the numbers.

The library writes through a copy of every tensor and reads through page faults; here a tensor
goes straight from its memory to the file, and from the file to where the caller wants it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from slipstream.storage.tensor_form import TensorForm

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes, as in the library: a longer one is a damaged file


@dataclass(frozen=True)
class Place:
    """Where in its file a tensor lies."""

    form: TensorForm
    start: int  # bytes from the start of the file
    stop: int


def tensor_chunks(weights: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file of `weights`, the tensors without a copy.

    Args:
        weights: Tensors on the CPU; those that are not contiguous are copied one at a time.

    Yields:
        The header, then each tensor.

    Raises:
        ValueError: If the format has no code for a dtype.
    """
    forms = {name: TensorForm(tuple(v.shape), v.dtype) for name, v in weights.items()}
    yield header_of(forms)
    for name in file_order(forms):
        yield bytes_of(weights[name].detach().contiguous())


def file_order(forms: Mapping[str, TensorForm]) -> list[str]:
    """Return in which order tensors lie in a file: wide numbers first, so that all are aligned."""
    return sorted(forms, key=lambda name: -forms[name].dtype.itemsize)


def header_of(forms: Mapping[str, TensorForm]) -> bytes:
    """Return what a safetensors file of such tensors begins with.

    Args:
        forms: Shape and dtype of every tensor.

    Returns:
        The length and the header; the tensors follow in `file_order`.

    Raises:
        ValueError: If the format has no code for a dtype.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in file_order(forms):
        form = forms[name]
        if form.dtype not in _CODES:
            raise ValueError(f"Tensor {name!r} is {form.dtype}, which safetensors cannot hold.")
        start, end = end, end + form.bytes
        header[name] = {
            "dtype": _CODES[form.dtype],
            "shape": list(form.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor as bytes to read or to write."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_places(path: Path) -> Mapping[str, Place]:
    """Return where each tensor of a safetensors file lies, without reading the tensors.

    Args:
        path: The file.

    Returns:
        The places by name, in the order of the file.

    Raises:
        OSError: If the file is missing.
        ValueError: If it is cut short or is no safetensors file.
    """
    with FileIO(path) as file:
        return _places(file)


def read_tensor(path: Path, name: str, out: Tensor, *, form: TensorForm, start: int = 0) -> None:
    """Read one tensor of a file into `out`; only the header and its own bytes are touched.

    Args:
        path: A safetensors file.
        name: Which tensor.
        out: Receives the numbers, as many as it holds; contiguous, of the same dtype.
        form: What the file should hold.
        start: The first number of the flattened tensor to read.

    Raises:
        OSError: If the file is missing.
        ValueError: If the file is damaged, lacks the tensor, or holds it in another form.
    """
    with FileIO(path) as file:
        place = _places(file).get(name)
        if place is None or place.form != form:
            came = "is missing" if place is None else f"is {place.form}"
            raise ValueError(f"tensor {name!r} {came}, expected {form}")
        file.seek(place.start + start * out.itemsize)
        _fill(file, bytes_of(out))


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, mapped into memory: a page is read when it is touched.

    Args:
        path: A safetensors file.

    Returns:
        Name to tensor; writing to one changes the memory, never the file.

    Raises:
        OSError: If the file is missing.
        ValueError: If it is damaged.
    """
    mapped = _map(path)
    return {name: _view(mapped, place) for name, place in read_places(path).items()}


def map_tensor(path: Path, name: str) -> Tensor:
    """Return one tensor of a file, mapped into memory until nobody holds it."""
    return _view(_map(path), read_places(path)[name])


def _map(path: Path) -> Tensor:
    return torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)


def _view(mapped: Tensor, place: Place) -> Tensor:
    part = mapped[place.start : place.stop]
    if place.start % place.form.dtype.itemsize:  # some other writers do not align
        part = part.clone()
    return part.view(place.form.dtype).view(place.form.shape)


def read_header(path: Path) -> bytes:
    """Return the header of a safetensors file as it stands there, without its length."""
    with FileIO(path) as file:
        return _header(file)


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
        for name, entry in json.loads(text).items():
            if name == "__metadata__":
                continue
            form = TensorForm(tuple(entry["shape"]), _DTYPES[entry["dtype"]])
            start, stop = (base + offset for offset in entry["data_offsets"])
            if stop - start != form.bytes:
                raise ValueError(f"{name!r} {form} does not take {stop - start} bytes")
            places[name] = Place(form, start, stop)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the header of the file is damaged: {error}") from error
    return MappingProxyType(places), max((p.stop for p in places.values()), default=base)


def _header(file: FileIO) -> bytes:
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _LONGEST_HEADER):
        raise ValueError("the file is cut short, or is no safetensors file")
    return file.read(length)


def _places(file: FileIO) -> Mapping[str, Place]:
    places, end = parse_header(_header(file))
    if end != (size := file.seek(0, 2)):
        raise ValueError(f"the file is damaged: it has {size} bytes, its header lists {end}")
    return places


def _fill(file: FileIO, out: memoryview) -> None:
    while len(out):  # the system may hand out a large read in parts
        if not (count := file.readinto(out)):
            raise ValueError("the file is cut short")
        out = out[count:]
