"""How did the weights move? Path, speed of each layer, and the phases of the whole."""

from collections.abc import Sequence

from torch import Tensor

from slipstream.dynamics import find_phases
from slipstream.report.content import Cell, HeatMap, Item, Lines, Note, Series, Table, plain
from slipstream.report.number_format import measured
from slipstream.report.palette import run_colour
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
    items += [path(shown) for shown in able if len(shown.run.sampled) > 2]
    items += [layers(shown) for shown in able]
    for clock in dict.fromkeys(shown.run.clock for shown in able):
        alike = [shown for shown in able if shown.run.clock == clock]
        items += [speeds(alike), distances(alike)]
    items += [phases(able)] if able else []
    for shown in able:
        chosen, whole = len(shown.run.sampled), len(shown.run.trajectory)
        if chosen < whole:
            text = f"{shown.name}: {chosen} of its {whole:,} snapshots, evenly chosen."
            items.append(Note(text, run=shown.number))
    return items


def path(shown: Shown) -> Lines:
    """Return the path of a run in its first two principal components."""
    found = shown.run.principal_path
    first, second = found.shares.tolist()
    clock = shown.run.clock
    reading = (
        f"Each dot is a snapshot, the diamond the start; the plane holds {first + second:.0%} of "
        "all motion. A smooth arc is usual: a long random walk puts 76 % into two components too."
    )
    series = Series(
        f"{clock} {found.steps[-1]}",
        plain(found.coordinates[0]),
        plain(found.coordinates[1]),
        run_colour(shown.number),
        steps=found.steps,
        run=shown.number,
    )
    return Lines(
        "path",
        _title("Path of the weights", shown),
        reading,
        f"first component, {first:.0%} of the motion",
        f"second component, {second:.0%}",
        [series],
        square=True,
        run=shown.number,
    )


def layers(shown: Shown) -> HeatMap:
    """Return the speed of each layer, relative to the size of its weights."""
    motion = shown.run.motion.by_layer()
    clock = shown.run.clock
    return HeatMap(
        "motion",
        _title("Speed of each layer", shown),
        "A row is a layer, from the input down; the brighter, the larger a part of itself it moves "
        f"in a {clock}. Dark rows have settled.",
        clock,
        "layer",
        f"|change| / |weights| in a {clock}",
        list(motion.steps[1:]),
        motion.names,
        plain(motion.relative_speeds),
        log=True,
        run=shown.number,
    )


def speeds(runs: Sequence[Shown]) -> Lines:
    """Return the speed of all weights together."""
    series = [
        _series(shown, shown.run.motion.steps[1:], shown.run.motion.combined().speeds[0])
        for shown in runs
    ]
    reading = (
        "The distance between neighbouring snapshots for each step between them; falling lines "
        "settle. Only runs that were recorded equally often can be compared."
    )
    above = [value for line in series for value in line.y]
    log = all(value is not None and value > 0 for value in above)
    title = f"Speed of all weights{_of(runs)}"
    return Lines("speed", title, reading, runs[0].run.clock, "speed", series, log=log)


def distances(runs: Sequence[Shown]) -> Lines:
    """Return how far the weights are from where they started."""
    series = [
        _series(shown, shown.run.motion.steps, shown.run.motion.combined().distances[0])
        for shown in runs
    ]
    reading = "The Euclidean distance of all weights from the first snapshot."
    title = f"Distance from the start{_of(runs)}"
    return Lines("distance", title, reading, runs[0].run.clock, "distance", series)


def phases(runs: Sequence[Shown]) -> Table:
    """Return the phases of each run, with their speed and straightness."""
    rows = []
    for shown in runs:
        motion = shown.run.motion
        whole = motion.combined()
        length = float(whole.path_lengths[0])
        straight = float(whole.straightness[0])
        cells = [Cell(measured(length), length), Cell(measured(straight), straight)]
        moving = len(motion.steps) > 3
        for number, phase in enumerate(find_phases(motion).phases if moving else (), start=1):
            rows.append(
                [
                    Cell(shown.name),
                    Cell(str(number), number),
                    Cell(f"{phase.start} to {phase.end}", phase.start),
                    Cell(measured(phase.speed), phase.speed),
                    Cell(f"{phase.cosine:.2f}", phase.cosine),
                    *cells,
                ]
            )
    reading = (
        "Speed and direction stay much the same within a phase. A cosine near 1 goes straight on, "
        "one near 0 turns at right angles; straightness is the distance by the length of the path."
    )
    header = ["run", "phase", "from and to", "speed", "cosine", "path length", "straightness"]
    return Table("Phases", reading, header, rows)


def _reason(shown: Shown) -> Note | None:
    """Why nothing can be said of the motion of a run."""
    try:
        if not shown.run.motion.squared_moves.any():
            return Note(f"{shown.name}: no weight ever moves.", run=shown.number)
    except (ValueError, OSError) as error:
        return Note(f"{shown.name}: {error}", run=shown.number)
    return None


def _series(shown: Shown, steps: Sequence[int], values: Tensor) -> Series:
    colour = run_colour(shown.number)
    name = "" if shown.alone else shown.name
    return Series(name, list(steps), plain(values), colour, run=shown.number)


def _of(runs: Sequence[Shown]) -> str:
    return " of transferred runs" if runs[0].run.is_transfer and not runs[0].alone else ""


def _title(text: str, shown: Shown) -> str:
    return text if shown.alone else f"{text}: {shown.name}"
