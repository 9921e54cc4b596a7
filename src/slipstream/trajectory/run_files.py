"""What the files of a run folder mean, and how they are read.

    RUN/run.json           what the run is: written once
    RUN/snapshots.jsonl    the index, a line for each snapshot, written after the snapshot is whole
    RUN/snapshots/         00000200.safetensors is the snapshot of step 200; packed, 00000200.packed

The index is the truth: what it does not list is not there.
"""

import json
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from slipstream.storage.packed_header import SUFFIX, in_present_form, places_of
from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.tensor_header import Place
from slipstream.storage.writing import write_whole
from slipstream.trajectory.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

FORMAT, PACKED_FORMAT = 1, 2  # the second if any snapshot is packed
DESCRIPTION, INDEX, SNAPSHOTS = "run.json", "snapshots.jsonl", "snapshots"
_LOCKS = Path("/proc/locks")  # of Linux: who holds which file
_RECENT = 60  # seconds
Value = TypeVar("Value")


@dataclass(frozen=True)
class Entry:
    """A line of the index."""

    step: int
    epoch: float | None
    files: tuple[str, ...]  # relative to the run folder, or absolute
    bytes: int  # of all files together
    metrics: Mapping[str, float] = field(default_factory=dict)
    prefix: str = ""  # stands before every name in linked files


@dataclass(frozen=True)
class RunFolder:
    """What a run folder held when it was opened."""

    path: Path
    description: Mapping[str, Any]  # run.json
    layout: Layout
    entries: tuple[Entry, ...]

    def snapshot(self, entry: Entry) -> "StoredSnapshot":
        """Return what reads the snapshot of `entry`."""
        files = tuple(self.path / name for name in entry.files)
        return StoredSnapshot(entry.step, files, self.layout, entry.prefix)


@dataclass(frozen=True)
class StoredSnapshot:
    """Reads one snapshot, from one file or several shards."""

    step: int
    files: tuple[Path, ...]
    layout: Layout
    prefix: str = ""  # stands before every name in the files; what lacks it is left out

    def weights(self) -> "dict[str, Tensor]":
        """Return all tensors: mapped into memory, or unpacked."""
        from slipstream.storage.packed_file import unpack_tensors
        from slipstream.storage.tensor_file import map_tensors

        found: dict[str, Tensor] = {}
        for path in map(in_present_form, self.files):
            with self._reading(path):
                found |= self._own(unpack_tensors(path) if _packed(path) else map_tensors(path))
        with self._reading(self.files[0]):
            return self.layout.untie(found, where=f"step {self.step}")

    def read_into(self, name: str, out: "Tensor", start: int = 0) -> None:
        """Read one tensor, or a stretch of it, into `out`, touching only its bytes."""
        from slipstream.storage.packed_file import read_packed
        from slipstream.storage.tensor_file import read_tensor

        path = self.files[0]
        if len(self.files) > 1 and name in self._places:
            path = self._places[name][0]
        path = in_present_form(path)
        with self._reading(path):
            form = self.layout.tensors[name]
            read = read_packed if _packed(path) else read_tensor
            read(path, self.prefix + name, out, form=form, start=start)

    def forms(self) -> dict[str, TensorForm]:
        """Return the shapes and dtypes of what the files hold; only their headers are read."""
        return {name: place.form for name, (_, place) in self._places.items()}

    @cached_property
    def _places(self) -> dict[str, tuple[Path, Place]]:
        places: dict[str, tuple[Path, Place]] = {}
        for path in map(in_present_form, self.files):
            with self._reading(path):
                places |= {n: (path, place) for n, place in self._own(places_of(path)).items()}
        return places

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


def read_run(path: str | Path) -> RunFolder:
    """Read what a run folder lists; no snapshot is opened.

    Args:
        path: A run folder; it may be being written.

    Returns:
        The description, the layout and the entries of the index.

    Raises:
        FileNotFoundError: If it is no run folder.
        ValueError: If the run is of a newer format or its text is damaged.
    """
    folder = Path(path)
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it has no {DESCRIPTION}.")
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
        if description["format"] > PACKED_FORMAT:
            raise ValueError(f"its format {description['format']} is newer than {PACKED_FORMAT}")
        layout = Layout.from_json(description["model"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / DESCRIPTION} cannot be read: {error}.") from error
    entries = tuple(_entry(folder, n, line) for n, line in enumerate(whole_lines(folder), start=1))
    return RunFolder(folder, description, layout, entries)


def rewrite_description(path: Path, **changed: object) -> None:
    """Replace some values of a run's description, all at once."""
    description = json.loads((path / DESCRIPTION).read_bytes()) | changed
    write_whole(path / DESCRIPTION, [json.dumps(description, indent=1).encode()])


def check_run(path: str | Path) -> list[str]:
    """Return what is wrong with a run folder, a sentence each; nothing if it is whole.

    Args:
        path: A run folder.

    Returns:
        Missing, damaged and misfitting snapshots. The headers and the sizes are compared, the
        numbers are not read.
    """
    run = read_run(path)
    problems = []
    for entry in run.entries:
        snapshot = run.snapshot(entry)
        try:
            run.layout.check(snapshot.forms(), where=f"step {entry.step}")
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
        On Linux, whether a process on this machine holds the lock. Elsewhere, whether the
        run has grown within the last minute.
    """
    try:
        index = (Path(path) / INDEX).stat()
    except OSError:
        return False
    try:
        locks = [line.split() for line in _LOCKS.read_text(encoding="ascii").splitlines()]
    except OSError:
        return time.time() - index.st_mtime < _RECENT
    # number: FLOCK ADVISORY WRITE process device:device:inode start end
    held = (lock for lock in locks if lock[1:2] == ["FLOCK"])
    return any(lock[5].rpartition(":")[2] == str(index.st_ino) for lock in held)


def _packed(path: Path) -> bool:
    return path.suffix == SUFFIX


def whole_lines(folder: Path) -> list[bytes]:
    """The whole lines of the index, ends included: a killed writer may leave half a line."""
    try:
        text = (folder / INDEX).read_bytes()
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


def _entry(folder: Path, number: int, line: bytes) -> Entry:
    try:
        data = json.loads(line)
        return Entry(**{**data, "files": tuple(data["files"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Line {number} of {folder / INDEX} is damaged: {error!r}.") from error
