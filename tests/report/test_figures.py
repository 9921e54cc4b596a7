"""What the figures of results show."""

import math

import pytest
import torch
from torch import nn

from slipstream.dynamics import (
    PredictionPlan,
    TrainingComplexity,
    find_phases,
    measure_motion,
    predict_training_time,
    principal_path,
)
from slipstream.evaluation import Task, squared_loss
from slipstream.landscape import (
    Barrier,
    Curvature,
    CurvatureAlong,
    LandscapeStudy,
    LossLine,
    LossPlane,
    Plane,
    PlanePoint,
)
from slipstream.modes import ModePlane, fit_modes
from slipstream.report.charts.transfer import comparison_charts
from slipstream.report.figures import (
    plot_along,
    plot_complexity,
    plot_correlations,
    plot_curvature,
    plot_loss_line,
    plot_loss_plane,
    plot_modes,
    plot_motion,
    plot_plane,
    plot_references,
    plot_shares,
    plot_study,
    plot_training_time,
)
from slipstream.trajectory import Trajectory
from slipstream.transfer import Comparison, Outcome


def titled(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def texts(axes):
    return [text.get_text() for text in axes.texts]


# Motion, curvature and complexity.


@pytest.fixture(scope="module")
def run():
    places = [0.0, 8, 16, 24, 32, 33, 34, 35, 36]
    rows = [
        {"body.w": torch.tensor([p, 0.0]), "body.b": torch.tensor([1.0]),
         "head": torch.tensor([math.sin(p)])}
        for p in places
    ]  # fmt: skip
    return Trajectory.from_weights(rows, steps=range(0, 90, 10))


def test_motion_shows_speeds_turns_parts_borders_and_the_path(run, tmp_path):
    motion = measure_motion(run).by_layer()
    phases, path = find_phases(motion), principal_path(run)
    figure = plot_motion(motion, phases=phases, path=path)
    charts = titled(figure)
    speed = charts["Speed of all weights"].lines
    assert list(speed[0].get_ydata()) == pytest.approx(motion.combined().speeds[0].tolist(), 1e-5)
    assert list(speed[0].get_xdata()) == list(motion.steps[1:])
    assert [line.get_xdata()[0] for line in speed[1:]] == [40]
    assert [phase.start for phase in phases.phases[1:]] == [40]
    turns = charts["Cosine between a move and the next"].lines[0]
    assert list(turns.get_ydata()) == pytest.approx(motion.combined().cosines[0].tolist(), abs=1e-5)
    shown = charts["Relative speed of each layer"].collections[0].get_array()
    assert shown.shape == motion.speeds.shape
    assert shown[0, 1] == pytest.approx(float(motion.relative_speeds[0, 1]))
    drawn = charts["Path of the weights"].lines[0].get_data()
    assert drawn == pytest.approx(path.coordinates.numpy(), rel=1e-5)
    figure.savefig(tmp_path / "motion.svg")
    assert (tmp_path / "motion.svg").stat().st_size


def test_motion_of_two_snapshots_and_of_none_can_be_drawn(run, tmp_path):
    plot_motion(measure_motion(run[:2]), path=principal_path(run[:2], components=1)).savefig(
        tmp_path / "two.png"
    )
    still = Trajectory.from_weights([{"w": torch.ones(2)}] * 3)
    plot_motion(measure_motion(still)).savefig(tmp_path / "still.png")


def test_curvature_is_drawn_with_its_errors_and_names_its_lines(tmp_path):
    rows = [
        Curvature(2.0, 1.0, 9.0, 0.5, -1.0, 0.1, True, 20.0, 3.0, 0.4, math.inf, 12),
        Curvature(1.0, 0.5, 4.0, 0.2, -0.5, 0.1, False, 10.0, 1.0, 0.2, 30.0, 12),
    ]
    names = tuple(Curvature.__dataclass_fields__)
    values = {
        n: torch.tensor([float(getattr(r, n)) for r in rows], dtype=torch.float64) for n in names
    }
    figure = plot_curvature(CurvatureAlong((0, 50), values))
    charts = titled(figure)
    both = charts["Ends of the Hessian's spectrum"]
    assert [list(line.get_ydata()) for line in both.lines[:2]] == [[9, 4], [-1, -0.5]]
    assert sorted(texts(both)) == ["largest", "lowest"]
    band = charts["Trace of the Hessian"].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (9, 23)
    figure.savefig(tmp_path / "curvature.png")


@pytest.mark.parametrize("steps", [5, 2500])
def test_complexity_shows_the_length_and_stays_between_the_bounds(steps, tmp_path):
    ones = torch.ones(steps, dtype=torch.float64)
    found = TrainingComplexity(
        "first", ones, 2 * ones, 3 * ones, 4 * ones, 0 * ones, 0 * ones, 1e-16, ()
    )
    figure = plot_complexity(found)
    upper, lower = figure.axes
    assert upper.lines[0].get_ydata()[-1] == steps
    assert upper.lines[0].get_xdata()[-1] == steps
    assert len(upper.lines[0].get_xdata()) <= 1000
    assert set(lower.lines[0].get_ydata()) == {1.5}
    band = lower.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0, 2)
    figure.savefig(tmp_path / "complexity.png")


