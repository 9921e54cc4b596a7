"""Metrics along the stages of transfers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slipstream.report.content import Lines, Mark, Series
from slipstream.report.palette import method_colour
from slipstream.transfer import Comparison
from slipstream.transfer.comparison import TARGET_START, TRAINED_TARGET
from slipstream.transfer.plan import Method

BASELINES: tuple[Method, ...] = ("naive", "random")  # that take no gradient


@dataclass(frozen=True)
class MeasuredTransfer:
    """A transfer of a run to one target."""

    name: str  # the method
    along: Sequence[Mapping[str, float]]  # metrics on the validation data, stage by stage
    gradients: int
    seconds: float
    run: int | None = None  # the run on the page that it is of


def along_charts(
    transfers: Sequence[MeasuredTransfer], levels: Mapping[str, Sequence[Series]]
) -> list[Lines]:
    """Return a chart for each metric: a line for each method, a band over its targets.

    Args:
        transfers: Of one method several, if there were several targets.
        levels: Further lines, by metric.

    Returns:
        Accuracy first; nothing for metrics that no stage has.
    """
    names = {name for transfer in transfers for stage in transfer.along for name in stage}
    return [_along(name, transfers, levels.get(name, ())) for name in sorted(names)]


def comparison_charts(comparison: Comparison) -> list[Lines]:
    """Return the metrics along the stages, beside the test data of the target's own training."""
    several = {name for name, _ in comparison.rows if _counts(comparison, name) > 1}
    transfers = [
        MeasuredTransfer(
            f"{o.name} ({o.gradient_evaluations} gradients)" if o.name in several else o.name,
            [without_split(s) for s in o.along],
            o.gradient_evaluations,
            o.seconds,
        )
        for o in comparison.outcomes
        if o.along
    ]
    levels = {
        metric: [
            _level(comparison, name, metric, max(len(transfer.along) for transfer in transfers) - 1)
            for name in _levels(comparison)
        ]
        for metric in (comparison.outcomes[0].metrics if transfers else ())
    }
    return along_charts(transfers, levels)


def gradients_chart(comparison: Comparison, metric: str) -> Lines | None:
    """Return what each method reaches on the test data, over the gradients that it takes.

    Args:
        comparison: Of methods; those with several numbers of gradients become lines, the others
            named points. A training of the start itself begins at the start.
        metric: Which metric.

    Returns:
        A chart; None if no method takes a gradient.
    """
    most = max((count for _, count in comparison.rows), default=0)
    if not most:
        return None
    methods = [n for n in comparison.names if n not in (TARGET_START, TRAINED_TARGET)]
    series = [_over_gradients(comparison, name, metric, most) for name in methods]
    words = metric.replace("_", " ")
    return Lines(
        f"gradients {metric}",
        f"{words.capitalize()} over gradients",
        f"{words.capitalize()} on test data at the end of each method, by the gradients it took. "
        "Dashed are methods that need no source, each point a training of its own at a rate chosen "
        "on validation data, and levels that take no gradients. A band is the range over several "
        "targets.",
        "gradient evaluations",
        f"{words} on test data",
        [
            *(one for one in series if len(one.x) > 1),
            *(_level(comparison, name, metric, most) for name in _levels(comparison)),
        ],
        marks=[
            Mark(one.name, float(one.x[0] or 0), float(one.y[0] or 0))
            for one in series
            if len(one.x) == 1
        ],
    )


def _over_gradients(comparison: Comparison, name: str, metric: str, most: int) -> Series:
    """One method: a level if it takes no gradients; from the start on if it trains the start."""
    points = {
        count: [outcome.metrics[metric] for outcome in comparison.of(name, count)]
        for other, count in sorted(comparison.rows)
        if other == name
    }
    alone, level = name in comparison.rivals, list(points) == [0]
    if alone and TARGET_START in comparison.names:
        points = {0: [o.metrics[metric] for o in comparison.of(TARGET_START)], **points}
    if level:
        points[most] = points[0]
    several = any(len(values) > 1 for values in points.values()) and not level
    return Series(
        name,
        [float(count) for count in points],
        [sum(values) / len(values) for values in points.values()],
        method_colour(name),
        [min(values) for values in points.values()] if several else (),
        [max(values) for values in points.values()] if several else (),
        dashed=alone or level,
    )


def _levels(comparison: Comparison) -> list[str]:
    return [name for name in (TARGET_START, TRAINED_TARGET) if name in comparison.names]


def _counts(comparison: Comparison, name: str) -> int:
    return sum(1 for other, _ in comparison.rows if other == name)


def by_name(transfers: Sequence[MeasuredTransfer]) -> dict[str, list[MeasuredTransfer]]:
    """Return the transfers of each method, with names only as long as needed to be distinct."""
    groups: dict[str, list[MeasuredTransfer]] = {}
    for transfer in transfers:
        groups.setdefault(transfer.name, []).append(transfer)
    short = [name.split(" ")[0] for name in groups]
    return {
        (brief if short.count(brief) == 1 else name): same
        for brief, (name, same) in zip(short, groups.items(), strict=True)
    }


def without_split(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a stage by their bare names, as transfers of 0.1 recorded them."""
    return {name.removeprefix("validation_"): value for name, value in metrics.items()}


def _along(metric: str, transfers: Sequence[MeasuredTransfer], levels: Sequence[Series]) -> Lines:
    series, without = [], []
    for name, same in by_name(transfers).items():
        stages = [
            [stage[metric] for stage in found if metric in stage]
            for found in zip(*(transfer.along for transfer in same), strict=True)
        ]
        if not all(stages):
            without.append(name)
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
    words = metric.replace("_", " ")
    reading = (
        f"{words.capitalize()} on validation data along the transfer; dashed are "
        "the simple baselines. A band is the range over several targets."
    )
    if without:
        reading += f" Not measured for {', '.join(without)}."
    return Lines(
        f"transfer {metric}",
        f"{words.capitalize()} along the transfer",
        reading,
        "stage of the transfer",
        f"{words} on validation data",
        [*series, *levels],
    )


def _level(comparison: Comparison, name: str, metric: str, last: int) -> Series:
    value, _ = comparison.mean(name, lambda outcome: outcome.metrics[metric])
    ends = [0.0, float(max(last, 1))]
    return Series(f"{name} (test)", ends, [value, value], method_colour(name), dashed=True)
