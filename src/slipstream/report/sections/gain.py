"""What did a transfer gain? Metrics along the stages beside the simple ways, and the cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slipstream.report.content import Cell, Item, Lines, Note, Series, Table
from slipstream.report.number_format import with_spread
from slipstream.report.palette import BLACK, method_colour
from slipstream.report.recorded_run import RecordedRun, Shown
from slipstream.report.sections.ending import Landscapes
from slipstream.report.tables import comparison_rows
from slipstream.trajectory import Trajectory
from slipstream.transfer import Comparison, TransferResult, find_source, transfer_trajectory
from slipstream.transfer.comparison import TARGET_START, TRAINED_TARGET
from slipstream.transfer.plan import Method

BASELINES: tuple[Method, ...] = ("naive", "random")  # that take no gradient
Metrics = Sequence[Mapping[str, float]]  # one for each stage


@dataclass(frozen=True)
class Way:
    """One way to carry a run to one target."""

    name: str
    along: Metrics  # on the validation data, stage by stage
    gradients: int
    seconds: float
    run: int | None = None  # the run on the page that it is of


def gain(
    runs: Sequence[Shown],
    *,
    comparison: Comparison | None = None,
    landscapes: Landscapes | None = None,
) -> list[Item]:
    """Return the metrics along the stages of all ways, and what each of them cost.

    Args:
        runs: The runs of the page; those that were transferred count.
        comparison: Of methods, on test data, measured before.
        landscapes: How to rebuild the model, to carry the same run the simple ways too.

    Returns:
        Charts and tables; a note if nothing was transferred.
    """
    items: list[Item] = []
    ways = [way for shown in runs if (way := _way(shown)) is not None]
    if ways:
        done, notes = _baselines(runs, ways, landscapes)
        items += [*along([*ways, *done], _levels(runs)), costs([*ways, *done]), *notes]
    for shown in runs:
        if shown.run.is_transfer and shown.run.transfer is None:
            text = f"{shown.name} is an unfinished transfer: its stages are shown when it is done."
            items.append(Note(text, run=shown.number))
    if comparison is not None:
        items += compared(comparison)
    return items or [
        Note(
            "No run here was transferred. A transfer carries a run to another start; give its "
            "folder together with this one.",
            f"slipstream transfer {runs[0].run.path} --target-seed 7 --out transferred",
        )
    ]


def along(ways: Sequence[Way], levels: Mapping[str, Series] | None = None) -> list[Lines]:
    """Return a chart for each metric: a line for each method, a band over its targets.

    Args:
        ways: Of one method several, if there were several targets.
        levels: Lines to draw besides, by metric.

    Returns:
        Accuracy first; nothing for metrics that no stage has.
    """
    names = {name for way in ways for stage in way.along for name in stage}
    return [_along(name, ways, (levels or {}).get(name)) for name in sorted(names)]


def costs(ways: Sequence[Way]) -> Table:
    """Return what each method reached on the validation data, and for which cost."""
    metric = "accuracy" if any("accuracy" in way.along[-1] for way in ways) else "loss"
    rows = []
    for name, same in _by_name(ways).items():
        ends = [way.along[-1].get(metric, float("nan")) for way in same]
        starts = [way.along[0].get(metric, float("nan")) for way in same]
        gradients, seconds = (
            [float(way.gradients) for way in same],
            [way.seconds for way in same],
        )
        rows.append(
            [
                Cell(name),
                Cell(str(len(same)), len(same)),
                *(Cell(with_spread(v), sum(v) / len(v)) for v in (starts, ends, gradients)),
                Cell(f"{sum(seconds) / len(seconds):.1f}", sum(seconds)),
            ]
        )
    reading = (
        f"Mean ± standard deviation over the targets; {metric} on validation data, before any "
        "further training. Gradients are what a transfer costs where they are dear."
    )
    header = ["method", "targets", f"{metric} at the start", f"{metric} at the end"]
    return Table("Gain and cost", reading, [*header, "gradients", "seconds"], rows)


def compared(comparison: Comparison) -> list[Item]:
    """Return a comparison of methods: the stages, then the test data."""
    ways = [
        Way(o.name, o.along, o.gradient_evaluations, o.seconds)
        for o in comparison.outcomes
        if o.along
    ]
    metric = "accuracy" if "accuracy" in comparison.outcomes[0].metrics else "loss"
    levels = {}
    if TRAINED_TARGET in comparison.names and ways:
        mean, _ = comparison.mean(TRAINED_TARGET, lambda outcome: outcome.metrics[metric])
        levels[metric] = _level(f"{TRAINED_TARGET} (test)", mean, ways)
    header, *rows = comparison_rows(comparison, metric=metric)
    cells = [[Cell(text, _first_number(text)) for text in row] for row in rows]
    reading = (
        f"Test {metric}, mean ± standard deviation over {len(comparison.of(comparison.names[0]))} "
        f"targets; {TARGET_START} is where they begin."
    )
    charts = [chart for chart in along(ways, levels) if chart.y_label.startswith(metric)]
    return [*charts, Table("Comparison on test data", reading, header, cells)]


def _along(metric: str, ways: Sequence[Way], level: Series | None) -> Lines:
    series = []
    for name, same in _by_name(ways).items():
        stages = [
            [stage[metric] for stage in found if metric in stage]
            for found in zip(*(way.along for way in same), strict=True)
        ]
        if not all(stages):
            continue
        several = len(same) > 1
        series.append(
            Series(
                name,
                list(range(len(stages))),
                [sum(values) / len(values) for values in stages],
                method_colour(name.split(" ")[0]),
                [min(values) for values in stages] if several else (),
                [max(values) for values in stages] if several else (),
                dashed=name.split(" ")[0] in BASELINES,
                run=None if several else same[0].run,
            )
        )
    reading = (
        f"{metric.capitalize()} on validation data while the run is carried, without training; "
        "grey is the simplest way. A band is the range over several targets."
    )
    return Lines(
        f"transfer {metric}",
        f"{metric.capitalize()} along the transfer",
        reading,
        "stage of the transfer",
        f"{metric} on validation data",
        [*series, *([level] if level else [])],
    )


def _way(shown: Shown) -> Way | None:
    """The finished transfer that made a run, if its stages were measured."""
    result = shown.run.transfer
    if result is None or not any(stage.metrics for stage in result.stages):
        return None
    return _of(result, _name(result), shown.number)


def _of(result: TransferResult, name: str, run: int | None) -> Way:
    cost = result.cost
    seconds = cost.total_seconds - cost.seconds.get("validation", 0.0)
    along = [stage.metrics for stage in result.stages]
    return Way(name, along, cost.gradient_evaluations, seconds, run)


def _name(result: TransferResult) -> str:
    """The method; with its stages, so that only what can be averaged has the same name."""
    plan = result.plan
    return f"{plan.method} in {len(result.stages) - 1} stages along the {plan.path} path"


def _by_name(ways: Sequence[Way]) -> dict[str, list[Way]]:
    """Ways of one method together; it is called no longer than is needed to tell it apart."""
    groups: dict[str, list[Way]] = {}
    for way in ways:
        groups.setdefault(way.name, []).append(way)
    short = [name.split(" ")[0] for name in groups]
    return {
        (brief if short.count(brief) == 1 else name): same
        for brief, (name, same) in zip(short, groups.items(), strict=True)
    }


def _levels(runs: Sequence[Shown]) -> dict[str, Series]:
    """Where the source ended, if it is on the page too."""
    sources = {find_source(shown.run.path) for shown in runs if shown.run.is_transfer}
    stages = max(len(shown.run.folder.entries) for shown in runs if shown.run.is_transfer) - 1
    levels = {}
    for shown in runs:
        if shown.run.path.resolve() in sources and shown.run.folder.entries:
            for name, value in shown.run.folder.entries[-1].metrics.items():
                if name.startswith("validation_"):
                    line = Series("source", [0, stages], [value, value], BLACK, dashed=True)
                    levels[name.removeprefix("validation_")] = replace(line, run=shown.number)
    return levels


def _level(name: str, value: float, ways: Sequence[Way]) -> Series:
    ends = [0.0, float(max(len(way.along) for way in ways) - 1)]
    return Series(name, ends, [value, value], method_colour(TRAINED_TARGET), dashed=True)


def _baselines(
    runs: Sequence[Shown], ways: Sequence[Way], landscapes: Landscapes | None
) -> tuple[list[Way], list[Note]]:
    """The simple ways to the same targets, as far as they are not on the page already."""
    there = {way.name.split(" ")[0] for way in ways}
    missing = [method for method in BASELINES if method not in there]
    if not missing:
        return [], []
    if landscapes is None:
        text = "The simple ways to the same target are carried too when the model may be rebuilt."
        return [], [Note(text, "slipstream report RUN --landscape")]
    done: list[Way] = []
    notes: list[Note] = []
    for shown in _one_for_each_target(runs):
        try:
            done += [_baseline(shown.run, method, landscapes) for method in missing]
        except (ValueError, OSError) as error:
            notes.append(Note(f"{shown.name} has no baselines: {error}", run=shown.number))
    return done, notes


def _baseline(run: RecordedRun, method: Method, landscapes: Landscapes) -> Way:
    transfer, source = run.transfer, find_source(run.path)
    if transfer is None or source is None:
        raise ValueError("its configuration does not tell a source that is still there.")
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
