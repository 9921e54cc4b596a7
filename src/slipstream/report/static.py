"""The charts of a report as figures for papers, with matplotlib."""

import math
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slipstream.report.content import Chart, Contours, HeatMap, Lines, Note, Panels, Series
from slipstream.report.recorded_run import Shown
from slipstream.report.sections import Extras, build_section
from slipstream.storage.writing import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Kind = Literal[
    "loss", "metrics", "path", "motion", "speed", "distance",
    "modes", "shares", "transfer", "line", "barrier", "plane",
]  # fmt: skip
_SECTIONS = {
    "run": ("loss", "metrics"),
    "motion": ("path", "motion", "speed", "distance"),
    "modes": ("modes", "shares"),
    "transfer": ("transfer",),
    "end": ("line", "barrier", "plane"),
}
_ENDINGS = (".png", ".svg", ".pdf")
_GAP = 10  # points between names of lines that end close together
_NAMED = 45  # rows of a heat map whose names fit beside each other
_PANELS = 3  # side by side


def plot_runs(kind: Kind, runs: Sequence[Shown], *, extras: Extras | None = None) -> "Figure":
    """Draw one kind of chart of some runs, as their report has it, without the words around it.

    Args:
        kind: What to draw; `metrics` are all curves of the runs, `loss` that of the loss.
        runs: One or several.
        extras: What is needed besides: how to measure the loss, for `line`, `barrier` and `plane`.

    Returns:
        The figure; `savefig` writes it.

    Raises:
        ValueError: If there is nothing of that kind to draw, and why.
    """
    section = next(key for key, kinds in _SECTIONS.items() if kind in kinds)
    items = build_section(section, runs, extras or Extras()).items
    charts = [i for i in items if isinstance(i, Lines | Panels | HeatMap | Contours)]
    wanted = [chart for chart in charts if kind == "metrics" or chart.key.split(" ")[0] == kind]
    if not wanted:
        reasons = [item.text for item in items if isinstance(item, Note)]
        names = ", ".join(shown.name for shown in runs)
        raise ValueError(" ".join([f"There is no {kind} of {names} to draw.", *reasons]))
    return draw(wanted)


def save_figure(make: Callable[[], "Figure"], path: Path, *, overwrite: bool = False) -> None:
    """Write a figure to a file, whole or not at all; it is drawn only if it can be written.

    Args:
        make: Draws it.
        path: The file: PNG, SVG or PDF by its ending.
        overwrite: Whether to replace a file that is there.

    Raises:
        ValueError: If the ending is none of these.
        FileExistsError: If the file is there and may not be replaced.
    """
    kind = path.suffix.lower()
    if kind not in _ENDINGS:
        raise ValueError(f"--out must end in {', '.join(_ENDINGS)}, got {path.name!r}.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is already there: give another file, or pass --overwrite.")
    written = BytesIO()
    make().savefig(written, format=kind[1:], dpi=200)
    write_whole(path, [written.getvalue()])


