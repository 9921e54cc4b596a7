"""Making a run folder and appending to it, so that a process may die at any moment.

A file is written under a temporary name, flushed to disk and renamed; only then the index lists
it. Whoever appends holds the lock of the folder, which the system releases when the process ends.
"""

import errno
import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from slipstream.storage.strict_json import Checksum, checked_json
from slipstream.storage.tensor_file import tensor_chunks
from slipstream.storage.writing import (
    make_folder,
    write_flushed,
    write_whole,
)
from slipstream.trajectory.layout import Layout
from slipstream.trajectory.remote import refuse_address
from slipstream.trajectory.run_cleaning import (
    check_free,
    clear,
    remove_own,
    remove_temporary,
    remove_unlisted_shards,
)
from slipstream.trajectory.run_files import (
    DESCRIPTION,
    FORMAT,
    SNAPSHOTS,
    StoredSnapshot,
    read_run,
    rewrite_description,
)
from slipstream.trajectory.run_index import INDEX, Entry, amendment, line_of, lines_in
from slipstream.trajectory.run_lock import RunLock
from slipstream.weights import Weights


class RunWriter:
    """Appends snapshots to a run; made by `create_run` and `reopen_run`."""

    def __init__(
        self, path: Path, layout: Layout, lock: RunLock, index: FileIO, last_step: int | None
    ) -> None:
        self.path = path
        self.layout = layout
        self.last_step = last_step  # of the last snapshot; None in an empty run
        self._lock = lock
        self._index = index

    def append(
        self,
        *,
        step: int,
        weights: Weights,
        epoch: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> tuple[str, ...]:
        """Write a snapshot to disk, then list it; on return both are flushed.

        Args:
            step: Optimiser steps done; more than that of the last snapshot.
            weights: Tensors on the CPU with the layout of the run.
            epoch: Epochs done, if known.
            metrics: Numbers to keep with the snapshot.

        Returns:
            The files of the run folder that are new or have changed, the index last.

        Raises:
            ValueError: If the step does not grow or the weights have another layout.
            OSError: If the disk is full or fails; the run then holds what it held before.
        """
        self._check_step(step)
        weights = self.layout.untie(weights, where=f"step {step}")
        name = f"{SNAPSHOTS}/{step:08d}.safetensors"
        try:
            checksum = write_tensor_file(self.path / name, weights)
            return self.list_written({name: checksum}, step=step, epoch=epoch, metrics=metrics)
        except OSError as error:
            (self.path / name).unlink(missing_ok=True)
            text = f"Step {step} could not be kept in {self.path}: {error.strerror}. "
            raise OSError(error.errno, text + "The snapshots before it are whole.") from error

    def list_written(
        self,
        files: Mapping[str, str],
        *,
        step: int,
        epoch: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> tuple[str, ...]:
        """List a snapshot whose files have been written into the run folder.

        Args:
            files: The checksum of each file, by its path in the run folder.
            step: Optimiser steps done; more than that of the last snapshot.
            epoch: Epochs done, if known.
            metrics: Numbers to keep with the snapshot.

        Returns:
            The files of the run folder that are new or have changed, the index last.

        Raises:
            ValueError: If the step does not grow.
            OSError: If a file is not there, or the disk is full or fails.
        """
        self._check_step(step)
        size = sum((self.path / name).stat().st_size for name in files)
        entry = _entry(step, epoch, tuple(files), size, metrics)
        self._list(replace(entry, checksums=tuple(files.values())))
        return (*files, DESCRIPTION, INDEX)

    def link(
        self,
        *,
        step: int,
        files: Sequence[Path],
        epoch: float | None = None,
        metrics: Mapping[str, float] | None = None,
        prefix: str = "",
    ) -> None:
        """List a snapshot that already lies in safetensors files, without copying them.

        Args:
            step: Optimiser steps done; more than that of the last snapshot.
            files: One file, or all shards.
            epoch: Epochs done, if known.
            metrics: Numbers to keep with the snapshot.
            prefix: Stands before the names in the files; what lacks it is not part of the snapshot.

        Raises:
            ValueError: If the step does not grow or the files have another layout.
        """
        self._check_step(step)
        snapshot = StoredSnapshot(step, tuple(files), self.layout, prefix)
        self.layout.check(snapshot.forms(), where=f"step {step} ({files[0]})")
        size = sum(path.stat().st_size for path in files)
        names = tuple(_reference(path.resolve(), self.path.resolve()) for path in files)
        here = self.path.resolve()
        self._allow({_reference(path.resolve().parent, here) for path in files})
        entry = _entry(step, epoch, names, size, metrics, prefix)
        self._list(replace(entry, checksums=tuple(map(Checksum.of_file, files))))

    def amend(
        self, *, epoch: float | None = None, metrics: Mapping[str, float] | None = None
    ) -> tuple[str, ...]:
        """Add metrics to the last snapshot, which were measured after it was written.

        Args:
            epoch: Epochs done, if known.
            metrics: Values to keep with it.

        Returns:
            The file of the run folder that has changed.

        Raises:
            ValueError: If there is no snapshot.
        """
        if self.last_step is None:
            raise ValueError(f"{self.path} has no snapshot yet that metrics could belong to.")
        values = {name: float(value) for name, value in (metrics or {}).items()}
        self._write(amendment(self.last_step, epoch, values))
        return (INDEX,)

    def relist(self, entries: Sequence[Entry]) -> None:
        """Replace the whole index at once; whoever reads it meanwhile finds the old or the new one.

        Args:
            entries: The same snapshots, perhaps in other files, which are on disk already.

        Raises:
            OSError: If the disk is full or fails; the run then lists what it listed before.
        """
        self._index.close()  # Windows replaces no file that is open
        try:
            write_whole(self.path / INDEX, map(line_of, entries))
        finally:
            self._index = FileIO(self.path / INDEX, "r+")

    def mine(self, weights: Weights) -> Weights:
        """Return what this process has to write of a model: all of it, alone."""
        return weights

    def all_agree(self, answer: bool) -> bool:
        """Return whether all processes that write the run say yes: there is only this one."""
        return answer

    def close(self) -> None:
        """Release the run for other writers."""
        self._index.close()
        self._lock.release()

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
        self._write(line_of(entry))
        self.last_step = entry.step

    def _write(self, line: bytes) -> None:
        """Append a line to the index, unless another file has taken its place."""
        mine, there = os.fstat(self._index.fileno()), (self.path / INDEX).stat()
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            raise OSError(errno.ESTALE, f"the index of {self.path} was replaced by another")
        end = self._index.seek(0, os.SEEK_END)
        try:
            write_flushed(self._index, line)
        except BaseException:
            self._index.truncate(end)
            raise

    def _allow(self, folders: set[str]) -> None:
        """Note the folders that linked files lie in: the run is read from nowhere else."""
        provenance = dict(read_run(self.path).description.get("provenance") or {})
        linked = set(provenance.get("linked", ()))
        if not folders <= linked:
            provenance["linked"] = sorted(linked | folders)
            rewrite_description(self.path, provenance=provenance)


def create_run(
    path: str | Path,
    *,
    model: nn.Module | Layout,
    configuration: Mapping[str, Any] | None = None,
    seed: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> RunWriter:
    """Make an empty run folder and return what appends to it.

    Args:
        path: A folder that is empty or does not exist.
        model: The model to be recorded, or the layout of its weights.
        configuration: What made the run, as plain data; kept in `run.json`.
        seed: The seed of the run; kept in `run.json`.
        provenance: Who wrote the snapshots and how, as plain data; kept in `run.json`.
        overwrite: Whether to delete the snapshots of a run that is already there, and the
            files that belong to it. Other files in its folder are left alone.

    Returns:
        The writer, which holds the lock of the folder until it is closed.

    Raises:
        FileExistsError: If the folder is not empty.
        BlockingIOError: If another writer has the run open.
        TypeError: If `configuration` or `provenance` is not plain data.
    """
    refuse_address(path)
    folder = Path(path).absolute()  # the process may change its working folder
    layout = model if isinstance(model, Layout) else Layout.of(model)
    description = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": layout.to_json(),
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
        text = checked_json(description, indent=1)
    except TypeError as error:
        raise TypeError(f"configuration and provenance must be plain data: {error}.") from error
    check_free(folder, overwrite)
    make_folder(folder)
    with ExitStack() as undo:
        lock = RunLock(folder)
        undo.callback(lock.release)
        check_free(folder, overwrite)  # again: another may have made it before the lock
        index = undo.enter_context(_empty_index(folder))
        clear(folder)
        write_whole(folder / DESCRIPTION, [text])
        make_folder(folder / SNAPSHOTS)
        undo.pop_all()
    return RunWriter(folder, layout, lock, index, None)


def reopen_run(path: str | Path, *, keep_through: int | None = None) -> RunWriter:
    """Open a run to append to it; what a killed writer left behind is cleaned up.

    Args:
        path: A run folder.
        keep_through: Drop the snapshots after this step: for a training run that resumes from an
            earlier checkpoint. By default all are kept.

    Returns:
        The writer, which holds the lock of the folder until it is closed.

    Raises:
        ValueError: If it is not a run folder, or one of a newer format.
        BlockingIOError: If another writer has the run open.
    """
    refuse_address(path)
    folder = Path(path).absolute()
    read_run(folder)
    with ExitStack() as undo:
        lock = RunLock(folder)
        undo.callback(lock.release)
        run = read_run(folder)  # again: now nobody else writes
        last = float("inf") if keep_through is None else keep_through
        kept = [entry for entry in run.entries if entry.step <= last]
        dropped = {entry.step for entry in run.entries[len(kept) :]}
        lines = itertools.takewhile(
            lambda line: line.data.get("step", line.data.get("amends")) not in dropped,
            lines_in(folder),
        )
        size = sum(line.size for line in lines)
        (folder / INDEX).touch()
        index = undo.enter_context(FileIO(folder / INDEX, "r+"))
        index.truncate(size)
        os.fsync(index.fileno())
        make_folder(folder / SNAPSHOTS)
        for entry in run.entries[len(kept) :]:
            remove_own(folder, entry.files)
        remove_temporary(folder)
        remove_unlisted_shards(folder, {name for entry in kept for name in entry.files})
        undo.pop_all()
    return RunWriter(folder, run.layout, lock, index, kept[-1].step if kept else None)


def write_tensor_file(
    path: Path, weights: Weights, metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file that is there whole or not at all, and return its checksum.

    Args:
        path: Where to.
        weights: Tensors on the CPU.
        metadata: Text to keep in its header.

    Returns:
        The checksum, as the index lists it.

    Raises:
        OSError: If the disk is full or fails.
    """
    checksum = Checksum()
    write_whole(path, checksum.over(tensor_chunks(weights, metadata)))
    return checksum.hex()


def _empty_index(folder: Path) -> FileIO:
    if (folder / INDEX).is_symlink():
        (folder / INDEX).unlink()  # what it leads to is not the run's
    return FileIO(folder / INDEX, "w+")


def _reference(file: Path, folder: Path) -> str:
    """Relative for what lies beside the run, so that both may move together; else absolute."""
    sibling = file.is_relative_to(folder.parent)
    return Path(os.path.relpath(file, folder)).as_posix() if sibling else str(file)


def _entry(
    step: int,
    epoch: float | None,
    files: tuple[str, ...],
    size: int,
    metrics: Mapping[str, float] | None,
    prefix: str = "",
) -> Entry:
    """A line of plain numbers, of whatever kind they came."""
    numbers = {name: float(value) for name, value in (metrics or {}).items()}
    return Entry(int(step), None if epoch is None else float(epoch), files, size, numbers, prefix)
