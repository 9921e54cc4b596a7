"""Lines, planes and studies of the loss landscape to figures, with matplotlib."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slipstream.landscape import AlignedBarriers, Barrier, LandscapeStudy, LossLine, LossPlane
from slipstream.report.palette import run_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVELS = 25
_DECADES = 4  # of the loss above its lowest that contours show: beyond is one colour


def plot_loss_line(
    lines: Barrier | LossLine | Mapping[str, Barrier | LossLine], *, metric: str = "loss"
) -> "Figure":
    """Draw a metric along lines; a dotted chord under each barrier.

    Args:
        lines: What `loss_along` or `loss_barrier` measured, or several of them by name.
        metric: Which metric.

    Returns:
        The figure; `savefig` writes it.
    """
    named = dict(lines) if isinstance(lines, Mapping) else {"": lines}
    figure = _figure(6.4, 3.8)
    axes = figure.subplots()
    for number, (name, found) in enumerate(named.items()):
        colour = run_colour(number)
        line = found.line if isinstance(found, Barrier) else found
        values = _values(line.values, metric)
        axes.plot(line.positions.numpy(), values.numpy(), color=colour, linewidth=2)
        if isinstance(found, Barrier):
            axes.plot([0, 1], [values[0], values[-1]], ":", color=colour, linewidth=1)
        if name:
            _name_line(axes, name, line.positions, values, colour)
    axes.set_xlabel("position on the line, from 0 to 1")
    axes.set_ylabel(metric)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_aligned(found: AlignedBarriers, *, metric: str = "loss") -> "Figure":
    """Draw the barriers before and after matching.

    Args:
        found: What `align_then_barrier` measured.
        metric: Which metric.

    Returns:
        The figure; `savefig` writes it.
    """
    return plot_loss_line({"as they are": found.before, "matched": found.after}, metric=metric)


def plot_loss_plane(found: LossPlane, *, metric: str = "loss") -> "Figure":
    """Draw a metric over a plane, with what is marked on it and the path of the run.

    Args:
        found: What `loss_plane` measured.
        metric: Which metric. Contours of the loss are denser near its minimum; others are even.

    Returns:
        The figure; the circle is the start of a path, the star its end.
    """
    figure = _figure(6.2, 5.0)
    _draw_plane(figure.subplots(), found, metric)
    return figure


def plot_study(study: LandscapeStudy, *, metric: str = "loss", falls: bool = False) -> "Figure":
    """Draw a study: the barriers, what networks have in common, and the plane.

    Args:
        study: What `landscape_study` measured.
        metric: Which metric the barriers and the plane are of.
        falls: Whether its barriers are falls below the chord, as for an accuracy.

    Returns:
        The figure; `savefig` writes it.
    """
    barriers = study.drops(metric) if falls else study.rises(metric)
    panels: list[tuple[str, Tensor]] = [(f"barrier in {metric}", barriers)]
    if study.agreement is not None:
        panels.append(("same prediction", study.agreement))
    panels += [(f"linear CKA of {name}", value) for name, value in study.similarity.items()]
    side = 1.6 + 0.42 * len(study.names)
    count = len(panels) + (study.plane is not None)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = _figure(side * columns + 1.0, (side + 0.3) * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, table) in zip(grid, panels, strict=False):
        _draw_table(axes, table, study.names, title)
    if study.plane is not None:
        _draw_plane(grid[len(panels)], study.plane, metric)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure


def _name_line(axes: "Axes", name: str, x: Tensor, y: Tensor, colour: str) -> None:
    """Write the name where the line is furthest from its chord, on the outer side."""
    away = (y - torch.lerp(y[0], y[-1], (x - x[0]) / (x[-1] - x[0]))).nan_to_num(0.0, 0.0, 0.0)
    at = int(away.abs().argmax())
    below = float(away[at]) < 0
    axes.annotate(
        name,
        (float(x[at]), float(y[at])),
        xytext=(0, -6 if below else 6),
        textcoords="offset points",
        color=colour,
        ha="center",
        va="top" if below else "bottom",
        fontsize=9,
    )


def _draw_plane(axes: "Axes", found: LossPlane, metric: str) -> None:
    values = _values(found.values, metric)
    shown, levels, labels = _contours(values, spread=metric == "loss")
    colours = axes.contourf(
        found.x.numpy(), found.y.numpy(), shown.T.numpy(), levels, cmap="viridis"
    )
    bar = axes.figure.colorbar(colours, ax=axes, label=metric, ticks=levels[::4])
    bar.ax.set_yticklabels(labels[::4])
    plane = found.plane
    if plane.path is not None:
        x, y = plane.path.T.tolist()
        axes.plot(x, y, color="white", linewidth=1.2, marker=".", markersize=3)
        axes.plot(x[0], y[0], "o", color="white", markersize=7)
        axes.plot(x[-1], y[-1], "*", color="white", markersize=12)
    else:
        axes.set_aspect("equal")  # both are distances
    axes.set_xlabel(plane.labels[0], fontsize=9)
    axes.set_ylabel(plane.labels[1], fontsize=9)
    axes.set_xlim(float(found.x[0]), float(found.x[-1]))
    axes.set_ylim(float(found.y[0]), float(found.y[-1]))
    _draw_marks(axes, found)


def _draw_marks(axes: "Axes", found: LossPlane) -> None:
    """Marks with their names; one that lies over another is named below it."""
    wide, high = (float(side[-1] - side[0]) for side in (found.x, found.y))
    named: list[tuple[float, float]] = []
    for name, place in found.plane.marks.items():
        if found.plane.path is None:
            axes.plot(place.x, place.y, "o", color="white", markeredgecolor="black", markersize=6)
        near = sum(
            abs(x - place.x) < 0.3 * wide and abs(y - place.y) < 0.05 * high for x, y in named
        )
        named.append((place.x, place.y))
        right = place.x < float(found.x[0]) + 0.6 * wide
        axes.annotate(
            name if place.outside < 1e-6 else f"{name} ({place.outside:.2g} off)",
            (place.x, place.y),
            xytext=(7 if right else -7, 5 - 14 * near),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=8,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.7, "lw": 0},
        )


def _draw_table(axes: "Axes", table: Tensor, names: tuple[str, ...], title: str) -> None:
    """A matrix with its numbers in the cells."""
    finite = table[table.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    axes.imshow(table.numpy(), cmap="Blues", vmin=min(low, 0.0), vmax=max(high, 1e-12))
    places = range(len(names))
    axes.set_xticks(places, names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    for i in places:
        for j in places:
            dark = float(table[i, j]) > 0.6 * high
            axes.text(
                j,
                i,
                f"{float(table[i, j]):.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )
    axes.set_title(title, fontsize=10, loc="left")


def _contours(values: Tensor, *, spread: bool) -> tuple[Tensor, list[float], list[str]]:
    """What to draw, at which levels, and what these are called."""
    finite = values[values.isfinite()]
    lowest, highest = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if not spread:
        top = highest + 1e-6 * max(highest - lowest, 1e-3)
        levels = torch.linspace(lowest, top, _LEVELS, dtype=torch.float64).tolist()
        return values.nan_to_num(highest, highest, lowest), levels, [f"{v:.3g}" for v in levels]
    # Loss landscapes span decades: most contours near the minimum, and none for the last ones.
    high = min(highest - lowest, 10**_DECADES * max(float(finite.median()) - lowest, 1e-9))
    heights = (values - lowest).nan_to_num(high, high).clamp(0, high).sqrt()
    top = 1.000001 * high**0.5 or 1.0  # above the highest in spite of rounding
    levels = torch.linspace(0, top, _LEVELS, dtype=torch.float64).tolist()
    return heights, levels, [f"{lowest + level**2:.3g}" for level in levels]


def _values(values: Mapping[str, Tensor], metric: str) -> Tensor:
    if metric not in values:
        raise ValueError(f"metric must be one of {', '.join(values)}, got {metric!r}.")
    return values[metric]


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # slow to import, and only needed here

    return Figure(figsize=(width, height), layout="constrained")
