"""What was this run? Its configuration, and the curves of its loss and metrics."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.filesize import decimal

from slipstream.report.content import Cell, Item, Lines, Note, Series, Table
from slipstream.report.number_format import measured
from slipstream.report.palette import BLACK, SPLITS, run_colour
from slipstream.report.recorded_run import Shown
from slipstream.trajectory.run_index import Entry

_POINTS = 1000  # of a curve
_LOW = ("loss", "error", "perplexity")  # metrics that are good when they are small
_HIGH = ("accuracy",)
_MEANINGS = {  # of what recipes record
    "churn": "the share of the masked weights that fell or came back since the one before",
    "pruned": "the share of the masked weights that had fallen",
    "blend": "how much the base counts beside the side network",
    "cosine": "that of the angle between the corners",
    "objective": "all that is minimised, on the training data",
}


def identity(runs: Sequence[Shown]) -> list[Item]:
    """Return configuration, curves, and first, best and last values.

    Args:
        runs: The runs of the page.

    Returns:
        Tables and charts, and a note for each run without snapshots.
    """
    items: list[Item] = [facts(runs)]
    for shown in runs:
        if not shown.run.folder.entries:
            text = "is being recorded" if shown.run.growing else "holds no snapshot"
            items.append(Note(f"{shown.name} {text}; nothing can be drawn yet.", run=shown.number))
    items += curves([shown for shown in runs if not shown.run.is_transfer])
    if (values := _values(runs)).rows:
        items.append(values)
    return items


def facts(runs: Sequence[Shown]) -> Table:
    """Return what made each run, a column for each; what is the same for all is not repeated."""
    columns = [_described(shown) for shown in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[Cell(n), *(Cell(column.get(n, "-")) for column in columns)] for n in names]
    title = "Configuration" if len(runs) == 1 else "Configurations, side by side"
    reading = "What the run keeps of how it was made: with it, it can be made again."
    return Table(title, reading, ["what", *(shown.name for shown in runs)], rows)


def last_metrics(entries: Sequence[Entry]) -> dict[str, float]:
    """Return the metrics of the last snapshot that has some: those that a list has room for."""
    metrics = next((entry.metrics for entry in reversed(entries) if entry.metrics), {})
    names = sorted(metrics, key=lambda n: (_split(n)[1] != "accuracy", _split(n)[0] == "train", n))
    return {name.removeprefix("validation_").replace("_", " "): metrics[name] for name in names[:2]}


def curves(runs: Sequence[Shown]) -> list[Lines]:
    """Return a chart for each metric, its parts of the data and all runs in it."""
    named = [(shown, name) for shown in runs for name in _metric_names(shown.run.folder.entries)]
    kinds = sorted({_split(name)[1] for _, name in named}, key=_order)
    return [_curve(kind, [(s, n) for s, n in named if _split(n)[1] == kind]) for kind in kinds]


def _curve(kind: str, named: Sequence[tuple[Shown, str]]) -> Lines:
    several = len({shown.number for shown, _ in named}) > 1
    series = []
    for shown, name in named:
        part, _ = _split(name)
        points = [(e.step, e.metrics[name]) for e in shown.run.folder.entries if name in e.metrics]
        points = points[: -1 : math.ceil(len(points) / _POINTS)] + points[-1:]
        label = " ".join(filter(None, [shown.name if several else "", part])) or kind
        colour = run_colour(shown.number) if several else SPLITS.get(part.split(" ")[0], BLACK)
        series.append(
            Series(
                label,
                [step for step, _ in points],
                [value for _, value in points],
                colour,
                dashed=several and part == "train",
                run=shown.number,
            )
        )
    words = kind.replace("_", " ")
    low = any(word in kind for word in _LOW)
    meaning = _MEANINGS.get(kind, "as recorded")
    good = "lower is better" if low else "higher is better" if kind in _HIGH else meaning
    reading = f"The {words} at the snapshots that have it, {good}."
    if several and any(line.dashed for line in series):
        reading += " Dashed: on the training data."
    above = [value for line in series for value in line.y if value is not None]
    # Losses fall over decades; where one is 0 or below, there is no logarithm.
    log = low and bool(above) and min(above) > 0 and max(above) > 20 * min(above)
    return Lines(kind, words.capitalize(), reading, "step", words, series, log=log)


def _values(runs: Sequence[Shown]) -> Table:
    rows = []
    for shown in runs:
        for name in _metric_names(shown.run.folder.entries):
            entries = [e for e in shown.run.folder.entries if name in e.metrics]
            best = _best(name, entries)
            ends = [entries[0].metrics[name], entries[-1].metrics[name]]
            found = [*ends, best.metrics[name] if best else None]
            cells = [Cell(measured(value), value) for value in found]
            at = Cell(
                f"{shown.run.clock} {best.step}" if best else "-", best.step if best else None
            )
            rows.append([Cell(shown.name), Cell(name.replace("_", " ")), *cells, at])
    reading = "The best is the lowest loss or the highest accuracy; it was looked for afterwards."
    header = ["run", "metric", "first", "last", "best", "best at"]
    return Table("Metrics", reading, header, rows)


def _best(name: str, entries: Sequence[Entry]) -> Entry | None:
    known = [entry for entry in entries if math.isfinite(entry.metrics[name])]
    _, kind = _split(name)
    if not known or not (kind in _HIGH or kind in _LOW):
        return None
    return (max if kind in _HIGH else min)(known, key=lambda entry: entry.metrics[name])


def _described(shown: Shown) -> dict[str, str]:
    run = shown.run
    forms = run.folder.layout.tensors.values()
    entries, description = run.folder.entries, run.folder.description
    found = {
        "folder": str(run.path),
        "kind": "transferred" if run.is_transfer else "recorded",
        "recipe": (run.recipe or "").replace("_", "-"),
        "state": "being recorded" if run.growing else "complete",
        "network": (run.folder.layout.model or "weights").rpartition(".")[2],
        "weights": f"{sum(math.prod(form.shape) for form in forms):,} in {len(forms)} tensors",
        "snapshots": _snapshots(entries, run.clock),
        "size": decimal(sum(entry.bytes for entry in entries)),
        "created": _when(description.get("created")),
    }
    if run.is_transfer:
        of_source = ("training", "recipe")
        setup = {n: v for n, v in run.configuration.items() if n not in of_source}
        plan = {n: v for n, v in description["provenance"]["transfer"].items() if n != "signs"}
        found |= _flat(setup) | _flat(plan)
    else:
        found |= _flat(run.configuration)
    if description.get("seed") is not None:
        found.setdefault("seed", str(description["seed"]))
    versions = description.get("versions") or {}
    found["made with"] = ", ".join(f"{name} {number}" for name, number in versions.items())
    return {name: text for name, text in found.items() if text}


def _snapshots(entries: Sequence[Entry], clock: str) -> str:
    if not entries:
        return "none"
    last = entries[-1]
    epochs = f", epoch {measured(last.epoch)}" if last.epoch is not None else ""
    return f"{len(entries):,}, {clock} {entries[0].step} to {last.step}{epochs}"


def _when(created: Any) -> str:
    try:
        return datetime.fromisoformat(str(created)).strftime("%Y-%m-%d %H:%M %Z")
    except ValueError:
        return ""


def _flat(configuration: Mapping[str, Any]) -> dict[str, str]:
    """The leaves of a configuration by their own names; what was left open is not shown."""
    found: dict[str, str] = {}
    for name, value in configuration.items():
        if isinstance(value, Mapping):
            found |= _flat(value)
        elif value is not None:
            found[name.replace("_", " ")] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return measured(value) if isinstance(value, float) else str(value)


def _metric_names(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.metrics))


def _split(name: str) -> tuple[str, str]:
    """The part of the data and the metric: `validation_loss_2` is the loss on the second part."""
    for start, part in (("train", "train"), ("validation", "validation"), ("val", "validation"),
                        ("eval", "validation"), ("test", "test")):  # fmt: skip
        if name.startswith(f"{start}_"):
            rest, number = _numbered(name.removeprefix(f"{start}_"))
            return f"{part} {number}".strip(), rest
    return "", name


def _numbered(name: str) -> tuple[str, str]:
    """A metric that several data sets have, and the number of the set."""
    kind, _, number = name.rpartition("_")
    return (kind, number) if number.isdecimal() and kind in _HIGH + _LOW else (name, "")


def _order(kind: str) -> tuple[bool, str]:
    return kind != "loss", kind
