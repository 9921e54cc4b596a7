"""Charts as figures for papers; the only module that knows matplotlib."""

import math
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slipstream.deprecated import moved_names
from slipstream.report.colour_scale import position
from slipstream.report.content import (
    Chart,
    Colours,
    Contours,
    HeatMap,
    Lines,
    Mark,
    Numbers,
    Panels,
    Series,
)
from slipstream.report.palette import GREY
from slipstream.storage.writing import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.figure import SubFigure

__getattr__ = moved_names(__name__)
_ENDINGS = (".png", ".svg", ".pdf")
_GAP = 10  # points between names of lines that end close together
_NAMED = 45  # rows of a heat map whose names fit below each other
_PANELS = 3  # beside each other, in a chart of usual width
_LEVELS = 25  # contours
_WIDTH, _HEIGHT = 5.6, 3.6  # of a chart, in inches


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
        raise ValueError(f"A figure must end in {', '.join(_ENDINGS)}, got {path.name!r}.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is already there: give another file, or pass --overwrite.")
    written = BytesIO()
    make().savefig(written, format=kind[1:], dpi=150)
    write_whole(path, [written.getvalue()])


def figure_of(charts: Sequence[Chart], *, columns: int = 2, width: float = _WIDTH) -> "Figure":
    """Return a figure with some charts.

    Args:
        charts: One or more; small panels take a whole row.
        columns: Charts in a row, at most.
        width: Of a chart, in inches.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    rows = _rows(charts, columns)
    columns = max(map(len, rows))
    heights = [max(_height(chart, width * columns / len(row)) for chart in row) for row in rows]
    figure = Figure(figsize=(width * columns, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for number, row in enumerate(rows):
        for at, chart in enumerate(row):
            wide = isinstance(chart, Panels)
            part = figure.add_subfigure(grid[number, slice(None) if wide else slice(at, at + 1)])
            _MAKERS[chart.kind](chart, part)
    return figure


def _rows(charts: Sequence[Chart], columns: int) -> list[list[Chart]]:
    rows: list[list[Chart]] = []
    for chart in charts:
        alone = isinstance(chart, Panels) or (bool(rows) and isinstance(rows[-1][0], Panels))
        if not rows or alone or len(rows[-1]) == columns:
            rows.append([])
        rows[-1].append(chart)
    return rows


def _height(chart: Chart, width: float) -> float:
    """In inches."""
    if isinstance(chart, HeatMap) and chart.square:
        return 0.9 * min(width, _WIDTH)
    if isinstance(chart, HeatMap):
        return max(_HEIGHT, 1.2 + 0.2 * min(len(chart.rows), _NAMED))
    if isinstance(chart, Panels):
        return 1.0 + 1.5 * -(-len(chart.panels) // _across(width))
    return min(_HEIGHT, 0.8 * width)


def _across(width: float) -> int:
    """Panels beside each other."""
    return max(1, round(width / _WIDTH * _PANELS))


def _lines(chart: Lines, part: "SubFigure") -> None:
    axes = part.subplots()
    _lines_in(chart, axes)
    _title(chart, axes)


def _title(chart: Lines | HeatMap | Contours, axes: "Axes") -> None:
    axes.set_title(chart.title, fontsize=10, loc="left")
    axes.set_xlabel(chart.x_label, fontsize=9)
    axes.set_ylabel(chart.y_label, fontsize=9)


def _lines_in(chart: Lines, axes: "Axes") -> None:
    for series in chart.series:
        x, y = _floats(series.x), _floats(series.y)
        if len(series.low):
            low, high = _floats(series.low), _floats(series.high)
            axes.fill_between(x, low, high, color=series.colour, alpha=0.16, linewidth=0)
        dots = chart.square or (len(x) < 3 and not series.dashed)
        axes.plot(
            x, y, color=series.colour, marker="." if dots else "", linewidth=0.8 if dots else 1.6,
            linestyle="--" if series.dashed else "-",
        )  # fmt: skip
    if chart.log:
        axes.set_yscale("log")
    for border in _floats(chart.borders):
        axes.axvline(border, color=GREY, linewidth=1, linestyle="--")
    axes.spines[["top", "right"]].set_visible(False)
    for mark in chart.marks:
        axes.plot(mark.x, mark.y, "o", color="black", markersize=4)
        _name(axes, mark.name, (mark.x, mark.y), ha="right", xytext=(-4, 4))
    if chart.square:
        axes.set_aspect("equal", adjustable="datalim")
        _ends(chart.series, axes)
    else:
        axes.margins(x=0)
        if chart.y_range is not None:
            axes.set_ylim(*chart.y_range)
        _names(chart.series, axes)


def _name(axes: "Axes", text: str, place: tuple[float, float], **options: Any) -> None:
    axes.annotate(text, place, textcoords="offset points", fontsize=9, **options)


def _ends(series: Sequence[Series], axes: "Axes") -> None:
    for one in series:
        x, y = _floats(one.x), _floats(one.y)
        axes.plot(x[0], y[0], "D", color=one.colour, markersize=6)
        axes.plot(x[-1], y[-1], "o", color=one.colour, markersize=6)
        for at, name in ((0, "start"), (-1, one.name)):
            _name(axes, name, (x[at], y[at]), xytext=(0, 7), ha="center")


def _names(series: Sequence[Series], axes: "Axes") -> None:
    """Write each name beside the end of its line, moved apart where lines end close together."""
    axes.autoscale_view()  # or the ends are not where they will be
    points = axes.figure.dpi / 72
    ends = []
    for one in series:
        known = [(x, y) for x, y in zip(_floats(one.x), _floats(one.y), strict=True) if y == y]
        if one.name and known:
            ends.append((float(axes.transData.transform(known[-1])[1]) / points, known[-1], one))
    ends.sort(key=lambda end: end[0])
    heights: list[float] = []
    for height, _, _ in ends:
        heights.append(max(height, heights[-1] + _GAP) if heights else height)
    top = axes.bbox.y1 / points
    for number in reversed(range(len(heights))):
        heights[number] = min(heights[number], top)
        top = heights[number] - _GAP
    for height, (own, place, one) in zip(heights, ends, strict=True):
        options: dict[str, Any] = {"color": one.colour, "va": "center", "annotation_clip": False}
        _name(axes, one.name, place, xytext=(5, height - own), **options)


def _panels(chart: Panels, part: "SubFigure") -> None:
    columns = min(len(chart.panels), _across(part.bbox.width / part.figure.dpi))
    rows = -(-len(chart.panels) // columns)
    grid = part.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, axes in zip(chart.panels, grid, strict=False):
        _lines_in(panel, axes)
        axes.set_title(panel.title, fontsize=8, loc="left")
    for axes in grid[len(chart.panels) :]:
        axes.set_visible(False)
    for axes in grid[len(chart.panels) - columns : len(chart.panels)]:
        axes.tick_params(labelbottom=True)  # the lowest of its column, as others are left out
    part.supxlabel(chart.panels[0].x_label, fontsize=9)
    part.supylabel(chart.panels[0].y_label, fontsize=9)
    part.suptitle(chart.title, fontsize=10, x=0.02, ha="left")


def _heatmap(chart: HeatMap, part: "SubFigure") -> None:
    import numpy as np

    axes = part.subplots()
    values = np.ma.masked_invalid([_floats(row) for row in chart.values])
    if chart.colours.scale == "log":
        values = np.ma.masked_less_equal(values, 0)
    numeric = all(not isinstance(column, str) for column in chart.columns)
    x = _floats(chart.columns) if numeric else [float(n) for n in range(len(chart.columns))]
    norm = _norm(chart.colours)
    image = axes.pcolormesh(
        x, range(len(chart.rows)), values, shading="nearest", rasterized=True,
        cmap="viridis", norm=norm,
    )  # fmt: skip
    named = [(n, name) for n, name in enumerate(chart.rows) if name]
    named = named[:: -(-len(named) // _NAMED)]
    axes.set_yticks([n for n, _ in named], [name for _, name in named], fontsize=8)
    if not numeric:
        tilted: dict[str, Any] = {"rotation": 40, "ha": "right"} if chart.square else {}
        axes.set_xticks(x, [str(column) for column in chart.columns], fontsize=8, **tilted)
    axes.invert_yaxis()
    for border in _floats(chart.borders):
        axes.axvline(border, color="white", linewidth=0.6)
    for border in _floats(chart.row_borders):
        axes.axhline(border, color="white", linewidth=0.6)
    if chart.square:
        axes.set_aspect("equal")
    _title(chart, axes)
    if chart.written:
        _write_values(chart, axes)
    else:
        _colour_bar(chart.colours, image, axes)


def _write_values(chart: HeatMap, axes: "Axes") -> None:
    for i, row in enumerate(chart.values):
        for j, value in enumerate(row):
            if value is not None:
                colour = "black" if position(chart.colours, value) > 0.6 else "white"
                text = f"{value + 0.0:.2f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)


def _contours(chart: Contours, part: "SubFigure") -> None:
    import numpy as np

    axes = part.subplots()
    colours = chart.colours
    high = colours.high
    values = np.array([_floats(row) for row in chart.values])
    values = np.nan_to_num(values, nan=high).clip(colours.low, high)
    steps = np.linspace(0, 1, _LEVELS) ** (2 if colours.scale == "root" else 1)
    levels = colours.low + (high - colours.low) * steps
    levels[-1] = np.nextafter(high, np.inf)  # above the highest in spite of rounding
    x, y = _floats(chart.x), _floats(chart.y)
    image = axes.contourf(x, y, values, levels, cmap="viridis", norm=_norm(colours))
    _colour_bar(colours, image, axes)
    if chart.path:
        along = list(zip(*chart.path, strict=True))
        axes.plot(*along, color="white", linewidth=1.2, marker=".", markersize=3)
    if chart.square:
        axes.set_aspect("equal")
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    _title(chart, axes)
    _draw_marks(chart.marks, axes)


def _draw_marks(marks: Sequence[Mark], axes: "Axes") -> None:
    """Marks with their names; one that lies over another is named below it."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    named: list[Mark] = []
    for number, mark in enumerate(marks):
        sign = "D" if not number else "*"
        axes.plot(mark.x, mark.y, sign, color="white", markeredgecolor="black", markersize=7)
        near = sum(
            abs(other.x - mark.x) < 0.3 * (right - left)
            and abs(other.y - mark.y) < 0.05 * (top - bottom)
            for other in named
        )
        named.append(mark)
        before = mark.x > left + 0.6 * (right - left)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.7, "lw": 0}
        _name(
            axes, mark.name, (mark.x, mark.y), xytext=(-7 if before else 7, 5 - 14 * near),
            ha="right" if before else "left", bbox=box,
        )  # fmt: skip


def _norm(colours: Colours) -> Any:
    from matplotlib.colors import LogNorm, Normalize, PowerNorm

    if colours.scale == "root":
        return PowerNorm(0.5, colours.low, colours.high)
    norm = LogNorm if colours.scale == "log" else Normalize
    return norm(colours.low, colours.high)


def _colour_bar(colours: Colours, image: Any, axes: "Axes") -> None:
    bar = axes.figure.colorbar(image, ax=axes, ticks=list(colours.ticks))
    bar.set_label(colours.label, fontsize=9)
    bar.ax.minorticks_off()
    bar.ax.set_yticks(list(colours.ticks), [f"{tick:.4g}" for tick in colours.ticks], fontsize=8)


def _floats(values: Numbers | Sequence[float | str]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


_MAKERS: dict[str, Callable[[Any, "SubFigure"], None]] = {
    "lines": _lines,
    "panels": _panels,
    "heatmap": _heatmap,
    "contours": _contours,
}
