"""What was learned? A sentence on each run, its curves, and the settings that made it."""

import math
from collections.abc import Sequence

from slipstream.recipes import Pictures
from slipstream.report.charts.reconstruction import pictures_chart
from slipstream.report.content import Cell, Item, Lines, Note, Series, Table
from slipstream.report.number_format import measured
from slipstream.report.palette import BLACK, SPLITS, run_colour
from slipstream.report.recorded_run import Shown
from slipstream.report.sections.settings import flat_settings, parameters, settings_table
from slipstream.trajectory.run_index import Entry

_POINTS = 1000  # of a curve
_LOW = ("loss", "error", "perplexity")  # metrics that are good when they are small
_HIGH = ("accuracy",)
_MEANINGS = {  # of what recipes record
    "churn": "the share of the masked weights that were pruned or restored since the one before",
    "pruned": "the share of the masked weights that are pruned",
    "blend": "how much the base counts beside the side network",
    "cosine": "that of the angle between the corners",
    "objective": "all that is minimised, on the training data",
    "residual": "how far the equation is from being fulfilled; lower is better",
}


def outcome(runs: Sequence[Shown]) -> list[Item]:
    """Return what each run reached, the first, best and last values, curves, and settings.

    Args:
        runs: The runs of the page.

    Returns:
        A sentence for each run, tables and charts.
    """
    items: list[Item] = [_summary(shown) for shown in runs]
    if (values := _values(runs)).rows:
        items.append(values)
    items += curves([s for s in runs if not s.run.is_transfer and s.run.entries])
    for shown in runs:
        if pictures := Pictures.load(shown.run.path):
            chart = pictures_chart(pictures, shown.subject)
            items += [chart] if chart else []
    return [*items, settings_table(runs)]


def _summary(shown: Shown) -> Note:
    """What a run is and what it reached, in one or two sentences."""
    run = shown.run
    if not run.entries:
        text = "is being recorded" if run.growing else "holds no snapshot"
        return Note(f"{shown.name} {text}; nothing can be drawn yet.", run=shown.number)
    known = flat_settings(run.configuration)
    network = known.get("model", (run.folder.layout.model or "network").rpartition(".")[2])
    data = f" on {known['data']}" if "data" in known else ""
    made = ", transferred to another start" if run.is_transfer else ""
    state = ", being recorded" if run.growing else ""
    text = f"{shown.name}: {network}{data}, {parameters(shown):,} parameters{made}{state}."
    return Note(f"{text} {_reached(shown)}", lead=True, run=shown.number)


def _reached(shown: Shown) -> str:
    names = sorted(_metric_names(shown.run.entries), key=_preference)
    if not names:
        return "No metrics were recorded."
    name = names[0]
    entries = [entry for entry in shown.run.entries if name in entry.metrics]
    first, last = entries[0], entries[-1]
    end = last.metrics[name]
    words, at = name.replace("_", " ").capitalize(), f"{shown.run.clock} {last.step}"
    if not math.isfinite(end):
        return f"{words} is not finite at {at}: the run diverged."
    text = f"{words} is {measured(end)} at {at}"
    if last is not first:
        text += f", from {measured(first.metrics[name])} at {shown.run.clock} {first.step}"
    best = _best(name, entries)
    if best is not None and best.metrics[name] != end:
        text += f"; the best was {measured(best.metrics[name])} at {shown.run.clock} {best.step}"
    return f"{text}."


def _preference(name: str) -> tuple[bool, bool, bool, str]:
    """Accuracy before loss before others, each on validation data first."""
    part, kind = _split(name)
    return kind not in _HIGH, kind != "loss", not part.startswith("validation"), name


def last_metrics(entries: Sequence[Entry]) -> dict[str, float]:
    """Return the metrics of the last snapshot that has some: those that a list has room for."""
    metrics = next((entry.metrics for entry in reversed(entries) if entry.metrics), {})
    names = sorted(metrics, key=lambda n: (_split(n)[1] != "accuracy", _split(n)[0] == "train", n))
    return {name.removeprefix("validation_").replace("_", " "): metrics[name] for name in names[:2]}


def curves(runs: Sequence[Shown]) -> list[Lines]:
    """Return a chart for each metric, its parts of the data and all runs in it."""
    named = [(shown, name) for shown in runs for name in _metric_names(shown.run.entries)]
    charts = []
    for kind in sorted({_split(name)[1] for _, name in named}, key=_order):
        having = [(shown, name) for shown, name in named if _split(name)[1] == kind]
        numbers = {shown.number for shown, _ in having}
        without = [shown.name for shown in runs if shown.number not in numbers]
        charts.append(_curve(kind, having, without))
    return charts


def _curve(kind: str, named: Sequence[tuple[Shown, str]], without: Sequence[str]) -> Lines:
    several = len({shown.number for shown, _ in named}) > 1 or bool(without)
    series = []
    for shown, name in named:
        part, _ = _split(name)
        points = [(e.step, e.metrics[name]) for e in shown.run.entries if name in e.metrics]
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
    if without:
        reading += f" Not recorded by {', '.join(without)}."
    above = [value for line in series for value in line.y if value is not None]
    # Losses fall over decades; where one is 0 or below, there is no logarithm.
    log = low and bool(above) and min(above) > 0 and max(above) > 20 * min(above)
    return Lines(kind, words.capitalize(), reading, "step", words, series, log=log)


def _values(runs: Sequence[Shown]) -> Table:
    rows = []
    for shown in runs:
        for name in sorted(_metric_names(shown.run.entries), key=_preference):
            entries = [e for e in shown.run.entries if name in e.metrics]
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
