"""Folders of torch.distributed.checkpoint, read in one process; nothing in them is executed."""

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from slipstream.storage.reading import parsing

METADATA = ".metadata"  # in each such folder
_HERE = "torch.distributed.checkpoint"
# All that a description of tensors is made of. Anything else could run code.
_ALLOWED = {
    *((f"{_HERE}.metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *((f"{_HERE}.metadata", f"{name}StorageMetadata") for name in ("Tensor", "Chunk", "Bytes")),
    *((f"{_HERE}.metadata", name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    (f"{_HERE}.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
}


def read_distributed(
    folder: Path, choose: Callable[[Mapping[str, Any]], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Read weights from a folder that `torch.distributed.checkpoint.save` wrote.

    Args:
        folder: The folder.
        choose: Picks the weights out of the nested state, whose tensors have no values yet.

    Returns:
        The weights that were chosen, whole, by the names that `choose` gave them.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the folder holds code, or is damaged.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with parsing(folder / METADATA, "distributed checkpoint"):
        with (folder / METADATA).open("rb") as file:
            described = _Unpickler(file).load()
        forms = {  # without memory: one number, wherever one looks
            name: torch.empty((), dtype=form.properties.dtype).expand(form.size)
            for name, form in described.state_dict_metadata.items()
            if hasattr(form, "properties")
        }
        paths = {name: (described.planner_data or {}).get(name, (name,)) for name in forms}
        flat = {id(value): name for name, value in forms.items()}
        chosen = choose(_nested({tuple(paths[name]): value for name, value in forms.items()}))
        stored = {info.relative_path for info in described.storage_data.values()}
        if any(Path(name).name != name for name in stored):
            raise ValueError("its files lie outside the folder")
    if missing := sorted(name for name in stored if not (folder / name).is_file()):
        raise FileNotFoundError(f"{folder / missing[0]}, which {METADATA} lists, is missing.")
    names = {name: flat[id(value)] for name, value in chosen.items()}
    shapes = {full: (forms[full].shape, forms[full].dtype) for full in names.values()}
    state = {full: torch.empty(shape, dtype=dtype) for full, (shape, dtype) in shapes.items()}

    class Reader(FileSystemReader):
        def read_metadata(self, *_: Any, **__: Any) -> Any:
            return described

    with parsing(folder / METADATA, "distributed checkpoint"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be
        load(state, storage_reader=Reader(folder), no_dist=True)
    return {name: state[full] for name, full in names.items()}


def _nested(named: Mapping[tuple[Any, ...], Tensor]) -> dict[str, Any]:
    """A state by the paths that lead to its tensors."""
    state: dict[str, Any] = {}
    for path, value in named.items():
        *inner, last = map(str, path)
        place = state
        for key in inner:
            place = place.setdefault(key, {})
        place[last] = value
    return state


class _Unpickler(pickle.Unpickler):
    """Refuses whatever is not plain description."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few things that may be named."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise ValueError(f"it holds {module}.{name}, and loading that could run code")
