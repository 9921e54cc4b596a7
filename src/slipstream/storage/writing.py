"""The one way files are written: each is there whole, or not at all, even if the power fails."""

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from safetensors import SafetensorError

TEMPORARY = ".tmp"  # ends the name of a file that is not whole yet


def write_whole(path: Path, chunks: Iterable[bytes | memoryview]) -> int:
    """Write a file so that it is there whole or not at all, even if the power fails.

    Args:
        path: Where to.
        chunks: Its bytes.

    Returns:
        Its size.

    Raises:
        OSError: If the disk is full or fails; what was there before is still there.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            size = sum(file.write(chunk) for chunk in chunks)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:  # of a write: it names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    flush_folder(path.parent)
    return size


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Write a file under another name, and give it its own when the `with` block is done.

    Args:
        path: The file's own name.

    Yields:
        The name to write to.

    Raises:
        OSError: If the disk is full or fails; nothing is left behind.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())  # else the name may outlive the content when the power fails
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written: {error}. The stages before it are whole: make room, "
            "then resume the transfer."
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, so that they survive a power cut."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Flush the names in a folder to disk, where the system opens folders: Windows does not."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_flushed(file: FileIO, text: bytes) -> None:
    """Write all of `text` at the file's position, and flush it to disk."""
    left = memoryview(text)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())
