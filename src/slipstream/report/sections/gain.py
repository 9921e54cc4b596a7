"""What did a transfer gain? Metrics along the stages beside simple baselines, and the cost."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from slipstream.report.charts.transfer import (
    BASELINES,
    MeasuredTransfer,
    along_charts,
    by_name,
    comparison_charts,
    gradients_chart,
    without_split,
)
from slipstream.report.content import Cell, Item, Note, Series, Table
from slipstream.report.number_format import with_spread
from slipstream.report.palette import BLACK
from slipstream.report.recorded_run import RecordedRun, Shown
from slipstream.report.sections.ending import Landscapes
from slipstream.report.tables import comparison_rows, savings_rows
from slipstream.trajectory import Trajectory
from slipstream.transfer import Comparison, TransferResult, find_source, transfer_trajectory
from slipstream.transfer.comparison import TARGET_START
from slipstream.transfer.plan import Method


def gain(
    runs: Sequence[Shown],
    *,
    comparison: Comparison | None = None,
    landscapes: Landscapes | None = None,
) -> list[Item]:
    """Return the metrics along the stages of all transfers, and what each of them cost.

    Args:
        runs: The runs of the page; those that were transferred count.
        comparison: Of methods, on test data, measured before.
        landscapes: How to rebuild the model, to transfer the same run by the baselines too.

    Returns:
        Charts and tables; a note if nothing was transferred.
    """
    items: list[Item] = []
    transfers = [transfer for shown in runs if (transfer := _measured(shown)) is not None]
    if transfers:
        done, notes = _baselines(runs, transfers, landscapes)
        items += [
            *along_charts([*transfers, *done], _levels(runs)),
            costs([*transfers, *done]),
            *notes,
        ]
    items += [note for shown in runs if (note := _missing(shown)) is not None]
    if comparison is not None:
        items += compared(comparison)
    return items or [
        Note(
            "No run here was transferred. A transfer carries a run over to another start; give "
            "its folder together with this one.",
            f"slipstream transfer {runs[0].run.path} --seed 7 --out transferred",
        )
    ]


def costs(transfers: Sequence[MeasuredTransfer]) -> Table:
    """Return what each method reached on the validation data, and for which cost."""
    metric = (
        "accuracy" if any("accuracy" in transfer.along[-1] for transfer in transfers) else "loss"
    )
    rows = []
    for name, same in by_name(transfers).items():
        first, last = (
            [transfer.along[at].get(metric, math.nan) for transfer in same] for at in (0, -1)
        )
        gradients = [float(transfer.gradients) for transfer in same]
        seconds = statistics.fmean(transfer.seconds for transfer in same)
        rows.append(
            [
                Cell(name),
                Cell(str(len(same)), len(same)),
                *(_mean(values) for values in (first, last, gradients)),
                Cell(f"{seconds:.1f}", seconds),
            ]
        )
    reading = (
        f"Mean ± standard deviation over the targets; {metric} on validation data, before any "
        "further training. Gradients are the cost of a transfer when they are expensive."
    )
    header = ["method", "targets", f"{metric} at the start", f"{metric} at the end"]
    return Table("Gain and cost", reading, [*header, "gradients", "seconds"], rows)


def compared(comparison: Comparison) -> list[Item]:
    """Return a comparison of methods: the stages, the test data, and what was saved."""
    metric = "accuracy" if "accuracy" in comparison.outcomes[0].metrics else "loss"
    header, *rows = comparison_rows(comparison, metric=metric)
    cells = [[Cell(text, _first_number(text)) for text in row] for row in rows]
    reading = (
        f"Test {metric}, mean ± standard deviation over {len(comparison.of(comparison.names[0]))} "
        f"targets; {TARGET_START} is where they begin."
    )
    charts = [c for c in comparison_charts(comparison) if c.key == f"transfer {metric}"]
    over = gradients_chart(comparison, metric)
    table = Table("Comparison on test data", reading, header, cells)
    return [*charts, *([over] if over else []), table, *_saved(comparison, metric)]


def _saved(comparison: Comparison, metric: str) -> list[Table]:
    """What is saved against the best way without a source, if there was one to compare with."""
    if not comparison.rivals or not all(metric in o.validation for o in comparison.outcomes):
        return []
    header, *rows = savings_rows(comparison.savings(metric=metric))
    reading = (
        f"The fewest gradients to 99 % of the trained target's {metric} on validation data, of the "
        "methods with a source and of those without; a number with > was not enough. Seconds are "
        "without the search for a rate."
    )
    cells = [[Cell(text, _first_number(text)) for text in row] for row in rows]
    return [Table("Gradients saved", reading, header, cells)]


def _mean(values: list[float]) -> Cell:
    mean = statistics.fmean(values)
    return Cell(with_spread(values), mean if math.isfinite(mean) else None)


def _missing(shown: Shown) -> Note | None:
    """Why a transferred run is not in the charts."""
    if not shown.run.is_transfer:
        return None
    result, text = shown.run.transfer, ""
    if result is None:
        text = f"{shown.name} is an unfinished transfer: its stages are shown when it is done."
    elif not any(stage.metrics for stage in result.stages):
        text = f"{shown.name} was transferred without validation data: its stages have no metrics."
    return Note(text, run=shown.number) if text else None


def _measured(shown: Shown) -> MeasuredTransfer | None:
    """The finished transfer that made a run, if its stages were measured."""
    result = shown.run.transfer
    if result is None or not any(stage.metrics for stage in result.stages):
        return None
    return _of(result, _name(result), shown.number)


def _of(result: TransferResult, name: str, run: int | None) -> MeasuredTransfer:
    cost = result.cost
    seconds = cost.total_seconds - cost.seconds.get("validation", 0.0)
    along = [without_split(stage.metrics) for stage in result.stages]
    return MeasuredTransfer(name, along, cost.gradient_evaluations, seconds, run)


def _name(result: TransferResult) -> str:
    """The method; with its stages, so that only what can be averaged has the same name."""
    plan = result.plan
    return f"{plan.method} in {len(result.stages) - 1} stages along the {plan.path} path"


def _levels(runs: Sequence[Shown]) -> dict[str, list[Series]]:
    """Where the source ended, if it is on the page too."""
    sources = {find_source(shown.run.path) for shown in runs if shown.run.is_transfer}
    stages = max(len(shown.run.folder.entries) for shown in runs if shown.run.is_transfer) - 1
    levels: dict[str, list[Series]] = {}
    for shown in runs:
        if shown.run.path.resolve() in sources and shown.run.entries:
            for name, value in shown.run.entries[-1].metrics.items():
                if name.startswith("validation_"):
                    ends = [0, stages], [value, value]
                    line = Series("source", *ends, BLACK, dashed=True, run=shown.number)
                    levels.setdefault(name.removeprefix("validation_"), []).append(line)
    return levels


def _baselines(
    runs: Sequence[Shown], transfers: Sequence[MeasuredTransfer], landscapes: Landscapes | None
) -> tuple[list[MeasuredTransfer], list[Note]]:
    """The baselines to the same targets, as far as they are not on the page already."""
    there = {transfer.name.split(" ")[0] for transfer in transfers}
    missing = [method for method in BASELINES if method not in there]
    if not missing:
        return [], []
    if landscapes is None:
        text = "Baselines to the same target are added when the loss may be measured."
        return [], [Note(text, "slipstream report RUN --landscape")]
    done: list[MeasuredTransfer] = []
    notes: list[Note] = []
    for shown in _one_for_each_target(runs):
        try:
            done += [_baseline(shown.run, method, landscapes) for method in missing]
        except (ValueError, OSError) as error:
            notes.append(Note(f"{shown.name} has no baselines: {error}", run=shown.number))
    return done, notes


def _baseline(run: RecordedRun, method: Method, landscapes: Landscapes) -> MeasuredTransfer:
    transfer, source = run.transfer, find_source(run.path)
    if transfer is None or source is None:
        raise ValueError("its configuration names no source run that is still there.")
    task = landscapes.open(run)
    result = transfer_trajectory(
        Trajectory.open(source),
        run.trajectory[0].weights,
        replace(task, validation=landscapes.some(task.part("validation"))),
        plan=replace(transfer.plan, method=method),
    )
    return _of(result, _name(result), None)


def _one_for_each_target(runs: Sequence[Shown]) -> list[Shown]:
    """Transfers from the same source to the same seed begin alike: one of them is enough."""
    found: dict[str, Shown] = {}
    for shown in runs:
        if shown.run.transfer is not None:
            start = repr(sorted(shown.run.transfer.stages[0].metrics.items()))
            found.setdefault(f"{find_source(shown.run.path)} {start}", shown)
    return list(found.values())


def _first_number(text: str) -> float | None:
    try:
        return float(text.split(" ")[0])
    except ValueError:
        return None
