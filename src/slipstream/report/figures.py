"""Results to figures with matplotlib, one function for each kind of result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slipstream.dynamics import (
    MarginProgress,
    Motion,
    Phases,
    PrincipalPath,
    TrainingComplexity,
    TrainingTime,
)
from slipstream.landscape import (
    AlignedBarriers,
    Barrier,
    CurvatureAlong,
    LandscapeStudy,
    LossLine,
    LossPlane,
)
from slipstream.modes import ModePlane, Modes
from slipstream.recipes import Pictures
from slipstream.report.charts import landscape, motion, transfer
from slipstream.report.charts import modes as mode_charts
from slipstream.report.charts.complexity import complexity_charts
from slipstream.report.charts.curvature import curvature_charts
from slipstream.report.charts.reconstruction import margin_charts, pictures_chart
from slipstream.report.charts.subject import Subject
from slipstream.report.charts.training_time import training_time_chart
from slipstream.report.content import Chart, Contours, HeatMap, Lines, Note, Panels
from slipstream.report.palette import run_colour
from slipstream.report.recorded_run import Shown
from slipstream.report.sections import Extras, build_section
from slipstream.report.static import figure_of, save_figure
from slipstream.transfer import Comparison

if TYPE_CHECKING:
    from slipstream.report.static import Figure

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
        reasons = [item.text for item in items if isinstance(item, Note) and not item.lead]
        names = ", ".join(shown.name for shown in runs)
        raise ValueError(" ".join([f"There is no {kind} of {names} to draw.", *reasons]))
    return figure_of(wanted)


def plot_motion(
    found: Motion, *, phases: Phases | None = None, path: PrincipalPath | None = None
) -> "Figure":
    """Draw speed and direction of a whole run, the speed of its parts, and its path.

    Args:
        found: What `measure_motion` returned, or its `by_layer()`: a row of the map for each part.
        phases: What `find_phases` returned; their borders are drawn.
        path: What `principal_path` returned; a chart of its own.

    Returns:
        The figure; `savefig` writes it.
    """
    whole, subject = [(found, Subject())], Subject()
    speed, turns = motion.speed_chart(whole, phases), motion.turn_chart(whole, phases)
    charts: list[Chart] = [speed, turns, motion.speed_map(found, subject, phases)]
    return figure_of([*charts, *([motion.path_chart(path, subject)] if path else [])])


def plot_curvature(found: CurvatureAlong) -> "Figure":
    """Draw how the loss bends along a run: loss, gradient, Hessian, sharpness and noise scale."""
    return figure_of(curvature_charts(found), columns=3, width=3.8)


def plot_margin(found: MarginProgress) -> "Figure":
    """Draw how far weights are made of training examples along a run, and the least margin."""
    return figure_of(margin_charts(found))


def plot_pictures(found: Pictures) -> "Figure":
    """Draw images above what was found that is most like them.

    Args:
        found: Those of a `Reconstruction`.

    Returns:
        The figure; `savefig` writes it.

    Raises:
        ValueError: If they are not images.
    """
    chart = pictures_chart(found, Subject())
    if chart is None:
        shape = tuple(found.train.shape[1:])
        raise ValueError(f"Inputs of shape {shape} are not images: there is nothing to draw.")
    return figure_of([chart], columns=1, width=9.0)


def plot_complexity(found: TrainingComplexity) -> "Figure":
    """Draw how far the first layer's bias moved, and the slope of the function in its bounds."""
    return figure_of(complexity_charts(found), columns=1)


def plot_training_time(found: TrainingTime) -> "Figure":
    """Draw the predicted loss, the thresholds, and what real steps gave."""
    return figure_of([training_time_chart(found)])


def plot_loss_line(
    lines: Barrier | LossLine | Mapping[str, Barrier | LossLine], *, metric: str = "loss"
) -> "Figure":
    """Draw a metric along lines; a dashed chord under each barrier.

    Args:
        lines: What `loss_along` or `loss_barrier` measured, or several of them by name.
        metric: Which metric.

    Returns:
        The figure; `savefig` writes it.
    """
    named = dict(lines) if isinstance(lines, Mapping) else {"": lines}
    subjects = [(one, Subject(n, run_colour(at))) for at, (n, one) in enumerate(named.items())]
    return figure_of([landscape.line_chart(subjects, metric=metric)])


