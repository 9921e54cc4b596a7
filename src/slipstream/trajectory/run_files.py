"""What the files of a run folder mean, and how they are read.

    RUN/run.json           what the run is: written once
    RUN/snapshots.jsonl    the index, a line for each snapshot, written after the snapshot is whole
    RUN/snapshots/         00000200.safetensors is the snapshot of step 200; packed, 00000200.packed

The index is the truth: what it does not list is not there. While the run is being written, there
is also a file `.lock`.
"""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from slipstream.storage.packed_header import SUFFIX, Stamp, in_present_form, stamp_of
from slipstream.storage.pieces import Piece, pieces_of, read_pieces, whole_form
from slipstream.storage.strict_json import Checksum, checked_json, read_checked_json
from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.writing import write_whole
from slipstream.trajectory.layout import Layout
from slipstream.trajectory.remote import RemoteFolder, address_of
from slipstream.trajectory.run_index import INDEX, Entry, entries_of, lines_in
from slipstream.trajectory.run_lock import is_locked

if TYPE_CHECKING:
    from torch import Tensor

FORMAT, PACKED_FORMAT = 1, 2  # the second if any snapshot is packed
DESCRIPTION, SNAPSHOTS = "run.json", "snapshots"
Value = TypeVar("Value")


@dataclass(frozen=True)
class RunFolder:
    """What a run folder held when it was opened."""

    path: Path
    description: Mapping[str, Any]  # run.json
    layout: Layout
    entries: tuple[Entry, ...]
    remote: RemoteFolder | None = None  # where the files come from, if not from this machine

    def snapshot(self, entry: Entry) -> "StoredSnapshot":
        """Return what reads the snapshot of `entry`."""
        outside = [name for name in entry.files if not self._may_read(name)]
        if outside:
            raise OSError(
                f"The snapshot of step {entry.step} lies outside the run, in {outside[0]}, which "
                "the run does not say it was linked from."
            )
        files = tuple(self.path / name for name in entry.files)
        return StoredSnapshot(
            entry.step, files, self.layout, entry.prefix, entry.checksums, self.remote
        )

    def _may_read(self, name: str) -> bool:
        """Whether a file is the run's own, or below a folder that it was linked from."""
        parts = Path(name).parts
        if parts[:1] == (SNAPSHOTS,) and ".." not in parts:
            return True
        provenance = self.description.get("provenance") or {}
        linked = list(provenance.get("linked", ()))
        if source := provenance.get("imported", {}).get("source"):  # version 0.1 recorded only this
            linked += [source, f"../{Path(source).name}"]
        file = _absolute(self.path, name)
        return any(file.is_relative_to(_absolute(self.path, folder)) for folder in linked)


