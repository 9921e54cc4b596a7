"""The index of a run: a line for each snapshot, and lines that add metrics to one.

Each line is JSON with a checksum of itself. A process that is killed may leave half a line at the
end, which is ignored; anything else that cannot be read is damage, and reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from slipstream.storage.strict_json import checked_json, read_checked_json

INDEX = "snapshots.jsonl"


@dataclass(frozen=True)
class Entry:
    """What the index says of a snapshot."""

    step: int
    epoch: float | None
    files: tuple[str, ...]  # relative to the run folder, or absolute
    bytes: int  # of all files together
    metrics: Mapping[str, float] = field(default_factory=dict)
    prefix: str = ""  # stands before every name in linked files
    checksums: tuple[str, ...] = ()  # CRC-32 of each file; none in runs of version 0.1

    def __post_init__(self) -> None:
        """Refuse what no recorder writes."""
        whole = (type(value) is int and value >= 0 for value in (self.step, self.bytes))
        texts = all(isinstance(text, str) for text in (*self.files, *self.checksums, self.prefix))
        once = texts and len(set(self.files)) == len(self.files)
        if not all(whole) or not self.files or not once:
            raise ValueError("step, bytes or files are not what a recorder writes")
        if self.checksums and len(self.checksums) != len(self.files):
            raise ValueError("there is not one checksum per file")


@dataclass(frozen=True)
class Line:
    """A line of the index, and how many bytes it takes."""

    data: Mapping[str, Any]
    size: int


def line_of(entry: Entry) -> bytes:
    """Return the line of a snapshot."""
    return checked_json(asdict(entry))


def amendment(step: int, epoch: float | None, metrics: Mapping[str, float]) -> bytes:
    """Return the line that adds metrics to the snapshot of a step that is listed already."""
    return checked_json({"amends": step, "epoch": epoch, "metrics": dict(metrics)})


def entries_of(lines: Sequence[Line]) -> tuple[Entry, ...]:
    """Return the snapshots that some lines list, in their order.

    Raises:
        ValueError: If a line is not one that a recorder writes.
    """
    found: dict[int, Entry] = {}
    for number, line in enumerate(lines, start=1):
        try:
            _take(found, line.data)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"line {number} is damaged: {error!r}") from error
    return tuple(found.values())


def lines_in(folder: Path) -> list[Line]:
    """Return the whole lines of a run's index.

    Args:
        folder: A run folder.

    Returns:
        The lines; none if there is no index yet.

    Raises:
        ValueError: If a line is damaged, or the index is not a file.
    """
    path = folder / INDEX
    if not path.exists():
        return []
    if not path.is_file():
        raise ValueError(f"{path} is not a file.")
    lines: list[Line] = []
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            lines.append(Line(read_checked_json(text), len(text)))
        except (ValueError, RecursionError) as error:
            if not text.endswith(b"\n") and not _is_whole(text):
                break  # half a line, of a process that was killed
            raise ValueError(f"Line {number} of {path} is damaged: {error}.") from error
    return lines


def _is_whole(text: bytes) -> bool:
    """Whether all but the last byte of a line are right: then that byte is damaged."""
    try:
        read_checked_json(text[:-1])
    except (ValueError, RecursionError):
        return False
    return True


def _take(found: dict[int, Entry], data: Mapping[str, Any]) -> None:
    metrics = {str(name): float(value) for name, value in data["metrics"].items()}
    epoch = None if data["epoch"] is None else float(data["epoch"])
    if "amends" in data:
        before = found[data["amends"]]
        epoch = before.epoch if epoch is None else epoch
        found[before.step] = replace(before, epoch=epoch, metrics={**before.metrics, **metrics})
        return
    lists = {name: tuple(data.get(name, ())) for name in ("files", "checksums")}
    if not isinstance(data["files"], list):
        raise TypeError("files is not a list")
    entry = Entry(**{**data, **lists, "metrics": metrics, "epoch": epoch})
    last = next(reversed(found), None)  # the highest step: they only grow
    if last is not None and entry.step <= last:
        raise ValueError(f"step {entry.step} comes after {last}")
    found[entry.step] = entry