def plot_aligned(found: AlignedBarriers, *, metric: str = "loss") -> "Figure":
    """Draw the barriers before and after matching."""
    return plot_loss_line({"as they are": found.before, "matched": found.after}, metric=metric)


def plot_loss_plane(found: LossPlane, *, metric: str = "loss") -> "Figure":
    """Draw a metric over a plane, with what is marked on it and the path of the run."""
    return figure_of([landscape.plane_chart(found, metric=metric)])


def plot_study(study: LandscapeStudy, *, metric: str = "loss", falls: bool = False) -> "Figure":
    """Draw a study: the barriers, what networks have in common, and the plane.

    Args:
        study: What `landscape_study` measured.
        metric: Which metric the barriers and the plane are of.
        falls: Whether its barriers are falls below the chord, as for an accuracy.

    Returns:
        The figure; `savefig` writes it.
    """
    charts = landscape.study_charts(study, metric=metric, falls=falls)
    return figure_of(charts, columns=3, width=max(3.6, 2.0 + 0.42 * len(study.names)))


def plot_modes(modes: Modes) -> "Figure":
    """Draw the references, the shares of the motion and the correlations of a decomposition.

    Args:
        modes: With their samples.

    Returns:
        The figure; `savefig` writes it.

    Raises:
        ValueError: If the modes were saved without samples.
    """
    subject = Subject()
    shares = mode_charts.share_map(modes, subject)
    correlations = mode_charts.correlation_map(modes)
    return figure_of([mode_charts.reference_panels(modes, subject), shares, correlations])


def plot_references(modes: Modes) -> "Figure":
    """Draw the reference of each mode, with a band where four fifths of its members are."""
    return figure_of([mode_charts.reference_panels(modes, Subject())])


def plot_shares(modes: Modes) -> "Figure":
    """Draw how much of the motion of each tensor each mode explains."""
    return figure_of([mode_charts.share_map(modes, Subject())])


def plot_correlations(modes: Modes) -> "Figure":
    """Draw the absolute correlations of the sampled weights, sorted by mode."""
    return figure_of([mode_charts.correlation_map(modes)])


def plot_plane(plane: ModePlane) -> "Figure":
    """Draw the loss over the values of two references, and the path of the run through it."""
    return figure_of([landscape.mode_plane_chart(plane)])


def plot_along(comparison: Comparison, path: str | Path, *, metric: str = "accuracy") -> None:
    """Draw a metric on the validation data along the stages of each transfer.

    A line is the mean over the targets, its band the range over them; dashed lines are where the
    targets start and where their own training ends, on the test data.

    Args:
        comparison: What to draw.
        path: The file to write: PNG, SVG or PDF by its ending.
        metric: Which metric.

    Raises:
        ValueError: If no stage has that metric.
    """
    charts = {chart.key: chart for chart in transfer.comparison_charts(comparison)}
    if f"transfer {metric}" not in charts:
        known = ", ".join(key.removeprefix("transfer ") for key in charts) or "none"
        raise ValueError(f"metric must be one of those along the stages ({known}), got {metric!r}.")
    save_figure(
        lambda: figure_of([charts[f"transfer {metric}"]], width=7.5), Path(path), overwrite=True
    )


def plot_gradients(comparison: Comparison, *, metric: str = "accuracy") -> "Figure":
    """Draw what each method reaches on the test data over the gradients that it takes.

    Args:
        comparison: Of methods, some with several numbers of gradients.
        metric: Which metric.

    Returns:
        A figure.

    Raises:
        ValueError: If no method takes a gradient.
    """
    chart = transfer.gradients_chart(comparison, metric)
    if chart is None:
        raise ValueError("No method of this comparison takes a gradient: there is nothing to draw.")
    return figure_of([chart], width=7.5)