@dataclass(frozen=True)
class StoredSnapshot:
    """Reads one snapshot, from one file or several shards."""

    step: int
    files: tuple[Path, ...]
    layout: Layout
    prefix: str = ""  # stands before every name in the files; what lacks it is left out
    checksums: tuple[str, ...] = ()  # CRC-32 of each file, if known
    remote: RemoteFolder | None = None  # where the files are fetched from before they are read

    def weights(self) -> "dict[str, Tensor]":
        """Return all tensors, mapped into memory or unpacked, after a look at the checksum."""
        import torch

        from slipstream.storage.packed_file import unpack_tensors
        from slipstream.storage.tensor_file import map_tensors

        found: dict[str, Tensor] = {}
        for number, path in enumerate(map(self._present, self.files)):
            with self._reading(path):
                self._verify(number, path)
                found |= self._own(unpack_tensors(path) if _packed(path) else map_tensors(path))
        for name in self._cut:
            form = self.layout.tensors[name]
            found[name] = torch.empty(form.shape, dtype=form.dtype)
            self.read_into(name, found[name])
        with self._reading(self.files[0]):
            return self.layout.untie(found, where=f"step {self.step}")

    def read_into(self, name: str, out: "Tensor", start: int = 0) -> None:
        """Read one tensor, or a stretch of it, into `out`, touching only its bytes."""
        form = self.layout.tensors[name]
        if name in (cut := self._cut):
            with self._reading(self.files[0]):
                if cut[name] != form:
                    raise ValueError(f"tensor {name!r} is {cut[name]} in all, expected {form}")
            read = partial(self._read_piece, name)
            read_pieces(self._pieces[name], out, shape=form.shape, start=start, read=read)
            return
        path = self.files[0]
        if len(self.files) > 1 and name in self._pieces:
            path = self._pieces[name][0].path
        self._read(path, name, out, form, start)

    def _read_piece(self, name: str, piece: Piece, out: "Tensor", start: int) -> None:
        self._read(piece.path, name, out, piece.form, start)

    def _read(self, path: Path, name: str, out: "Tensor", form: TensorForm, start: int) -> None:
        from slipstream.storage.packed_file import read_packed
        from slipstream.storage.tensor_file import read_tensor

        path = self._present(path)
        with self._reading(path):
            read = read_packed if _packed(path) else read_tensor
            read(path, self.prefix + name, out, form=form, start=start)

    def forms(self) -> dict[str, TensorForm]:
        """Return the shapes and dtypes of what the files hold; only their headers are read."""
        found = self._pieces
        with self._reading(self.files[0]):
            return {name: whole_form(name, pieces) for name, pieces in found.items()}

    def verify(self) -> None:
        """Raise an OSError if a file is not what was written, to the bit."""
        for number, path in enumerate(map(self._present, self.files)):
            with self._reading(path):
                self._verify(number, path)

    def _present(self, path: Path) -> Path:
        """The file in the form that it has now, fetched if it lies elsewhere."""
        if self.remote is None:
            return in_present_form(path)
        with self._reading(path):
            return self.remote.fetch(path)

    def _verify(self, number: int, path: Path) -> None:
        listed = self.checksums and path == self.files[number]  # else it was packed meanwhile
        if listed and _checksum(path, stamp_of(path)) != self.checksums[number]:
            raise ValueError("it is damaged, its checksum differs from what was written")

    @cached_property
    def _pieces(self) -> dict[str, list[Piece]]:
        found: dict[str, list[Piece]] = {}
        for path in map(self._present, self.files):
            with self._reading(path):
                for name, piece in self._own(pieces_of(path)).items():
                    found.setdefault(name, []).append(piece)
        return found

    @cached_property
    def _cut(self) -> dict[str, TensorForm]:
        """The tensors that several files hold pieces of, as they are put together."""
        if len(self.files) == 1:
            return {}
        found = self._pieces
        with self._reading(self.files[0]):
            return {n: whole_form(n, p) for n, p in found.items() if len(p) > 1}

    def _own(self, stored: Mapping[str, Value]) -> dict[str, Value]:
        """What belongs to the layout, under the names of the layout."""
        named = {
            n.removeprefix(self.prefix): v for n, v in stored.items() if n.startswith(self.prefix)
        }
        return {name: value for name, value in named.items() if name not in self.layout.aliases}

    @contextmanager
    def _reading(self, path: Path) -> Generator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise OSError(
                f"The snapshot of step {self.step} cannot be read: {path}: {reason}."
            ) from error


def run_folders_in(folder: str | Path) -> list[Path]:
    """Return the run folders in a folder, by name; none if it is something else."""
    return sorted(file.parent for file in Path(folder).glob(f"*/{DESCRIPTION}"))


