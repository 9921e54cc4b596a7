"""A run as a report sees it: what its folder says, and measurements made on demand."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from slipstream.dynamics import Motion, PrincipalPath, measure_motion, principal_path
from slipstream.modes import Modes, fit_modes
from slipstream.report.charts.subject import Subject
from slipstream.report.palette import run_colour
from slipstream.trajectory import RunFolder, Trajectory, is_being_written, read_run
from slipstream.trajectory.run_index import Entry
from slipstream.transfer import TransferResult, load_transfer
from slipstream.transfer.stage_log import SUMMARY

MOST_SNAPSHOTS = 200  # that are measured
MODES = 6
_SAMPLES = 500  # weights that are clustered into modes
_FILES = ("run.json", "snapshots.jsonl", SUMMARY)


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A run folder as it was when it was opened; measurements are kept once they are made."""

    path: Path
    folder: RunFolder
    growing: bool  # whether a recorder has it open
    modes_count: int = MODES

    @classmethod
    def open(cls, path: str | Path, *, modes: int = MODES) -> "RecordedRun":
        """Open a run folder, which may be empty or still growing; no snapshot is read.

        Args:
            path: The folder.
            modes: The number of modes that it is decomposed into.

        Returns:
            The run.
        """
        folder = read_run(path)
        return cls(Path(path), folder, is_being_written(path), modes)

    def described(self, key: str) -> dict[str, Any]:
        """Return a part of run.json; an empty one where something else stands there."""
        found = self.folder.description.get(key)
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def configuration(self) -> dict[str, Any]:
        """What made the run, as it was recorded."""
        return self.described("configuration")

    @property
    def is_transfer(self) -> bool:
        """Whether it was transferred, not trained."""
        return "transfer" in self.described("provenance")

    @property
    def recipe(self) -> str | None:
        """The recipe that trained it, or None; a transferred run has that of its source."""
        recipes = self.configuration.get("recipe")
        if self.is_transfer or not isinstance(recipes, dict):
            return None
        return next(iter(recipes), None)

    @property
    def clock(self) -> str:
        """What the steps of the run count."""
        return "stage" if self.is_transfer else "step"

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The snapshots in the index, their metrics by the names that training records.

        Transferred runs of 0.1 recorded `loss` for what is `validation_loss` in trained ones.
        """
        entries = self.folder.entries
        if not self.is_transfer:
            return entries
        return tuple(replace(entry, metrics=of_validation(entry.metrics)) for entry in entries)

    @cached_property
    def trajectory(self) -> Trajectory:
        """All snapshots."""
        return Trajectory.open(self.path)[: len(self.folder.entries)]

    @cached_property
    def sampled(self) -> Trajectory:
        """The snapshots that are measured: all, or evenly chosen ones of a long run."""
        trajectory = self.trajectory
        long = len(trajectory) > MOST_SNAPSHOTS
        return trajectory.resample(MOST_SNAPSHOTS) if long else trajectory

    @cached_property
    def motion(self) -> Motion:
        """How its tensors move."""
        return measure_motion(self.sampled)

    @cached_property
    def principal_path(self) -> PrincipalPath:
        """Its path in two components."""
        if len(self.sampled) < 3:
            raise ValueError(f"Two components need 3 snapshots; there are {len(self.sampled)}.")
        return principal_path(self.sampled, components=2)

    @cached_property
    def modes(self) -> Modes:
        """Its decomposition."""
        return fit_modes(self.sampled, modes=self.modes_count, samples=_SAMPLES)

    @cached_property
    def transfer(self) -> TransferResult | None:
        """The finished transfer that made it, or None."""
        return load_transfer(self.path) if (self.path / SUMMARY).is_file() else None


@dataclass(frozen=True, eq=False)
class Shown:
    """A run on a page."""

    run: RecordedRun
    name: str  # short and unique
    number: int  # from 0; its colour follows
    alone: bool  # on the page

    @property
    def subject(self) -> Subject:
        """Whose charts these are."""
        name = "" if self.alone else self.name
        return Subject(name, run_colour(self.number), self.run.clock, self.number)


def shown(runs: list[RecordedRun]) -> list[Shown]:
    """Name and number the runs of a page.

    Args:
        runs: At least one.

    Returns:
        The runs in the same order.
    """
    names = short_names([run.path for run in runs])
    return [
        Shown(run, name, number, alone=len(runs) == 1)
        for number, (run, name) in enumerate(zip(runs, names, strict=True))
    ]


def short_names(paths: list[Path]) -> list[str]:
    """Return the last parts of paths, as many as make them unique.

    Args:
        paths: Different paths.

    Returns:
        A name for each.

    Example:
        >>> short_names([Path("a/seed0/run"), Path("a/seed1/run"), Path("a/other")])
        ['seed0/run', 'seed1/run', 'other']
    """
    whole = [Path(os.path.normpath(path.absolute())).parts for path in paths]
    depths = [1] * len(paths)
    for _ in range(max(map(len, whole), default=0)):
        names = ["/".join(parts[-depth:]) for parts, depth in zip(whole, depths, strict=True)]
        for number, name in enumerate(names):
            depths[number] += names.count(name) > 1
    return ["/".join(parts[-depth:]) for parts, depth in zip(whole, depths, strict=True)]


def of_validation(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a stage by the names that training records: `validation_loss`.

    Example:
        >>> of_validation({"loss": 0.5, "validation_accuracy": 0.9})
        {'validation_loss': 0.5, 'validation_accuracy': 0.9}
    """
    prefixes = ("validation_", "train_", "test_")
    return {
        name if name.startswith(prefixes) else f"validation_{name}": value
        for name, value in metrics.items()
    }


def change_stamp(path: Path) -> str:
    """Return a text that changes whenever one of the files changes that say what a run holds."""
    found = []
    for name in _FILES:
        try:
            state = (path / name).stat()
            found.append(f"{state.st_mtime_ns:x}.{state.st_size:x}")
        except OSError:
            found.append("-")
    return "-".join(found)
