"""Decompositions to figures, with matplotlib."""

from typing import TYPE_CHECKING

import torch

from slipstream.modes import ModePlane, Modes
from slipstream.report.palette import BLUE, SKY

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    Canvas = Figure | SubFigure

_CURVE, _BAND = BLUE, SKY
_COLUMNS = 5  # panels side by side
_SHOWN = 1000  # rows of the correlation matrix: a figure has no more points
_NAMED = 40  # tensors whose names fit beside each other


def plot_modes(modes: Modes) -> "Figure":
    """Draw the references, the shares of the motion and the correlations in one figure.

    Args:
        modes: What to draw.

    Returns:
        The figure; `savefig` writes it.
    """
    columns, rows = _grid(modes)
    upper, lower = 2.1 * rows + 0.4, max(5.8, _height(modes))
    figure = _figure(max(2.4 * columns, 8.8 + 0.35 * len(modes.references)), upper + lower)
    heights, widths = [upper, lower], [3.6 + 0.35 * len(modes.references), 5.2]
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flatten()
    left, right = below.subfigures(1, 2, squeeze=False, width_ratios=widths).flatten()
    plot_references(modes, figure=above)
    plot_shares(modes, figure=left)
    plot_correlations(modes, figure=right)
    return figure


def plot_references(modes: Modes, *, figure: "Canvas | None" = None) -> "Canvas":
    """Draw the reference of each mode, with a band where four fifths of the sampled members are.

    Members that move against their reference are turned around. A narrow band around the curve
    is a good mode.

    Args:
        modes: What to draw.
        figure: Where to draw it, if not in a new figure.

    Returns:
        The figure with a panel for each mode.
    """
    count = len(modes.references)
    columns, rows = _grid(modes)
    figure = figure or _figure(2.4 * columns, 2.1 * rows + 0.4)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    shares = modes.share_by_mode().tolist()
    for mode, axes in enumerate(panels[:count]):
        reference = modes.references[mode]
        members = modes.samples[modes.sample_modes == mode].double()
        if len(members):
            aligned = members * (members @ reference).sign()[:, None]
            low, high = aligned.quantile(aligned.new_tensor([0.1, 0.9]), dim=0).tolist()
            axes.fill_between(modes.steps, low, high, color=_BAND, alpha=0.35, lw=0)
        axes.plot(modes.steps, reference.tolist(), color=_CURVE, linewidth=1.5)
        axes.set_title(f"mode {mode}: {shares[mode]:.1%} of the motion", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[count - columns : count]:
        axes.tick_params(labelbottom=True)  # the lowest of its column, as others are left out
    for axes in panels[count:]:
        axes.set_visible(False)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("deviations from the mean", fontsize=9)
    return figure


def plot_shares(modes: Modes, *, figure: "Canvas | None" = None) -> "Canvas":
    """Draw how much of the motion of each tensor each mode explains.

    Args:
        modes: What to draw.
        figure: Where to draw it, if not in a new figure.

    Returns:
        The figure: a row for each tensor, a column for each mode, the sum of a row at its end.
    """
    names, count = modes.names, len(modes.references)
    shares = modes.explained / modes.motion.sum(1, keepdim=True)
    figure = figure or _figure(3.6 + 0.35 * count, _height(modes))
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), aspect="auto", cmap="Blues", vmin=0)
    figure.colorbar(image, ax=axes, label="share of the tensor's motion")
    every = -(-len(names) // _NAMED)
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize=7)
    axes.set_xticks(range(count))
    axes.set_xlabel("mode")
    ends = axes.secondary_yaxis("right")
    totals = [f"{share:.0%}" for share in modes.share_by_tensor().values()]
    ends.set_yticks(range(0, len(names), every), totals[::every], fontsize=7)
    ends.tick_params(length=0)
    axes.set_title(f"{modes.share:.1%} of all motion is explained", fontsize=10, loc="left")
    return figure


def plot_correlations(modes: Modes, *, figure: "Canvas | None" = None) -> "Canvas":
    """Draw the absolute correlations of the sampled weights, sorted by mode.

    Args:
        modes: What to draw.
        figure: Where to draw it, if not in a new figure.

    Returns:
        The figure: dark squares along the diagonal are groups that move in step.

    Raises:
        ValueError: If the modes were saved without samples.
    """
    if not len(modes.samples):
        raise ValueError("These modes were saved without samples: decompose the run again.")
    every = -(-len(modes.samples) // _SHOWN)
    order = modes.sample_modes.argsort(stable=True)[::every]
    rows = modes.samples[order]
    alike = (rows @ rows.T / rows.shape[1]).abs()
    figure = figure or _figure(5.2, 5.8)
    axes = figure.subplots()
    image = axes.imshow(alike.numpy(), cmap="magma_r", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="|correlation|", location="bottom", shrink=0.8)
    counts = torch.bincount(modes.sample_modes[order], minlength=len(modes.references))
    ends = counts.cumsum(0)
    for end in ends[:-1].tolist():
        axes.axhline(end - 0.5, color="white", linewidth=0.6)
        axes.axvline(end - 0.5, color="white", linewidth=0.6)
    wide = counts >= len(order) / 40  # narrower ones leave no room for a number
    axes.set_yticks((ends - counts / 2 - 0.5)[wide].tolist(), wide.nonzero().flatten().tolist())
    axes.set_xticks([])
    axes.set_ylabel("mode")
    axes.set_title(f"{len(order)} sampled weights", fontsize=10, loc="left")
    return figure


def plot_plane(plane: ModePlane) -> "Figure":
    """Draw the loss over the values of two references, and the path of the run through it.

    Args:
        plane: What `mode_plane` measured.

    Returns:
        A figure with contours; the circle is the start of the run, the star its end.
    """
    figure = _figure(5.6, 4.6)
    axes = figure.subplots()
    # Loss landscapes span decades: most contours near the minimum.
    lowest = float(plane.losses.min())
    heights = (plane.losses - lowest).clamp(min=0).sqrt()
    levels = [float(h) for h in torch.linspace(0, float(heights.max()) or 1.0, 25)]
    shown = axes.contourf(
        plane.first.numpy(), plane.second.numpy(), heights.T.numpy(), levels, cmap="viridis"
    )
    bar = figure.colorbar(shown, ax=axes, label="loss", ticks=levels[::4])
    bar.ax.set_yticklabels([f"{lowest + level**2:.3g}" for level in levels[::4]])
    x, y = plane.path.tolist()
    axes.plot(x, y, color="white", linewidth=1.2, marker=".", markersize=3)
    axes.plot(x[0], y[0], "o", color="white", markersize=7)
    axes.plot(x[-1], y[-1], "*", color="white", markersize=12)
    axes.set_xlabel(f"reference of mode {plane.pair[0]}")
    axes.set_ylabel(f"reference of mode {plane.pair[1]}")
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # slow to import, and only needed here

    return Figure(figsize=(width, height), layout="constrained")


def _grid(modes: Modes) -> tuple[int, int]:
    """Columns and rows of panels, one for each mode."""
    columns = min(len(modes.references), _COLUMNS)
    return columns, -(-len(modes.references) // columns)


def _height(modes: Modes) -> float:
    """Of the figure whose rows are tensors."""
    return 1.2 + 0.22 * min(len(modes.names), _NAMED)
