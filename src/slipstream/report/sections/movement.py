"""How did the weights move? Path, speed of each layer, and the phases of the whole."""

from collections.abc import Sequence

from slipstream.dynamics import find_phases
from slipstream.report.charts.motion import (
    distance_chart,
    path_chart,
    phase_table,
    speed_chart,
    speed_map,
)
from slipstream.report.content import Item, Note, Table
from slipstream.report.recorded_run import Shown


def movement(runs: Sequence[Shown]) -> list[Item]:
    """Return the paths, the speeds of layers and of the whole, and the phases.

    Args:
        runs: The runs of the page.

    Returns:
        Charts of each run, and charts that compare them; a note for each run that holds a NaN, or
        does not move.
    """
    items: list[Item] = []
    reasons = {shown.number: _reason(shown) for shown in runs}
    items += [reason for reason in reasons.values() if reason]
    able = [shown for shown in runs if reasons[shown.number] is None]
    items += [
        path_chart(shown.run.principal_path, shown.subject)
        for shown in able
        if len(shown.run.sampled) > 2
    ]
    items += [speed_map(shown.run.motion.by_layer(), shown.subject) for shown in able]
    for clock in dict.fromkeys(shown.run.clock for shown in able):
        moving = [(s.run.motion, s.subject) for s in able if s.run.clock == clock]
        of = " of transferred runs" if clock == "stage" and len(runs) > 1 else ""
        items += [speed_chart(moving, of=of), distance_chart(moving, of=of)]
    items += [_phases(able)] if able else []
    for shown in able:
        chosen, whole = len(shown.run.sampled), len(shown.run.trajectory)
        if chosen < whole:
            text = f"{shown.name}: {chosen} of its {whole:,} snapshots, evenly chosen."
            items.append(Note(text, run=shown.number))
    return items


def _phases(runs: Sequence[Shown]) -> Table:
    found = []
    for shown in runs:
        motion = shown.run.motion
        phases = find_phases(motion) if len(motion.steps) > 3 else None
        found.append((motion, phases, shown.name))
    return phase_table(found)


def _reason(shown: Shown) -> Note | None:
    """Why nothing can be said of the motion of a run."""
    try:
        if not shown.run.motion.squared_moves.any():
            return Note(f"{shown.name}: no weight ever moves.", run=shown.number)
    except (ValueError, OSError) as error:
        return Note(f"{shown.name}: {error}", run=shown.number)
    return None
