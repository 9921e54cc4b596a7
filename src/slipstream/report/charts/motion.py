"""How a run moves: its path, its speed, and where it turns."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slipstream.dynamics import Motion, Phases, PrincipalPath
from slipstream.report.charts.subject import Subject
from slipstream.report.colour_scale import colour_scale
from slipstream.report.content import Cell, HeatMap, Lines, Series, Table, plain
from slipstream.report.number_format import measured

Moving = tuple[Motion, Subject]


def path_chart(found: PrincipalPath, subject: Subject) -> Lines:
    """Return the path of a run in its first principal components; one that has one is flat."""
    shares = [*found.shares.tolist(), 0.0]
    first = found.coordinates[0]
    second = found.coordinates[1] if len(found.coordinates) > 1 else torch.zeros_like(first)
    reading = (
        f"Each dot is a snapshot, the diamond the start; the plane holds {sum(shares[:2]):.0%} of "
        "all motion. A smooth arc is common: a long random walk has 76% in two components too."
    )
    series = Series(
        f"{subject.clock} {found.steps[-1]}",
        plain(first),
        plain(second),
        subject.colour,
        steps=found.steps,
        run=subject.run,
    )
    return Lines(
        "path",
        subject.titled("Path of the weights"),
        reading,
        f"first component, {shares[0]:.0%} of the motion",
        f"second component, {shares[1]:.0%}",
        [series],
        square=True,
        run=subject.run,
    )


def speed_map(motion: Motion, subject: Subject, phases: Phases | None = None) -> HeatMap:
    """Return the speed of each part, relative to the size of its weights."""
    label = f"|change| / |weights| per {subject.clock}"
    return HeatMap(
        "motion",
        subject.titled("Relative speed of each layer"),
        f"A row is a layer, from the input down; the brighter, the larger the share of itself by "
        f"which it changes per {subject.clock}. Rows that turn dark have settled.",
        subject.clock,
        "layer",
        colour_scale(label, motion.relative_speeds, scale="log"),
        list(motion.steps[1:]),
        motion.names,
        plain(motion.relative_speeds),
        borders=_borders(phases),
        run=subject.run,
    )


def speed_chart(moving: Sequence[Moving], phases: Phases | None = None, *, of: str = "") -> Lines:
    """Return the speed of all weights together."""
    series = [_series(s, m.steps[1:], m.combined().speeds[0]) for m, s in moving]
    reading = (
        "The distance between neighbouring snapshots, divided by the steps between them; a falling "
        "line settles. Only runs that were recorded equally often can be compared."
    )
    log = all(value is not None and value > 0 for line in series for value in line.y)
    title, clock = f"Speed of all weights{of}", moving[0][1].clock
    unit = f"distance per {clock}"
    borders = _borders(phases)
    return Lines("speed", title, reading, clock, unit, series, log=log, borders=borders)


def turn_chart(moving: Sequence[Moving], phases: Phases | None = None) -> Lines:
    """Return the cosine between each move and the next."""
    series = [_series(s, m.steps[1:-1], m.combined().cosines[0]) for m, s in moving]
    return Lines(
        "turns",
        "Cosine between a move and the next",
        "1 continues straight ahead, 0 turns at a right angle, -1 goes back.",
        moving[0][1].clock,
        "cosine",
        series,
        borders=_borders(phases),
        y_range=(-1.05, 1.05),
    )


def distance_chart(moving: Sequence[Moving], *, of: str = "") -> Lines:
    """Return how far the weights are from where they started."""
    series = [_series(s, m.steps, m.combined().distances[0]) for m, s in moving]
    reading = "The Euclidean distance of all weights from the first snapshot."
    title = f"Distance from the start{of}"
    return Lines("distance", title, reading, moving[0][1].clock, "distance", series)


def phase_table(found: Sequence[tuple[Motion, Phases | None, str]]) -> Table:
    """Return the phases of each run, after a row for the whole of it."""
    rows = []
    for motion, phases, name in found:
        whole = motion.combined()
        length, straight = float(whole.path_lengths[0]), float(whole.straightness[0])
        steps = whole.intervals.sum()
        rows.append(
            [
                *(Cell(name), Cell("all", 0)),
                Cell(f"{motion.steps[0]} to {motion.steps[-1]}", motion.steps[0]),
                *(Cell(measured(v), v) for v in (length / float(steps),)),
                Cell("-"),
                *(Cell(measured(v), v) for v in (length, straight)),
            ]
        )
        for number, phase in enumerate(phases.phases if phases else (), start=1):
            length = _length(whole, phase.start, phase.end)
            rows.append(
                [
                    *(Cell(name), Cell(str(number), number)),
                    Cell(f"{phase.start} to {phase.end}", phase.start),
                    Cell(measured(phase.speed), phase.speed),
                    Cell(f"{phase.cosine:.2f}", phase.cosine),
                    *(Cell(measured(length), length), Cell("-")),
                ]
            )
    reading = (
        "Speed and direction stay much the same within a phase. A cosine near 1 goes straight "
        "ahead, one near 0 turns at right angles. Straightness is the distance between start and "
        "end, divided by the length of the path."
    )
    header = ["run", "phase", "from and to", "speed", "cosine", "path length", "straightness"]
    return Table("Phases", reading, header, rows)


def _length(whole: Motion, start: int, end: int) -> float:
    first, last = whole.steps.index(start), whole.steps.index(end)
    return float(whole.squared_moves[0, first:last].sqrt().sum())


def _series(subject: Subject, steps: Sequence[int], values: Tensor) -> Series:
    return Series(subject.name, list(steps), plain(values), subject.colour, run=subject.run)


def _borders(phases: Phases | None) -> list[float | None]:
    return [phase.start for phase in phases.phases[1:]] if phases else []