def test_a_predicted_loss_its_arrivals_and_the_measured_one():
    data = [(torch.tensor([[1.0]]), torch.tensor([[2.0]]))]
    model = nn.Linear(1, 1, bias=False)
    found = predict_training_time(
        Task(model, data, squared_loss),
        weights={"weight": torch.zeros(1, 1)},
        plan=PredictionPlan(thresholds=[0.2, 0.1], lr=0.5, probe_steps=1, warm_up=1, momentum=0),
    )
    (axes,) = plot_training_time(found).axes
    assert list(axes.lines[0].get_ydata()) == [2.0, 0.5, 0.125, 0.03125]
    assert [list(line.get_ydata()) for line in axes.lines[1:3]] == [[0.2, 0.2], [0.1, 0.1]]
    marks = {text.get_text(): text.xy for text in axes.texts}
    assert marks["2 steps"] == (2, 0.2)
    assert marks["3 steps"] == (3, 0.1)
    assert marks["measured"] == (2, 0.125)
    assert axes.get_title(loc="left") == "Predicted training: reached"


# Landscapes.


def barrier(*losses):
    values = torch.tensor(losses, dtype=torch.float64)
    positions = torch.linspace(0, 1, len(losses), dtype=torch.float64)
    return Barrier(LossLine(positions, 5 * positions, {"loss": values, "accuracy": 1 - values}))


def plane(losses=None, *, path=None):
    x, y = torch.linspace(-1, 1, 5).double(), torch.linspace(0, 3, 4).double()
    losses = x[:, None] ** 2 + y if losses is None else losses
    marks = {"a": PlanePoint(0.0, 0.0, 0.0), "b": PlanePoint(0.5, 2.0, 0.25)}
    where = Plane({}, {}, {}, ("to the right", "upwards"), marks, path)
    return LossPlane(where, x, y, {"loss": losses, "accuracy": -losses})


def test_lines_have_their_names_and_their_chords():
    (axes,) = plot_loss_line({"one": barrier(0, 2, 1), "two": barrier(1, 0, 1)}).axes
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert drawn == [[0, 2, 1], [0, 0.5, 1], [1, 0, 1], [1, 1, 1]]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "-", "--"]
    assert sorted(texts(axes)) == ["one", "two"]
    assert len({line.get_color() for line in axes.lines}) == 2
    (alone,) = plot_loss_line(barrier(0, 2, 1).line, metric="accuracy").axes
    assert list(alone.lines[0].get_ydata()) == [1, -1, 0]
    assert (len(alone.lines), alone.get_ylabel()) == (1, "accuracy")


def test_the_chord_is_straight_in_the_loss_on_a_logarithmic_axis_too():
    (axes,) = plot_loss_line(barrier(0.01, 3, 1)).axes
    assert axes.get_yscale() == "log"
    assert list(axes.lines[1].get_ydata()) == pytest.approx([0.01, 0.505, 1])


def test_a_plane_shows_marks_and_how_far_they_are_off():
    axes = plot_loss_plane(plane()).axes[0]
    assert texts(axes) == ["a", "b (0.25 off)"]
    assert axes.get_xlabel() == "to the right"
    assert axes.get_aspect() == pytest.approx(1.0)
    assert axes.get_xlim() == pytest.approx((-1, 1))


def test_a_plane_shows_the_path():
    path = torch.tensor([[-0.5, 2.0], [0.0, 0.0]])
    axes = plot_loss_plane(plane(path=path), metric="accuracy").axes[0]
    x, y = axes.lines[0].get_data()
    assert (list(x), list(y)) == ([-0.5, 0.0], [2.0, 0.0])
    assert axes.get_aspect() == "auto"


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e30])
def test_losses_that_went_too_far_hide_nothing(value):
    losses = torch.linspace(0, 1, 20, dtype=torch.float64).view(5, 4)
    losses[4, 3] = value
    figure = plot_loss_plane(plane(losses))
    labels = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert float(labels[-1]) <= 1e4
    figure.canvas.draw()


def test_a_study_is_a_table_for_each_question(tmp_path):
    lines = torch.rand(2, 2, 3, dtype=torch.float64)
    alike = torch.eye(2, dtype=torch.float64)
    study = LandscapeStudy(
        ("a", "b"), torch.tensor([0, 0.5, 1]).double(), {"loss": lines, "accuracy": lines},
        alike, alike, {"layer": alike, "dead": alike * torch.nan}, plane(),
    )  # fmt: skip
    figure = plot_study(study, metric="accuracy", falls=True)
    charts = titled(figure)
    assert list(charts)[:4] == [
        "barrier in accuracy", "same prediction", "linear CKA of layer", "linear CKA of dead",
    ]  # fmt: skip
    written = [f"{v:.2f}" for v in study.drops("accuracy").flatten()]
    assert texts(charts["barrier in accuracy"]) == written
    figure.savefig(tmp_path / "study.svg")
    with pytest.raises(ValueError, match="metric must be one of loss, accuracy, got 'error'"):
        plot_loss_plane(plane(), metric="error")


