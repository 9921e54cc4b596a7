"""How a run moves and how the loss bends along it, to figures with matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slipstream.dynamics import Motion, Phases, PrincipalPath, TrainingComplexity
from slipstream.landscape import CurvatureAlong
from slipstream.report.palette import BLUE, GREY, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_NAMED = 40  # parts whose names fit beside each other
_POINTS = 1000  # a curve has no more: means over stretches of the steps


def plot_motion(
    motion: Motion, *, phases: Phases | None = None, path: PrincipalPath | None = None
) -> "Figure":
    """Draw speed and direction of a whole run, the speed of its parts, and its path.

    Args:
        motion: What `measure_motion` returned, or its `by_layer()`: a row of the map for each part.
        phases: What `find_phases` returned; their borders are drawn.
        path: What `principal_path` returned; a panel of its own.

    Returns:
        The figure; `savefig` writes it.
    """
    whole = motion.combined()
    height = 4.4 + 0.22 * min(len(motion.names), _NAMED)
    figure = _figure(9.6 if path else 6.4, height)
    panels = figure.subplot_mosaic(
        [[name, "path"] if path else [name] for name in ("speed", "turn", "map")],
        height_ratios=[1.3, 1, 1.1 + 0.22 * min(len(motion.names), _NAMED)],
        width_ratios=[1.7, 1] if path else [1],
    )
    _draw_speed(panels["speed"], whole)
    _draw_turns(panels["turn"], whole)
    _draw_map(figure, panels["map"], motion)
    panels["turn"].sharex(panels["speed"])
    panels["map"].sharex(panels["speed"])
    for border in [p.start for p in phases.phases[1:]] if phases else []:
        for name in ("speed", "turn", "map"):
            panels[name].axvline(border, color=GREY, linewidth=1, linestyle="--")
    if path is not None:
        _draw_path(panels["path"], path)
    return figure


def plot_curvature(found: CurvatureAlong) -> "Figure":
    """Draw how the loss bends along a run.

    Args:
        found: What `curvature_along` measured.

    Returns:
        The figure: loss and gradient, eigenvalues with their residuals, trace with its standard
        error, sharpness and the noise scale.
    """
    figure = _figure(9.6, 5.4)
    panels = figure.subplots(2, 3, sharex=True).flatten()
    for axes, (title, name, error) in zip(
        panels,
        (
            ("loss", "loss", None),
            ("norm of the gradient", "gradient_norm", None),
            ("largest and lowest eigenvalue", "largest", "largest_residual"),
            ("trace of the Hessian", "trace", "trace_error"),
            ("rise of the loss in the ball", "sharpness", None),
            ("noise scale, in examples", "noise_scale", None),
        ),
        strict=True,
    ):
        _draw_value(axes, found, name, error, BLUE)
        axes.set_title(title, fontsize=9, loc="left")
    _draw_value(panels[2], found, "lowest", "lowest_residual", VERMILLION)
    panels[2].axhline(0, color=GREY, linewidth=0.8)
    scales = found.values["noise_scale"]
    if bool((scales.isfinite() & (scales > 0)).any()):
        panels[5].set_yscale("log")
    figure.supxlabel("step", fontsize=9)
    return figure


def plot_complexity(found: TrainingComplexity) -> "Figure":
    """Draw the way of the first bias, and the slope of the function between its bounds.

    Args:
        found: What a `ComplexityMeter` measured, or `complexity_of_run`.

    Returns:
        The figure: above the length by step; below the slope at the examples, as means over
        stretches of the steps, with what the bias alone allows as a band.
    """
    figure = _figure(6.4, 5.0)
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps, lengths = _thinned(found.moves.cumsum(0), last=True)
    upper.plot(steps, lengths, color=BLUE, linewidth=1.5)
    upper.set_title(f"length of the way of the bias of {found.layer!r}", fontsize=9, loc="left")
    rates = torch.where(found.exposures > 0, found.moves / found.exposures, torch.nan)
    steps, slopes = _thinned(found.lipschitz)
    low, high = (_thinned(s * rates)[1] for s in (found.smallest, found.largest))
    lower.fill_between(steps, low, high, color=SKY, alpha=0.4, linewidth=0)
    lower.plot(steps, slopes, color=BLUE, linewidth=1.2)
    lower.set_title("slope of the function, and its bounds", fontsize=9, loc="left")
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_speed(axes: "Axes", whole: Motion) -> None:
    speeds = whole.speeds[0]
    axes.stairs(speeds.numpy(), list(whole.steps), color=BLUE, linewidth=1.5, baseline=None)
    if bool((speeds > 0).any()):
        axes.set_yscale("log", nonpositive="mask")
        _plain_ticks(axes.yaxis)
    axes.set_xlim(whole.steps[0], whole.steps[-1])
    axes.set_title("speed of all weights, by step", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelbottom=False)


def _draw_turns(axes: "Axes", whole: Motion) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(whole.steps[1:-1], whole.cosines[0].tolist(), color=BLUE, linewidth=1.5)
    axes.set_ylim(-1.05, 1.05)
    axes.set_title("cosine between a move and the next", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelbottom=False)


def _draw_map(figure: "Figure", axes: "Axes", motion: Motion) -> None:
    from matplotlib.colors import LogNorm

    speeds = motion.relative_speeds
    seen = speeds[speeds.isfinite() & (speeds > 0)]
    norm = LogNorm(float(seen.min()), float(seen.max())) if len(seen) else None
    rows = torch.arange(len(motion.names) + 1) - 0.5
    image = axes.pcolormesh(
        list(motion.steps), rows.tolist(), speeds.numpy(), cmap="cividis", norm=norm
    )
    axes.invert_yaxis()
    every = -(-len(motion.names) // _NAMED)
    axes.set_yticks(range(0, len(motion.names), every), motion.names[::every], fontsize=7)
    axes.set_xlabel("step")
    axes.set_title("speed, relative to the weights", fontsize=9, loc="left")
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.6, pad=0.02)
    if norm is not None:
        _plain_ticks(bar.ax.xaxis)


def _draw_path(axes: "Axes", path: PrincipalPath) -> None:
    x, y = path.coordinates[0], path.coordinates[1] if len(path.coordinates) > 1 else None
    heights = torch.zeros_like(x) if y is None else y
    axes.plot(x.tolist(), heights.tolist(), color=BLUE, linewidth=1, marker=".", markersize=4)
    axes.plot(x[:1].tolist(), heights[:1].tolist(), "o", color=VERMILLION, markersize=7)
    axes.plot(x[-1:].tolist(), heights[-1:].tolist(), "*", color=VERMILLION, markersize=12)
    axes.set_aspect("equal", adjustable="datalim")
    shares = [f"{share:.0%}" for share in path.shares.tolist()]
    axes.set_xlabel(f"first component, {shares[0]}")
    axes.set_ylabel(f"second component, {shares[1]}" if len(shares) > 1 else "")
    axes.set_title("path: from the circle to the star", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_value(
    axes: "Axes", found: CurvatureAlong, name: str, error: str | None, colour: str
) -> None:
    values = found.values[name]
    axes.plot(found.steps, values.tolist(), color=colour, linewidth=1.5, marker=".")
    if error is not None:
        spread = found.values[error]
        low, high = (values - spread).tolist(), (values + spread).tolist()
        axes.fill_between(found.steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.spines[["top", "right"]].set_visible(False)


def _plain_ticks(axis: "Axis") -> None:
    """Numbers that fit beside each other on a logarithmic axis of about a decade or of many."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _thinned(values: Tensor, *, last: bool = False) -> tuple[Sequence[float], Sequence[float]]:
    """Steps and values, as means over stretches of the steps, or the last of each."""
    every = -(-len(values) // _POINTS)
    stretches = torch.split(values, every)
    shown = [float(part[-1] if last else part.nanmean()) for part in stretches]
    return [min((n + 1) * every, len(values)) for n in range(len(stretches))], shown


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # slow to import, and only needed here

    return Figure(figsize=(width, height), layout="constrained")
