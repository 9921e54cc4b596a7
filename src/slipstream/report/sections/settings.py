"""How was each run made? Its settings, side by side."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.filesize import decimal

from slipstream.report.content import Cell, Table
from slipstream.report.number_format import measured
from slipstream.report.recorded_run import Shown
from slipstream.trajectory.run_index import Entry


def settings_table(runs: Sequence[Shown]) -> Table:
    """Return the settings of each run, a column for each; those left open are not shown."""
    columns = [_described(shown) for shown in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[Cell(n), *(Cell(column.get(n, "-")) for column in columns)] for n in names]
    title = "Settings" if len(runs) == 1 else "Settings, side by side"
    reading = "How the run was made, as its folder says."
    return Table(title, reading, ["setting", *(shown.name for shown in runs)], rows, folded=True)


def _described(shown: Shown) -> dict[str, str]:
    run = shown.run
    entries, description = run.folder.entries, run.folder.description
    found = {
        "folder": str(run.path),
        "kind": "transferred" if run.is_transfer else "recorded",
        "recipe": (run.recipe or "").replace("_", "-"),
        "state": "being recorded" if run.growing else "complete",
        "network": (run.folder.layout.model or "weights").rpartition(".")[2],
        "parameters": f"{parameters(shown):,} in {len(run.folder.layout.learned)} tensors",
        "snapshots": _snapshots(entries, run.clock),
        "size": decimal(sum(entry.bytes for entry in entries)),
        "created": _when(description.get("created")),
    }
    if run.is_transfer:
        of_source = ("training", "recipe")
        made = {n: v for n, v in run.configuration.items() if n not in of_source}
        plan = run.described("provenance")["transfer"]
        plan = {n: v for n, v in plan.items() if n != "signs"} if isinstance(plan, Mapping) else {}
        found |= flat_settings(made) | flat_settings(plan)
    else:
        found |= flat_settings(run.configuration)
    if description.get("seed") is not None:
        found.setdefault("seed", str(description["seed"]))
    versions = run.described("versions").items()
    found["made with"] = ", ".join(f"{name} {number}" for name, number in versions)
    return {name: text for name, text in found.items() if text}


def parameters(shown: Shown) -> int:
    """Return how many values training moves."""
    layout = shown.run.folder.layout
    return sum(math.prod(layout.tensors[name].shape) for name in layout.learned)


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


def flat_settings(configuration: Mapping[str, Any]) -> dict[str, str]:
    """Return the leaves of a configuration by their own names; what was left open is left out."""
    found: dict[str, str] = {}
    for name, value in configuration.items():
        if isinstance(value, Mapping):
            found |= flat_settings(value)
        elif value is not None:
            found[name.replace("_", " ")] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return measured(value) if isinstance(value, float) else str(value)
