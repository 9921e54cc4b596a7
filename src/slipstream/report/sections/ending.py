"""Where did it end? The loss on straight lines to and between the ends, and over a plane."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

from slipstream.evaluation import Batch, Task
from slipstream.landscape import (
    Barrier,
    LossPlane,
    PlaneGrid,
    loss_barrier,
    loss_plane,
    trajectory_plane,
)
from slipstream.named_task import code_in, rebuild, recorded_names
from slipstream.report.charts.landscape import line_chart, plane_chart
from slipstream.report.charts.subject import Subject
from slipstream.report.content import Cell, Contours, Item, Lines, Note, Table
from slipstream.report.number_format import measured
from slipstream.report.palette import run_colour
from slipstream.report.recorded_run import RecordedRun, Shown
from slipstream.weights import Weights

MOST_PAIRS = 6  # of runs, between whose ends the loss is measured
_LINE, _PLANE = 25, 25  # points, if there is time
_FEWEST = 5


def from_configuration(run: RecordedRun) -> Task:
    """Build the task that `slipstream train` named in a run; code is not imported for it."""
    if code := code_in(recorded_names(run.configuration) or {}):
        parts = " ".join(f"--{part} {name}" for part, name in code.items())
        raise ValueError(
            "The run names code, which is imported only if you name it yourself: write the page "
            f"with `slipstream report` and {parts}, or give Landscapes(open=...)."
        )
    return rebuild(run.configuration)


@dataclass(frozen=True)
class Landscapes:
    """How the loss around a run is measured: with which model and data, and for how long."""

    open: Callable[[RecordedRun], Task] = from_configuration
    seconds: float = 20.0  # about, for each line or plane
    batches: int = 4  # of the validation data
    calibration: int = 2  # of training data, for the statistics of BatchNorm

    def some(self, data: Iterable[Batch]) -> list[Batch]:
        """Return the batches of validation data that losses are measured on."""
        return list(islice(data, self.batches))

    def barrier(self, experiment: Task, start: Weights, end: Weights) -> Barrier:
        """Measure the line between two weights, with as many points as there is time for."""
        points = min(_LINE, self._affordable(experiment, start, end))
        return self._line(experiment, start, end, points)

    def plane(self, experiment: Task, run: RecordedRun) -> LossPlane:
        """Measure the plane of a run's path, with as many points as there is time for."""
        plane = trajectory_plane(run.sampled)
        end = run.sampled[-1].weights
        affordable = math.isqrt(self._affordable(experiment, end, end))
        return loss_plane(
            plane,
            replace(self._measured(experiment), metrics={}),
            grid=PlaneGrid(max(_FEWEST, min(_PLANE, affordable))),
        )

    def _affordable(self, experiment: Task, start: Weights, end: Weights) -> int:
        """How many points there is time for, estimated from two of them."""
        self._line(experiment, start, end, 2)  # a warm-up
        begin = time.perf_counter()
        self._line(experiment, start, end, 2)
        each = (time.perf_counter() - begin) / 2
        return max(_FEWEST, int(self.seconds / each))

    def _line(self, experiment: Task, start: Weights, end: Weights, points: int) -> Barrier:
        return loss_barrier(start, end, self._measured(experiment), points=points)

    def _measured(self, experiment: Task) -> Task:
        """The task with the few batches that are used here."""
        return replace(
            experiment,
            data=self.some(experiment.part("validation")),
            calibration=list(islice(experiment.data, self.calibration)),
        )


Measured = tuple[Barrier, Subject]  # a straight line, and whose it is


def ending(runs: Sequence[Shown], *, landscapes: Landscapes | None) -> list[Item]:
    """Return lines from start to end, lines between the ends, and the plane of each path.

    Args:
        runs: Runs with snapshots.
        landscapes: How to measure; None to measure nothing.

    Returns:
        Charts and a table, or notes that say why there are none.
    """
    if landscapes is None:
        text = "The loss around the run was not measured."
        return [Note(text, f"slipstream report {runs[0].run.path} --landscape")]
    experiments: dict[int, Task] = {}
    items: list[Item] = []
    own = []
    for shown in runs:
        try:
            experiment = landscapes.open(shown.run)
            own.append(own_line(shown, experiment, landscapes))
        except (ValueError, OSError, ModuleNotFoundError) as error:
            items.append(Note(f"{shown.name}: {error}", run=shown.number))
        else:
            experiments[shown.number] = experiment
    known = [shown for shown in runs if shown.number in experiments]
    pairs = [
        (
            landscapes.barrier(experiments[a.number], _end(a), _end(b)),
            Subject(f"{a.name} to {b.name}", run_colour(number)),
        )
        for number, (a, b) in enumerate(_pairs(known))
    ]
    planes = [_plane(shown, experiments[shown.number], landscapes) for shown in known]
    return [*items, *_lines(own, pairs), *planes, *([barriers(own, pairs)] if own else [])]


def own_line(shown: Shown, experiment: Task, landscapes: Landscapes) -> Measured:
    """Measure the straight line from the start of a run to its end."""
    start = shown.run.trajectory[0].weights
    return landscapes.barrier(experiment, start, _end(shown)), shown.subject


def barriers(own: Sequence[Measured], pairs: Sequence[Measured] = ()) -> Table:
    """Return the heights of the barriers on lines."""
    kinds = {"start to end": own, "between ends": pairs}
    accuracy = any("accuracy" in barrier.line.values for barrier, _ in (*own, *pairs))
    rows = [
        [
            Cell(kind),
            Cell(subject.name),
            Cell(measured(barrier.height), barrier.height),
            *([_drop(barrier)] if accuracy else []),
        ]
        for kind, lines in kinds.items()
        for barrier, subject in lines
    ]
    reading = "How far the loss rises above the line between its two ends, and the accuracy falls."
    header = ["line", "run", "height of the barrier", *(["fall in accuracy"] if accuracy else [])]
    return Table("Barriers", reading, header, rows)


def _lines(own: Sequence[Measured], pairs: Sequence[Measured]) -> list[Lines]:
    charts = []
    if own:
        charts.append(
            line_chart(
                own,
                title="From start to end in a straight line",
                reading="The validation loss from the first snapshot (0) to the last (1); a hill "
                "above the dashed chord is a barrier that the run went around.",
                y_label="validation loss",
            )
        )
    if pairs:
        charts.append(
            line_chart(
                pairs,
                key="barrier",
                title="Between the ends",
                reading="The validation loss from the end of one run (0) to that of another (1); "
                "without a hill above the dashed chord they lie in the same valley.",
                y_label="validation loss",
            )
        )
    return charts


def _plane(shown: Shown, experiment: Task, landscapes: Landscapes) -> Contours | Note:
    try:
        found = landscapes.plane(experiment, shown.run)
    except ValueError as error:
        return Note(f"{shown.name} has no plane: {error}", run=shown.number)
    return plane_chart(found, steps=shown.run.sampled.steps, subject=shown.subject)


def _drop(barrier: Barrier) -> Cell:
    if "accuracy" not in barrier.line.values:
        return Cell("-")
    drop = barrier.drop("accuracy")
    return Cell(measured(drop), drop)


def _pairs(runs: Sequence[Shown]) -> list[tuple[Shown, Shown]]:
    """Pairs of runs of the same layout."""
    alike = [
        (a, b)
        for a, b in combinations(runs, 2)
        if a.run.folder.layout.tensors == b.run.folder.layout.tensors
    ]
    return alike[:MOST_PAIRS]


def _end(shown: Shown) -> Weights:
    return shown.run.trajectory[-1].weights
