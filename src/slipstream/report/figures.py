"""Result objects to figures, with matplotlib."""

from pathlib import Path
from typing import TYPE_CHECKING

from slipstream.report.palette import METHODS
from slipstream.transfer.comparison import TARGET_START, TRAINED_TARGET, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_along(comparison: Comparison, path: str | Path, *, metric: str = "accuracy") -> None:
    """Draw a metric on the validation data along the stages of each transfer.

    A line is the mean over the targets, its band the range over them; dashed lines are where the
    targets start and where their own training ends, on the test data.

    Args:
        comparison: What to draw.
        path: The file to write: PNG, SVG or PDF by its ending.
        metric: Which metric.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    labels: list[tuple[float, str, str]] = []
    last = 0
    for name in comparison.names:
        series = [[stage[metric] for stage in o.along] for o in comparison.of(name) if o.along]
        colour = METHODS.get(name)
        if series:
            stages = list(zip(*series, strict=True))
            means = [sum(values) / len(values) for values in stages]
            last = len(means) - 1
            axes.plot(means, color=colour, linewidth=2)
            lows, highs = [min(v) for v in stages], [max(v) for v in stages]
            axes.fill_between(range(len(means)), lows, highs, color=colour, alpha=0.12, linewidth=0)
            labels.append((means[-1], name, colour or "black"))
    for name in (TARGET_START, TRAINED_TARGET):
        if name in comparison.names:
            level, _ = comparison.mean(name, lambda outcome: outcome.metrics[metric])
            axes.axhline(level, color=METHODS[name], linewidth=1, linestyle="--")
            labels.append((level, f"{name} (test)", METHODS[name]))
    _label(axes, labels, x=last)
    axes.set_xlabel("stage of the transfer")
    axes.set_ylabel(f"{metric} on validation data")
    axes.set_title(
        f"{metric} along the transfer, without training; mean and range of the targets",
        fontsize=10,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, max(last, 1))
    figure.savefig(path, dpi=150)


def _label(axes: "Axes", labels: list[tuple[float, str, str]], *, x: float) -> None:
    """Write each name beside the end of its line, moved apart where lines end close together."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.055
    ordered = sorted(labels)
    heights: list[float] = []
    for level, _, _ in ordered:
        heights.append(max(level, heights[-1] + gap) if heights else level)
    for above, position in enumerate(reversed(range(len(heights)))):
        heights[position] = min(heights[position], high - above * gap)
    for height, (_, name, colour) in zip(heights, ordered, strict=True):
        axes.annotate(
            name,
            (x, height),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