def draw(charts: Sequence[Chart]) -> "Figure":
    """Return a figure with some charts, two in a row.

    Args:
        charts: One or more.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    columns = min(len(charts), 2)
    rows = -(-len(charts) // columns)
    height = max(map(_height, charts))
    figure = Figure(figsize=(5.6 * columns, height * rows), layout="constrained")
    parts = figure.subfigures(rows, columns, squeeze=False).flatten()
    for chart, part in zip(charts, parts, strict=False):
        _MAKERS[chart.kind](chart, part)
    return figure


def _lines(chart: Lines, part: "SubFigure") -> None:
    axes = part.subplots()
    _lines_in(chart, axes)
    axes.set_title(chart.title, fontsize=10, loc="left")
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)


def _lines_in(chart: Lines, axes: "Axes") -> None:
    for series in chart.series:
        x, y = _floats(series.x), _floats(series.y)
        if len(series.low):
            low, high = _floats(series.low), _floats(series.high)
            axes.fill_between(x, low, high, color=series.colour, alpha=0.16, linewidth=0)
        style: dict[str, Any] = {"color": series.colour, "linewidth": 1.6}
        style |= {"marker": ".", "linewidth": 0.8} if chart.square else {}
        axes.plot(x, y, linestyle="--" if series.dashed else "-", **style)
    if chart.log:
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    if chart.square:
        axes.set_aspect("equal", adjustable="datalim")
        _ends(chart.series, axes)
    else:
        axes.margins(x=0)
        _names(chart.series, axes)


def _ends(series: Sequence[Series], axes: "Axes") -> None:
    for one in series:
        x, y = _floats(one.x), _floats(one.y)
        axes.plot(x[0], y[0], "D", color=one.colour, markersize=6)
        axes.plot(x[-1], y[-1], "o", color=one.colour, markersize=6)
        for at, name in ((0, "start"), (-1, one.name)):
            axes.annotate(
                name, (x[at], y[at]), xytext=(0, 7), textcoords="offset points", ha="center",
                fontsize=9,
            )  # fmt: skip


def _names(series: Sequence[Series], axes: "Axes") -> None:
    """Write each name beside the end of its line, moved apart where lines end close together."""
    points = axes.figure.dpi / 72
    ends = []
    for one in series:
        known = [(x, y) for x, y in zip(_floats(one.x), _floats(one.y), strict=True) if y == y]
        if one.name and known:
            ends.append((float(axes.transData.transform(known[-1])[1]) / points, known[-1], one))
    ends.sort(key=lambda end: end[0])
    last = -math.inf
    for height, place, one in ends:
        last = max(height, last + _GAP)
        axes.annotate(
            one.name,
            place,
            xytext=(5, last - height),
            textcoords="offset points",
            color=one.colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def _panels(chart: Panels, part: "SubFigure") -> None:
    rows = -(-len(chart.panels) // _PANELS)
    columns = min(len(chart.panels), _PANELS)
    grid = part.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, axes in zip(chart.panels, grid, strict=False):
        _lines_in(panel, axes)
        axes.set_title(panel.title, fontsize=8, loc="left")
    for axes in grid[len(chart.panels) :]:
        axes.set_visible(False)
    part.supxlabel(chart.panels[0].x_label, fontsize=9)
    part.supylabel(chart.panels[0].y_label, fontsize=9)
    part.suptitle(chart.title, fontsize=10, x=0.02, ha="left")


def _heatmap(chart: HeatMap, part: "SubFigure") -> None:
    import numpy as np
    from matplotlib.colors import LogNorm

    axes = part.subplots()
    values = np.ma.masked_invalid([_floats(row) for row in chart.values])
    values = np.ma.masked_less_equal(values, 0) if chart.log else values
    numeric = all(not isinstance(column, str) for column in chart.columns)
    x = _floats(chart.columns) if numeric else list(range(len(chart.columns)))
    y = range(len(chart.rows))
    look: dict[str, Any] = {"cmap": "viridis", "norm": LogNorm()} if chart.log else {}
    look = look or {"cmap": "Blues", "vmin": 0}
    image = axes.pcolormesh(x, y, values, shading="nearest", rasterized=True, **look)
    part.colorbar(image, ax=axes, label=chart.label)
    every = -(-len(chart.rows) // _NAMED)
    axes.set_yticks(list(y)[::every], list(chart.rows)[::every], fontsize=8)
    if not numeric:
        axes.set_xticks(x, [str(column) for column in chart.columns])
    axes.invert_yaxis()
    axes.set_xlabel(chart.x_label)
    axes.set_title(chart.title, fontsize=10, loc="left")


def _contours(chart: Contours, part: "SubFigure") -> None:
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize

    axes = part.subplots()
    values = np.ma.masked_invalid([_floats(row) for row in chart.values])
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high > 20 * low
    levels = np.geomspace(low, high, 25) if log else np.linspace(low, high, 25)
    norm = LogNorm(low, high) if log else Normalize(low, high)
    x, y = _floats(chart.x), _floats(chart.y)
    image = axes.contourf(x, y, values, levels, cmap="viridis", norm=norm)
    ticks = levels[::6]
    bar = part.colorbar(image, ax=axes, label=chart.label, ticks=ticks)
    bar.ax.set_yticklabels([f"{tick:.2g}" for tick in ticks])
    bar.ax.minorticks_off()
    if chart.path:
        along = list(zip(*chart.path, strict=True))
        axes.plot(*along, color="white", linewidth=1.2, marker=".", markersize=3)
    for mark, sign in zip(chart.marks, "D*", strict=False):
        axes.plot(mark.x, mark.y, sign, color="white", markeredgecolor="black", markersize=8)
        axes.annotate(
            mark.name, (mark.x, mark.y), xytext=(0, 8), textcoords="offset points", ha="center",
            color="white", fontsize=9,
        )  # fmt: skip
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_title(chart.title, fontsize=10, loc="left")


def _height(chart: Chart) -> float:
    """In inches."""
    if isinstance(chart, HeatMap):
        return max(3.4, 1.2 + 0.2 * min(len(chart.rows), _NAMED))
    if isinstance(chart, Panels):
        return 1.0 + 1.5 * -(-len(chart.panels) // _PANELS)
    return 3.6


def _floats(values: Sequence[float | str | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


_MAKERS: dict[str, Callable[[Any, "SubFigure"], None]] = {
    "lines": _lines,
    "panels": _panels,
    "heatmap": _heatmap,
    "contours": _contours,
}
