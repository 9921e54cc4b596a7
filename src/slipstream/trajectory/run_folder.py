"""A run on disk: the only module that knows its files.

    RUN/run.json           what the run is: written once
    RUN/snapshots.jsonl    the index, a line for each snapshot, written after the snapshot is whole
    RUN/snapshots/         00000200.safetensors is the snapshot of step 200

The index is the truth: what it does not list is not there. So a process may die at any moment.
Whoever appends holds a lock on the index, which the system releases when the process ends.
"""

import fcntl
import json
import os
import platform
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from slipstream.trajectory.layout import Layout
from slipstream.trajectory.tensor_file import (
    Place,
    map_tensors,
    read_places,
    read_tensor,
    tensor_chunks,
)
from slipstream.weights import Weights

FORMAT = 1
DESCRIPTION, INDEX, SNAPSHOTS, TEMPORARY = "run.json", "snapshots.jsonl", "snapshots", ".tmp"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Entry:
    """A line of the index."""

    step: int
    epoch: float | None
    files: tuple[str, ...]  # relative to the run folder, or absolute
    bytes: int  # of all files together
    metrics: Mapping[str, float] = field(default_factory=dict)


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
        prefix = self.description["model"]["prefix"]
        return StoredSnapshot(files, self.layout, prefix, entry.step)


@dataclass(frozen=True)
class StoredSnapshot:
    """Reads one snapshot, from one file or several shards."""

    files: tuple[Path, ...]
    layout: Layout
    prefix: str  # stands before every name in the files, and is not part of the names
    step: int

    def weights(self) -> dict[str, Tensor]:
        """Return all tensors, mapped into memory."""
        found: dict[str, Tensor] = {}
        for path in self.files:
            with self._reading(path):
                found |= self._own(map_tensors(path))
        with self._reading(self.files[0]):
            return self.layout.untie(found, where=f"step {self.step}")

    def read_into(self, name: str, out: Tensor) -> None:
        """Read one tensor into `out`, touching only its bytes."""
        path = self.files[0] if len(self.files) == 1 else self._places[name][0]
        with self._reading(path):
            read_tensor(path, self.prefix + name, out)

    def check(self) -> None:
        """Read the headers and compare them with the layout."""
        forms = {name: place.form for name, (_, place) in self._places.items()}
        with self._reading(self.files[0]):
            self.layout.check(forms, where=f"step {self.step}")

    @cached_property
    def _places(self) -> dict[str, tuple[Path, Place]]:
        places: dict[str, tuple[Path, Place]] = {}
        for path in self.files:
            with self._reading(path):
                places |= {n: (path, place) for n, place in self._own(read_places(path)).items()}
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


