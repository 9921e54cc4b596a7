"""What the figures of landscapes show."""

import pytest
import torch

from slipstream.landscape import Barrier, LandscapeStudy, LossLine, LossPlane, Plane, PlanePoint
from slipstream.report.landscape import plot_loss_line, plot_loss_plane, plot_study


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


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_lines_have_their_names_and_their_chords():
    axes = plot_loss_line({"one": barrier(0, 2, 1), "two": barrier(1, 0, 1)}).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [0, 2, 1]
    assert list(axes.lines[1].get_ydata()) == [0, 1]
    assert texts(axes) == ["one", "two"]
    assert [text.xy for text in axes.texts] == [(0.5, 2.0), (0.5, 0.0)]
    assert len({line.get_color() for line in axes.lines}) == 2
    alone = plot_loss_line(barrier(0, 2, 1).line, metric="accuracy").axes[0]
    assert alone.lines[0].get_ydata().tolist() == [1, -1, 0]
    assert (len(alone.lines), alone.get_ylabel()) == (1, "accuracy")


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
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:4] == [
        "barrier in accuracy", "same prediction", "linear CKA of layer", "linear CKA of dead",
    ]  # fmt: skip
    assert texts(figure.axes[0]) == [f"{v:.2f}" for v in study.drops("accuracy").flatten()]
    figure.savefig(tmp_path / "study.svg")
    with pytest.raises(ValueError, match="metric must be one of loss, accuracy, got 'error'"):
        plot_loss_plane(plane(), metric="error")
