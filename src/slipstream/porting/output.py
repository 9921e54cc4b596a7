"""Write a ported model as the other base is written: tensor by tensor, whole or not at all."""

import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from slipstream.porting.stored import Stored
from slipstream.storage.tensor_file import bytes_of
from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.tensor_header import file_order, header_of

REPORT = "port.json"


@contextmanager
def whole_output(out: Path) -> Generator[Path]:
    """Write a folder or a file under another name, and give it its own when the block is done.

    Args:
        out: Its own name; nothing may be there.

    Yields:
        The name to write to. It is removed if the block raises.

    Raises:
        FileExistsError: If something is at `out` already.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already and is not overwritten: give another out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.rename(out)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def write_like(
    base: Stored, out: Path, tensor: Callable[[str], Tensor], *, wrote: Callable[[str], None]
) -> None:
    """Write tensors into the files that a base has, and copy what else is in its folder.

    Args:
        base: Gives files, names and dtypes.
        out: A new folder, or a new file if the base is one.
        tensor: Makes a tensor; only one is held at a time.
        wrote: Called after each tensor.
    """
    if not base.is_folder:
        (names,) = base.files.values()
        write_tensors(out, {n: base.forms[n] for n in names}, tensor, wrote=wrote)
        return
    copy_others(base, out)
    pickled = any(not name.endswith(".safetensors") for name in base.files)
    files = {"model.safetensors": tuple(base.forms)} if pickled else base.files
    for file, names in files.items():
        write_tensors(out / file, {n: base.forms[n] for n in names}, tensor, wrote=wrote)


def write_tensors(
    path: Path,
    forms: Mapping[str, TensorForm],
    tensor: Callable[[str], Tensor],
    *,
    wrote: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a safetensors file without ever holding two of its tensors.

    Args:
        path: The file.
        forms: Shape and dtype of every tensor.
        tensor: Makes a tensor of that form.
        wrote: Called after each tensor.
    """
    with path.open("wb") as file:
        file.write(header_of(forms))
        for name in file_order(forms):
            file.write(bytes_of(tensor(name).detach().contiguous()))
            wrote(name)
        file.flush()
        os.fsync(file.fileno())


def copy_others(base: Stored, out: Path) -> None:
    """Make a folder with what is no weights in a base's: configuration, tokenizer, index."""
    out.mkdir()
    for path in sorted(base.path.iterdir()):
        weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
        index_of_pickles = path.name.endswith(".bin.index.json")
        if path.is_file() and not weights and not index_of_pickles and path.name != REPORT:
            shutil.copy2(path, out / path.name)
