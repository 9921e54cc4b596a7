"""A folder of runs: what is in it now, and sections about some of them, computed once."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from slipstream.report.number_format import measured
from slipstream.report.page import section_html
from slipstream.report.recorded_run import MODES, RecordedRun, change_stamp, shown
from slipstream.report.sections import Extras, build_section
from slipstream.report.sections.outcome import last_metrics
from slipstream.trajectory import is_being_written
from slipstream.trajectory.run_files import DESCRIPTION

_DEPTH = 5  # folders below the root
_KEPT = 300  # sections


@dataclass(frozen=True)
class Listed:
    """A row of the list of runs, as plain data."""

    id: str  # the path below the root
    state: str  # recording, complete, empty or damaged
    snapshots: int
    step: int | None  # of the last snapshot
    metrics: str  # of the last snapshot that has some
    changed: float  # seconds since the epoch
    fingerprint: str
    problem: str = ""


@dataclass
class Gallery:
    """The runs below a folder; results are cached in memory, and never written to disk."""

    root: Path
    modes: int = MODES
    extras: Extras = field(default_factory=Extras)
    _opened: dict[str, tuple[str, RecordedRun | str]] = field(default_factory=dict)
    _made: OrderedDict[tuple[Any, ...], str] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)  # sections are made in several threads

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root} is not a folder: name one with runs in it.")

    def listed(self) -> list[Listed]:
        """Return what is in the folder now, by name; only what changed is read again."""
        found = sorted(_runs_below(self.root))
        opened = self._opened
        self._opened = {identity: opened[identity] for identity in found if identity in opened}
        listed = []
        for identity in found:
            with suppress(KeyError):  # it vanished meanwhile
                listed.append(self._listed(identity))
        return listed

    def fingerprints(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Return what changes whenever one of these runs does.

        Args:
            ids: Of runs in the list.

        Returns:
            A text for each.

        Raises:
            KeyError: If there is no such run.
        """
        return tuple(self._mark(identity) for identity in ids)

    def section(self, key: str, ids: Sequence[str]) -> str:
        """Return one section about some runs as HTML, computed again only when they change.

        Args:
            key: One of `QUESTIONS`.
            ids: Of runs in the list, at least one.

        Returns:
            HTML.

        Raises:
            KeyError: If there is no such run.
            ValueError: If a run is damaged.
        """
        marks = self.fingerprints(ids)
        address = (key, tuple(ids), marks)
        html = self._made.get(address)
        if html is None:
            runs = shown([self._run(i, mark) for i, mark in zip(ids, marks, strict=True)])
            html = section_html(build_section(key, runs, self.extras), runs=len(runs))
        with self._lock:
            self._made[address] = html
            self._made.move_to_end(address)
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return html

    def _listed(self, identity: str) -> Listed:
        mark = self._mark(identity)
        changed = _changed(self.root / identity)
        try:
            run = self._run(identity, mark)
        except ValueError as error:
            return Listed(identity, "damaged", 0, None, "", changed, mark, str(error))
        entries = run.entries
        state = "recording" if run.growing else "complete" if entries else "empty"
        metrics = ", ".join(f"{n} {measured(v)}" for n, v in last_metrics(entries).items())
        step = entries[-1].step if entries else None
        return Listed(identity, state, len(entries), step, metrics, changed, mark)

    def _run(self, identity: str, mark: str) -> RecordedRun:
        known = self._opened.get(identity)
        if known is None or known[0] != mark:
            known = self._opened[identity] = (mark, self._open(identity))
        if isinstance(known[1], str):
            raise ValueError(known[1])
        return known[1]

    def _open(self, identity: str) -> RecordedRun | str:
        try:
            return RecordedRun.open(self.root / identity, modes=self.modes)
        except (ValueError, OSError) as error:
            return str(error)

    def _mark(self, identity: str) -> str:
        path = self.root / identity
        inside = Path(os.path.normpath(path)).is_relative_to(os.path.normpath(self.root))
        if not inside or not (path / DESCRIPTION).is_file():
            raise KeyError(f"There is no run {identity!r} below {self.root}.")
        return change_stamp(path) + ("+" if is_being_written(path) else "")


def _runs_below(root: Path) -> Iterator[str]:
    for folder, names, files in os.walk(root):
        here = Path(folder).relative_to(root)
        if DESCRIPTION in files:
            yield here.as_posix()
            names.clear()  # a run holds no runs
        elif len(here.parts) >= _DEPTH:
            names.clear()
        names[:] = [name for name in names if not name.startswith(".")]


def _changed(path: Path) -> float:
    found = [0.0]
    for name in (DESCRIPTION, "snapshots.jsonl"):
        with suppress(OSError):
            found.append((path / name).stat().st_mtime)
    return max(found)