# Modes.


@pytest.fixture(scope="module")
def modes():
    times = torch.linspace(0, 1, 12)
    up, wave = torch.linspace(-2, 3, 20), torch.linspace(1, 2, 7)
    rows = [{"a": up * t**3, "b": wave * torch.cos(9 * t), "c": up[:6] * t**3} for t in times]
    return fit_modes(Trajectory.from_weights(rows, steps=range(0, 120, 10)), modes=2)


def test_a_panel_for_each_mode_with_its_reference_and_its_members(modes):
    panels = plot_references(modes).axes
    assert len(panels) == 2
    for mode, axes in enumerate(panels):
        x, y = axes.lines[0].get_data()
        assert list(x) == list(modes.steps)
        assert list(y) == pytest.approx(modes.references[mode].tolist(), rel=1e-5)
        band = axes.collections[0].get_paths()[0].vertices
        assert f"{modes.share_by_mode()[mode]:.1%}" in axes.get_title(loc="left")
        # All members follow these curves exactly, with either sign, so the band has no width.
        assert band[:, 1].min() == pytest.approx(min(y), abs=1e-4)
        assert band[:, 1].max() == pytest.approx(max(y), abs=1e-4)


def test_shares_are_those_of_each_tensor(modes):
    axes = plot_shares(modes).axes[0]
    shown = torch.as_tensor(axes.collections[0].get_array().filled(math.nan))
    expected = modes.explained / modes.motion.sum(1, keepdim=True)
    torch.testing.assert_close(shown, expected.double(), rtol=1e-5, atol=1e-5)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"{n}  {s:.0%}" for n, s in modes.share_by_tensor().items()]


def test_correlations_are_in_squares(modes):
    axes = plot_correlations(modes).axes[0]
    shown = torch.as_tensor(axes.collections[0].get_array().filled(math.nan))
    first = int((modes.sample_modes == 0).sum())
    ones = torch.ones(first, first, dtype=torch.float64)
    torch.testing.assert_close(shown[:first, :first], ones)
    assert {first - 0.5} == {line.get_xdata()[0] for line in axes.lines[:1]}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1"]


def test_the_plane_of_two_modes_shows_losses_and_the_path():
    first, second = torch.linspace(-1, 1, 5), torch.linspace(0, 3, 4)
    plane = ModePlane((2, 0), first, second, first[:, None] ** 2 + second, torch.rand(2, 4))
    axes = plot_plane(plane).axes[0]
    assert axes.lines[0].get_data() == pytest.approx(plane.path.numpy(), rel=1e-5)
    assert axes.get_xlabel() == "reference of mode 2"
    assert axes.get_xlim() == pytest.approx((-1, 1))
    assert axes.get_ylim() == pytest.approx((0, 3))


def test_all_of_a_decomposition_in_one_figure_that_can_be_written(modes, tmp_path):
    plot_modes(modes).savefig(tmp_path / "modes.svg")
    assert (tmp_path / "modes.svg").read_text(encoding="utf-8").startswith("<?xml")


# Transfers.


def test_lines_along_a_transfer_are_means_over_the_targets_and_bands_their_range(tmp_path):
    def outcome(name, target, accuracy, *along):
        return Outcome(name, target, {"accuracy": accuracy}, {}, along, 0.0, 0)

    old, new = ({"accuracy": v} for v in (0.1, 0.3)), ({"validation_accuracy": 0.2},) * 2
    comparison = Comparison(
        (
            outcome("target start", 0, 0.1),
            outcome("fgmt", 0, 0.8, *old),
            outcome("trained target", 0, 0.9),
            outcome("fgmt", 1, 0.6, *new),
        )
    )
    (chart,) = comparison_charts(comparison)
    assert [line.name for line in chart.series] == [
        "fgmt", "target start (test)", "trained target (test)",
    ]  # fmt: skip
    fgmt = chart.series[0]
    assert list(fgmt.y) == pytest.approx([0.15, 0.25])
    assert (list(fgmt.low), list(fgmt.high)) == ([0.1, 0.2], [0.2, 0.3])
    assert [list(line.y) for line in chart.series[1:]] == [[0.1, 0.1], [0.9, 0.9]]
    plot_along(comparison, tmp_path / "along.svg")
    text = (tmp_path / "along.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    with pytest.raises(ValueError, match=r"along the stages \(accuracy\), got 'loss'"):
        plot_along(comparison, tmp_path / "loss.svg", metric="loss")
