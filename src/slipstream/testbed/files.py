"""Readers of MNIST and CIFAR-10 in the layouts they are distributed in."""

import gzip
import io
import math
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

# What pickled arrays call. numpy moved the first two between versions: ask an array for them.
_NUMPY: dict[str, Any] = {
    "_reconstruct": np.empty(0).__reduce__()[0],
    "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


@dataclass(frozen=True)
class Raw:
    """Images and labels as the files hold them."""

    images: np.ndarray  # uint8, (examples, channels, height, width)
    labels: np.ndarray  # int64, (examples,)


def read_mnist(folder: str | Path) -> tuple[Raw, Raw]:
    """Read MNIST's idx files, as they are or gzipped.

    Args:
        folder: Holds the four files, itself or in `raw` or `MNIST/raw`.

    Returns:
        The training and the test part.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not an idx file, or images and labels differ in number.
    """

    def part(name: str) -> Raw:
        images = _idx(folder, f"{name}-images-idx3-ubyte", axes=3)
        labels = _idx(folder, f"{name}-labels-idx1-ubyte", axes=1)
        if len(images) != len(labels):
            raise ValueError(
                f"{folder} holds {len(images)} {name} images, but {len(labels)} labels."
            )
        return Raw(images[:, None], labels.astype(np.int64))

    return part("train"), part("t10k")


def read_cifar10(folder: str | Path) -> tuple[Raw, Raw]:
    """Read CIFAR-10's Python batches, from the folder or the archive they come in.

    The batches are pickles; only arrays, dictionaries, lists, text and numbers are taken from
    them, whatever else they say is refused.

    Args:
        folder: Holds `cifar-10-batches-py` or `cifar-10-python.tar.gz`, or is the former.

    Returns:
        The training and the test part.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a batch holds anything unexpected.
    """
    read = _cifar10_reader(Path(folder))
    batches = [_cifar10_batch(f"data_batch_{number}", read) for number in range(1, 6)]
    train = Raw(
        np.concatenate([batch.images for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
    )
    return train, _cifar10_batch("test_batch", read)


def _idx(folder: str | Path, name: str, *, axes: int) -> np.ndarray:
    """One array of bytes: two zeros, 8 for uint8, the number of axes, their sizes, the values."""
    places = [Path(folder, *inner) for inner in ((), ("raw",), ("MNIST", "raw"))]
    paths = [place / (name + ending) for place in places for ending in ("", ".gz")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        missing(folder, f"{name}[.gz] in it, in raw or in MNIST/raw")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a gzip file, or is cut short: {error}.") from error
    sizes = [int.from_bytes(data[4 * axis + 4 : 4 * axis + 8], "big") for axis in range(axes)]
    values = np.frombuffer(data[4 + 4 * axes :], np.uint8)
    if data[:4] != bytes((0, 0, 8, axes)) or len(values) != math.prod(sizes):
        raise ValueError(f"{path} is not an idx file of {axes} axes of bytes, or is cut short.")
    return values.reshape(sizes)


def _cifar10_reader(folder: Path) -> Callable[[str], bytes]:
    """A function from the name of a batch to its bytes."""
    inner, archive = "cifar-10-batches-py", folder / "cifar-10-python.tar.gz"
    for place in (folder / inner, folder):
        if (place / "data_batch_1").is_file():
            return lambda name: (place / name).read_bytes()
    if not archive.is_file():
        missing(folder, f"{inner}/data_batch_1 or {archive.name} in it")
    with tarfile.open(archive) as tar:
        members = {Path(m.name).name: tar.extractfile(m) for m in tar.getmembers() if m.isfile()}
        contents = {name: file.read() for name, file in members.items() if file is not None}
    return contents.__getitem__


def _cifar10_batch(name: str, read: Callable[[str], bytes]) -> Raw:
    try:
        content = _Unpickler(io.BytesIO(read(name)), encoding="latin1").load()
        images, labels = content["data"], np.asarray(content["labels"], np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{name} is not a batch of CIFAR-10 as published: {error!r}.") from error
    if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
        raise ValueError(
            f"The images of {name} must be {len(labels)} x 3072 uint8 values, "
            f"got {images.dtype} of shape {images.shape}."
        )
    return Raw(images.reshape(-1, 3, 32, 32), labels)


class _Unpickler(pickle.Unpickler):
    """Builds numpy arrays and plain Python values, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("_codecs", "encode"):  # how old protocols spell bytes
            return lambda text, encoding: text.encode("latin1")
        raise ValueError(f"A CIFAR-10 batch wants to call {module}.{name}: refused.")


def missing(folder: str | Path, expected: str) -> NoReturn:
    """Raise with what was expected and what is there."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}.")
    found = sorted(path.name for path in Path(folder).iterdir())
    listed = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
    raise FileNotFoundError(f"{folder} lacks {expected}; it holds {listed or 'nothing'}.")
