"""The loss on lines, over planes and between several networks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slipstream.landscape import Barrier, LandscapeStudy, LossLine, LossPlane
from slipstream.modes import ModePlane
from slipstream.report.charts.subject import Subject
from slipstream.report.colour_scale import colour_scale
from slipstream.report.content import Contours, HeatMap, Lines, Mark, Series, plain

_NEAR = 1e-6  # distance from a plane below which a mark lies in it


def line_chart(
    lines: Sequence[tuple[Barrier | LossLine, Subject]],
    *,
    metric: str = "loss",
    key: str = "line",
    title: str = "",
    reading: str = "A dashed line is the chord: what rises above it is a barrier.",
    y_label: str = "",
) -> Lines:
    """Return a metric along lines, with the chord below each barrier."""
    series = []
    for found, subject in lines:
        line = found.line if isinstance(found, Barrier) else found
        values, x = _values(line.values, metric), plain(line.positions)
        series.append(Series(subject.name, x, plain(values), subject.colour, run=subject.run))
        if isinstance(found, Barrier):
            chord = plain(torch.lerp(values[0], values[-1], line.positions.to(values)))
            series.append(Series("", x, chord, subject.colour, dashed=True, run=subject.run))
    known = [value for line in series for value in line.y if value is not None]
    log = metric == "loss" and bool(known) and min(known) > 0 and max(known) > 20 * min(known)
    title = title or f"{metric.capitalize()} along the line"
    x_label = "position on the line"
    return Lines(key, title, reading, x_label, y_label or metric, series, log=log)


def plane_chart(
    found: LossPlane,
    *,
    metric: str = "loss",
    steps: Sequence[int] = (),
    subject: Subject | None = None,
) -> Contours:
    """Return a metric over a plane, with what is marked on it and the path of the run."""
    plane, values = found.plane, _values(found.values, metric)
    points = [] if plane.path is None else [(x, y) for x, y in plain(plane.path)]
    marks = [
        Mark(
            name if place.outside < _NEAR else f"{name} ({place.outside:.2g} off)", place.x, place.y
        )
        for name, place in plane.marks.items()
    ]
    subject = subject or Subject()
    return Contours(
        "plane",
        subject.titled(f"The {metric} around the path" if points else f"The {metric} in the plane"),
        _plane_reading(found, metric),
        plane.labels[0],
        plane.labels[1],
        colour_scale(metric, values, scale="root" if metric == "loss" else "linear"),
        plain(found.x),
        plain(found.y),
        plain(values.T),
        points,
        steps,
        marks or _ends(points),
        square=not points,
        run=subject.run,
    )


def _plane_reading(found: LossPlane, metric: str) -> str:
    plane, text = found.plane, f"Colours are the {metric}; brighter is more."
    if plane.path is not None:
        text += " The line is the path of the run."
    if plane.shares:
        text += f" The plane holds {sum(plane.shares):.0%} of its motion."
    if any(place.outside >= _NEAR for place in plane.marks.values()):
        text += " What is off lies that far from the plane."
    return text


def mode_plane_chart(found: ModePlane) -> Contours:
    """Return the loss over the values of two references, and the path of the run through it."""
    points = [(x, y) for x, y in plain(found.path.T)]
    return Contours(
        "plane",
        "The loss over two modes",
        "Colours are the loss, brighter is more; the line is the path of the run.",
        f"reference of mode {found.pair[0]}",
        f"reference of mode {found.pair[1]}",
        colour_scale("loss", found.losses, scale="root"),
        plain(found.first),
        plain(found.second),
        plain(found.losses.T),
        points,
        marks=_ends(points),
    )


def study_charts(
    study: LandscapeStudy, *, metric: str = "loss", falls: bool = False
) -> list[HeatMap | Contours]:
    """Return the barriers, what networks have in common, and the plane, of a study."""
    barriers = study.drops(metric) if falls else study.rises(metric)
    tables = {f"barrier in {metric}": barriers}
    if study.agreement is not None:
        tables["same prediction"] = study.agreement
    tables |= {f"linear CKA of {name}": value for name, value in study.similarity.items()}
    charts: list[HeatMap | Contours] = [
        matrix_chart(title, table, study.names) for title, table in tables.items()
    ]
    return charts + ([plane_chart(study.plane, metric=metric)] if study.plane is not None else [])


def matrix_chart(title: str, table: Tensor, names: Sequence[str]) -> HeatMap:
    """Return a value for each pair of networks, written into its cell."""
    low = min(0.0, float(table.nan_to_num(0.0, 0.0, 0.0).min()))
    return HeatMap(
        "matrix",
        title,
        "A row and a column for each network; brighter is more.",
        "",
        "",
        colour_scale("", table, low=low),
        list(names),
        names,
        plain(table),
        written=True,
        square=True,
    )


def _ends(points: Sequence[tuple[float, float]]) -> list[Mark]:
    return [Mark("start", *points[0]), Mark("end", *points[-1])] if points else []


def _values(values: Mapping[str, Tensor], metric: str) -> Tensor:
    if metric not in values:
        raise ValueError(f"metric must be one of {', '.join(values)}, got {metric!r}.")
    return values[metric]