def read_run(path: str | Path) -> RunFolder:
    """Read what a run folder lists; no snapshot is opened.

    Args:
        path: A run folder, which may be being written; or its address on another file system, such
            as "s3://bucket/run", by fsspec.

    Returns:
        The description, the layout and the entries of the index.

    Raises:
        FileNotFoundError: If it is not a run folder.
        ValueError: If the run is of a newer format or its text is damaged.
    """
    address = address_of(path)
    remote = None if address is None else RemoteFolder(address)
    folder = Path(path) if remote is None else remote.path
    if remote is not None:
        for name in sorted({DESCRIPTION, INDEX} & set(remote.names())):
            remote.fetch(folder / name)
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(f"{address or path} is not a run folder: it has no {DESCRIPTION}.")
    try:
        description = read_checked_json((folder / DESCRIPTION).read_bytes())
        _check_kinds(description)
        if description["format"] > PACKED_FORMAT:
            raise ValueError(f"its format {description['format']} is newer than {PACKED_FORMAT}")
        layout = Layout.from_json(description["model"])
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder / DESCRIPTION} cannot be read: {error}.") from error
    try:
        entries = entries_of(lines_in(folder))
    except ValueError as error:
        where = "" if str(error).startswith("Line ") else f"{folder / INDEX}: "
        raise ValueError(f"{where}{error}") from error
    return RunFolder(folder, description, layout, entries, remote)


def _check_kinds(description: dict[str, Any]) -> None:
    """Refuse what no recorder writes, so that whoever reads `run.json` need not ask."""
    kinds = {"configuration": dict, "provenance": dict, "companions": list}
    provenance = description.setdefault("provenance", {})
    description.setdefault("configuration", {})
    if type(description["format"]) is not int:
        raise ValueError("format is not a whole number")
    for name, kind in kinds.items():
        if not isinstance(description.get(name, kind()), kind):
            raise ValueError(f"{name} is not a {'table' if kind is dict else 'list'}")
    linked = provenance.get("linked", [])
    imported = provenance.get("imported", {})
    if not isinstance(linked, list) or not isinstance(imported, dict):
        raise ValueError("provenance has no list of folders that snapshots are linked from")
    if not all(isinstance(text, str) for text in (*linked, imported.get("source") or "")):
        raise ValueError("provenance names a folder by something else than a text")


def rewrite_description(path: Path, **changed: object) -> None:
    """Replace some values of a run's description, all at once."""
    description = read_checked_json((path / DESCRIPTION).read_bytes()) | changed
    write_whole(path / DESCRIPTION, [checked_json(description, indent=1)])


def check_run(path: str | Path, *, values: bool = True) -> list[str]:
    """Return what is wrong with a run folder, a sentence each; nothing if it is whole.

    Args:
        path: A run folder.
        values: Whether to read all files and compare them with their checksums; otherwise headers
            and sizes only, as in runs of version 0.1, which have no checksums.

    Returns:
        Missing, damaged and misfitting snapshots.
    """
    run = read_run(path)
    problems = []
    for entry in run.entries:
        try:
            snapshot = run.snapshot(entry)
            run.layout.check(snapshot.forms(), where=f"step {entry.step}")
            if values:
                snapshot.verify()
        except (OSError, ValueError) as error:
            problems.append(str(error))
    listed = {file for entry in run.entries for file in entry.files}
    for file in sorted((run.path / SNAPSHOTS).glob("*")):
        if f"{SNAPSHOTS}/{file.name}" not in listed:
            problems.append(f"{file} is not in the index: its writing was broken off, it may go.")
    return problems


def is_being_written(path: str | Path) -> bool:
    """Return whether a recorder has a run open, without touching its lock.

    Args:
        path: A run folder.

    Returns:
        On Linux, whether a process on this machine holds the lock. Elsewhere, whether there is
        one, and the run has grown within the last minute.
    """
    try:
        grown = (Path(path) / INDEX).stat().st_mtime
    except OSError:
        return False
    return is_locked(Path(path), last_change=grown)


def _packed(path: Path) -> bool:
    return path.suffix == SUFFIX


def _absolute(folder: Path, name: str) -> Path:
    return Path(os.path.normpath(folder.absolute() / name))


@lru_cache(maxsize=4096)
def _checksum(path: Path, stamp: Stamp) -> str:
    """Of a file as it is now: a run that is read again and again is verified once."""
    return Checksum.of_file(path)