class RunWriter:
    """Appends snapshots to a run; made by `create_run` and `reopen_run`."""

    def __init__(self, path: Path, layout: Layout, index: FileIO, last_step: int | None) -> None:
        self.path = path
        self.layout = layout
        self.last_step = last_step  # of the last snapshot; None in an empty run
        self._index = index

    def append(
        self,
        *,
        step: int,
        weights: Weights,
        epoch: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Write a snapshot to disk, then list it; on return both are flushed.

        Args:
            step: Optimiser steps done; more than that of the last snapshot.
            weights: Tensors on the CPU with the layout of the run.
            epoch: Epochs done, if known.
            metrics: Numbers to keep with the snapshot.

        Raises:
            ValueError: If the step does not grow or the weights have another layout.
            OSError: If the disk is full or fails; the run then holds what it held before.
        """
        self._check_step(step)
        chunks = tensor_chunks(self.layout.untie(weights, where=f"step {step}"))
        name = f"{SNAPSHOTS}/{step:08d}.safetensors"
        try:
            size = _write_whole(self.path / name, chunks)
            self._list(Entry(step, epoch, (name,), size, _numbers(metrics)))
        except OSError as error:
            (self.path / name).unlink(missing_ok=True)
            text = f"Step {step} could not be kept in {self.path}: {error.strerror}. "
            raise OSError(error.errno, text + "The snapshots before it are whole.") from error

    def link(
        self,
        *,
        step: int,
        files: Sequence[Path],
        epoch: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """List a snapshot that already lies in safetensors files, without copying them.

        Args:
            step: Optimiser steps done; more than that of the last snapshot.
            files: One file, or all shards.
            epoch: Epochs done, if known.
            metrics: Numbers to keep with the snapshot.
        """
        self._check_step(step)
        size = sum(path.stat().st_size for path in files)
        names = tuple(_reference(path.resolve(), self.path.resolve()) for path in files)
        self._list(Entry(step, epoch, names, size, _numbers(metrics)))

    def close(self) -> None:
        """Release the run for other writers."""
        if not self._index.closed:
            # A forked data-loading worker may still hold the file: unlock, then close.
            fcntl.flock(self._index, fcntl.LOCK_UN)
            self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_step(self, step: int) -> None:
        if self.last_step is not None and step <= self.last_step:
            raise ValueError(
                f"step must grow: {step} comes after {self.last_step}, the last in {self.path}."
            )

    def _list(self, entry: Entry) -> None:
        end = self._index.seek(0, os.SEEK_END)
        line = memoryview((json.dumps(asdict(entry)) + "\n").encode())
        try:
            while line:
                line = line[self._index.write(line) :]
            os.fsync(self._index.fileno())
        except OSError:
            self._index.truncate(end)
            raise
        self.last_step = entry.step


def create_run(
    path: str | Path,
    *,
    model: nn.Module | Layout,
    configuration: Mapping[str, Any] | None = None,
    seed: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    prefix: str = "",
    overwrite: bool = False,
) -> RunWriter:
    """Make an empty run folder and return what appends to it.

    Args:
        path: A folder that is empty or does not exist.
        model: The model to be recorded, or the layout of its weights.
        configuration: What made the run, as plain data; kept in `run.json`.
        seed: The seed of the run; kept in `run.json`.
        provenance: Who wrote the snapshots and how, as plain data; kept in `run.json`.
        prefix: Stands before the names of `model` in linked files.
        overwrite: Whether to delete the snapshots of a run that is already there. Other files in
            its folder are left alone.

    Returns:
        The writer, which holds the lock of the folder until it is closed.

    Raises:
        FileExistsError: If the folder is not empty.
        BlockingIOError: If another writer has the run open.
        TypeError: If `configuration` or `provenance` is no plain data.
    """
    folder = Path(path)
    layout = model if isinstance(model, Layout) else Layout.of(model)
    description = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {**layout.to_json(), "prefix": prefix},
        "configuration": dict(configuration or {}),
        "seed": seed,
        "provenance": dict(provenance or {}),
        "versions": {
            "slipstream": version("slipstream"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    try:
        text = json.dumps(description, indent=1)
    except TypeError as error:
        raise TypeError(f"configuration and provenance must be plain data: {error}.") from error
    _check_free(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    writer = RunWriter(folder, layout, _lock(folder), None)
    try:
        _clear(folder, writer._index)
        _write_whole(folder / DESCRIPTION, [text.encode()])
        (folder / SNAPSHOTS).mkdir(exist_ok=True)
    except BaseException:
        writer.close()
        raise
    return writer


def reopen_run(path: str | Path, *, keep_through: int | None = None) -> RunWriter:
    """Open a run to append to it; what a killed writer left behind is cleaned up.

    Args:
        path: A run folder.
        keep_through: Drop the snapshots after this step: for a training run that resumes from an
            earlier checkpoint. By default all are kept.

    Returns:
        The writer, which holds the lock of the folder until it is closed.

    Raises:
        ValueError: If it is no run folder, or one of a newer format.
        BlockingIOError: If another writer has the run open.
    """
    folder = Path(path)
    read_run(folder)
    index = _lock(folder)
    try:
        run = read_run(folder)  # again: now nobody else writes
        last = float("inf") if keep_through is None else keep_through
        kept = [entry for entry in run.entries if entry.step <= last]
        lines = _lines(folder)
        index.truncate(sum(len(line) for line in lines[: len(kept)]))
        os.fsync(index.fileno())
        (folder / SNAPSHOTS).mkdir(exist_ok=True)
        for entry in run.entries[len(kept) :]:
            _remove_own(folder, entry.files)
        _remove_temporary(folder)
    except BaseException:
        index.close()
        raise
    return RunWriter(folder, run.layout, index, kept[-1].step if kept else None)


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
        if description["format"] > FORMAT:
            raise ValueError(f"its format {description['format']} is newer than {FORMAT}")
        layout = Layout.from_json(description["model"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / DESCRIPTION} cannot be read: {error}.") from error
    entries = tuple(_entry(folder, n, line) for n, line in enumerate(_lines(folder), start=1))
    return RunFolder(folder, description, layout, entries)


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
            snapshot.check()
        except OSError as error:
            problems.append(str(error))
    listed = {file for entry in run.entries for file in entry.files}
    for file in sorted((run.path / SNAPSHOTS).glob("*")):
        if f"{SNAPSHOTS}/{file.name}" not in listed:
            problems.append(f"{file} is not in the index: its writing was broken off.")
    return problems


def _lines(folder: Path) -> list[bytes]:
    """The whole lines of the index, ends included: a killed writer may leave half a line."""
    try:
        text = (folder / INDEX).read_bytes()
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


def _entry(folder: Path, number: int, line: bytes) -> Entry:
    try:
        data = json.loads(line)
        files = tuple(data["files"])
        return Entry(data["step"], data["epoch"], files, data["bytes"], data["metrics"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Line {number} of {folder / INDEX} is damaged: {error!r}.") from error


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (overwrite and (folder / DESCRIPTION).is_file()):
        return
    # All that is left of a run whose making was broken off:
    unfinished = {INDEX: 0, DESCRIPTION + TEMPORARY: None}
    for file in folder.iterdir():
        if file.name in unfinished and unfinished[file.name] in (None, file.stat().st_size):
            continue
        is_run = (folder / DESCRIPTION).is_file()
        raise FileExistsError(
            f"{folder} already holds a run: give another path, resume it, or pass overwrite=True."
            if is_run
            else f"{folder} is not empty (it holds {file.name}): give another path."
        )


def _lock(folder: Path) -> FileIO:
    index = FileIO(os.open(folder / INDEX, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    try:
        fcntl.flock(index, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        index.close()
        raise BlockingIOError(
            error.errno,
            f"{folder} is being written by another recorder: close it, or give another path.",
        ) from error
    return index


def _clear(folder: Path, index: FileIO) -> None:
    index.truncate(0)
    for file in (folder / SNAPSHOTS).glob("*.safetensors"):
        file.unlink()
    _remove_temporary(folder)


def _remove_own(folder: Path, files: Iterable[str]) -> None:
    """Remove snapshots that the run itself wrote, never linked files."""
    for name in files:
        if Path(name).parent == Path(SNAPSHOTS):
            (folder / name).unlink(missing_ok=True)


def _remove_temporary(folder: Path) -> None:
    for file in [*folder.glob(f"*{TEMPORARY}"), *(folder / SNAPSHOTS).glob(f"*{TEMPORARY}")]:
        file.unlink()


def _reference(file: Path, folder: Path) -> str:
    """Relative for what lies beside the run, so that both may move together; else absolute."""
    beside = file.is_relative_to(folder.parent)
    return os.path.relpath(file, folder) if beside else str(file)


def _write_whole(path: Path, chunks: Iterable[bytes | memoryview]) -> int:
    """Write a file so that it is there whole or not at all, even if the power fails."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            size = sum(file.write(chunk) for chunk in chunks)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return size


def _numbers(metrics: Mapping[str, float] | None) -> dict[str, float]:
    return {name: float(value) for name, value in (metrics or {}).items()}
