"""The safetensors layout, to the byte: eight bytes of length, a JSON header, then the values.

The library writes through a copy of every tensor and reads through page faults; here a tensor
goes straight from its memory to the file, and from the file to where the caller wants it.
"""

import mmap
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from slipstream.storage.reading import open_regular
from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.tensor_header import (
    Place,
    file_order,
    header_of,
    places_in,
    read_places,
)


def tensor_chunks(
    weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file of `weights`, the tensors without a copy.

    Args:
        weights: Tensors on the CPU; those that are not contiguous are copied one at a time.
        metadata: Text to keep in the header.

    Yields:
        The header, then each tensor.

    Raises:
        ValueError: If the format has no code for a dtype.
    """
    forms = {name: TensorForm.of(v) for name, v in weights.items()}
    yield header_of(forms, metadata)
    for name in file_order(forms):
        yield bytes_of(weights[name].detach().contiguous())


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor as bytes to read or to write."""
    tensor = tensor.resolve_conj().resolve_neg()
    return tensor.reshape(-1).view(torch.uint8).numpy().data


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
    with open_regular(path) as file:
        place = places_in(file).get(name)
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


def _map(path: Path) -> mmap.mmap:
    """The file, mapped so that writing changes this process's memory only."""
    with open_regular(path) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _view(mapped: mmap.mmap, place: Place) -> Tensor:
    """A tensor with a storage of its own, so that `torch.save` takes no more than it."""
    form, size = place.form, place.stop - place.start
    if not size:
        return torch.empty(form.shape, dtype=form.dtype)
    if place.start % form.itemsize:  # some other writers do not align
        part = torch.frombuffer(mapped, dtype=torch.uint8, offset=place.start, count=size)
        return part.clone().view(form.dtype).view(form.shape)
    count = size // form.itemsize
    flat = torch.frombuffer(mapped, dtype=form.dtype, offset=place.start, count=count)
    return flat.view(form.shape)


def _fill(file: FileIO, out: memoryview) -> None:
    while len(out):  # the system may hand out a large read in parts
        if not (count := file.readinto(out)):
            raise ValueError("the file is cut short")
        out = out[count:]
