"""Run folders on other file systems, by fsspec: each file is fetched when it is read."""

import errno
import re
import shutil
import tempfile
import weakref
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from slipstream.storage.packed_header import SUFFIX as PACKED
from slipstream.storage.packed_header import contents_of

# `Path` makes one slash of the two in an address.
_ADDRESS = re.compile(r"((?:\w[\w.+-]+::)*\w[\w.+-]+:/)(/?)", re.ASCII)
_BESIDE = (".safetensors", PACKED)


def address_of(path: str | Path) -> str | None:
    """Return the address that a path is, with both slashes, or None if it is a local path.

    Example:
        >>> address_of(Path("s3://bucket/run")), address_of("run")
        ('s3://bucket/run', None)
    """
    text = str(path)
    found = _ADDRESS.match(text)
    if found is None or (not found[2] and Path(path).exists()):
        return None
    return f"{found[1]}/{text[found.end() :]}"


def refuse_address(path: str | Path) -> None:
    """Raise if a path that is to be written to is an address."""
    if (address := address_of(path)) is not None:
        raise ValueError(
            f"{address} cannot be written to: record into a local folder, and upload each snapshot "
            "with recorder.call_after(upload)."
        )


class RemoteFolder:
    """A folder of another file system, with a local copy of what was read."""

    def __init__(self, address: str) -> None:
        """Find the file system.

        Args:
            address: Such as "s3://bucket/run"; "simplecache::s3://..." keeps files for other
                processes, as fsspec says.

        Raises:
            ModuleNotFoundError: If fsspec, or its module for this kind of address, is missing.
            ValueError: If the kind of address is unknown.
        """
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise ModuleNotFoundError(
                'Other file systems need fsspec: pip install "slipstream[fsspec]".'
            ) from error
        self.address = address.rstrip("/")
        try:
            self._files, self._root = url_to_fs(self.address)
        except ImportError as error:
            raise ModuleNotFoundError(f"{address} needs another package: {error}.") from error
        except ValueError as error:
            raise ValueError(f"{address} cannot be opened: {error}.") from error
        held = tempfile.mkdtemp(prefix="slipstream-")
        weakref.finalize(self, shutil.rmtree, held, ignore_errors=True)
        self.path = Path(held) / Path(self._root).name
        self.path.mkdir()

    def fetch(self, file: Path) -> Path:
        """Copy a file, unless it is here, and those that a packed one is a difference to.

        Args:
            file: Its place in the local copy.

        Returns:
            The same.

        Raises:
            FileNotFoundError: If there is no such file.
            OSError: If the file system does not answer.
        """
        asked = file
        self._fetch(file)
        while file.suffix == PACKED and (base := contents_of(file).base) is not None:
            choices = [file.with_name(base + suffix) for suffix in _BESIDE]
            file = next((one for one in choices if one.exists() or self._has(one)), choices[0])
            self._fetch(file)
        return asked

    def names(self) -> list[str]:
        """Return the files in the folder and below it, by their paths in it."""
        with self._asking(self._root):
            found = self._files.find(self._root)
        root = self._root.strip("/") + "/"
        return [name.lstrip("/").removeprefix(root) for name in found]

    def size(self, names: Iterable[str]) -> int:
        """Return the bytes of some files together."""
        with self._asking(self._root):
            return sum(self._files.size(f"{self._root.rstrip('/')}/{name}") for name in names)

    def _fetch(self, file: Path) -> None:
        if file.exists():
            return
        there = self._place(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.tmp")
        with self._asking(there):
            self._files.get_file(there, str(partial))
        partial.replace(file)

    def _has(self, file: Path) -> bool:
        with self._asking(self._place(file)):
            return bool(self._files.exists(self._place(file)))

    def _place(self, file: Path) -> str:
        """Where a file of the local copy, or one in a folder beside it, comes from."""
        beside = file.resolve().relative_to(self.path.parent.resolve())
        return f"{self._root.rstrip('/').rpartition('/')[0]}/{beside.as_posix()}"

    @contextmanager
    def _asking(self, what: str) -> Generator[None]:
        """Errors of all kinds of file systems in one form."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, f"not found on {self.address}", what) from error
        except Exception as error:
            said, *_ = str(error).splitlines() or [type(error).__name__]
            raise OSError(
                errno.EIO, f"{self.address} does not answer ({type(error).__name__}: {said})"
            ) from error
