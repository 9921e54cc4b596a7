"""Predicted training times to figures, with matplotlib."""

from typing import TYPE_CHECKING

from slipstream.dynamics import TrainingTime
from slipstream.report.palette import BLUE, GREY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_training_time(found: TrainingTime) -> "Figure":
    """Draw the predicted loss, the thresholds, and what the real steps that were taken gave.

    Args:
        found: What to draw.

    Returns:
        The figure; `savefig` writes it.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.losses.tolist(), color=BLUE, linewidth=1.8, label="predicted")
    for arrival in found.arrivals:
        axes.axhline(arrival.loss, color=GREY, linewidth=0.8, linestyle="--")
        if arrival.steps is not None:
            axes.plot(arrival.steps, arrival.loss, "o", color=BLUE, markersize=5)
            axes.annotate(
                f"{arrival.steps} steps",
                (arrival.steps, arrival.loss),
                xytext=(-4, 5),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
    if found.trust.steps:
        at = found.warm_up + found.trust.steps
        axes.plot(at, found.trust.real_loss, "x", color=VERMILLION, label="real")
        axes.legend(frameon=False, fontsize=8)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss over the data")
    axes.set_title(
        f"{found.status}; path error {found.trust.path_error:.2g}", fontsize=10, loc="left"
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure
