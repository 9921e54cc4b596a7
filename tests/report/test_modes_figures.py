"""What the figures of decompositions show."""

import pytest
import torch

from slipstream.modes import ModePlane, fit_modes
from slipstream.report.modes import (
    plot_correlations,
    plot_modes,
    plot_plane,
    plot_references,
    plot_shares,
)
from slipstream.trajectory import Trajectory


@pytest.fixture(scope="module")
def modes():
    times = torch.linspace(0, 1, 12)
    up, wave = torch.linspace(-2, 3, 20), torch.linspace(1, 2, 7)
    rows = [{"a": up * t**3, "b": wave * torch.cos(9 * t), "c": up[:6] * t**3} for t in times]
    return fit_modes(Trajectory.from_weights(rows, steps=range(0, 120, 10)), modes=2)


def test_a_panel_for_each_mode_with_its_reference_and_its_members(modes):
    panels = [axes for axes in plot_references(modes).axes if axes.get_visible()]
    assert len(panels) == 2
    for mode, axes in enumerate(panels):
        x, y = axes.lines[0].get_data()
        assert list(x) == list(modes.steps)
        assert list(y) == modes.references[mode].tolist()
        band = axes.collections[0].get_paths()[0].vertices
        assert f"{modes.share_by_mode()[mode]:.1%}" in axes.get_title(loc="left")
        # All members follow these curves exactly, with either sign, so the band has no width.
        assert band[:, 1].min() == pytest.approx(min(y), abs=1e-4)
        assert band[:, 1].max() == pytest.approx(max(y), abs=1e-4)


def test_shares_are_those_of_each_tensor(modes):
    axes = plot_shares(modes).axes[0]
    shown = torch.as_tensor(axes.images[0].get_array())
    torch.testing.assert_close(shown, modes.explained / modes.motion.sum(1, keepdim=True))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]


def test_correlations_are_in_squares(modes):
    axes = plot_correlations(modes).axes[0]
    shown = torch.as_tensor(axes.images[0].get_array())
    first = int((modes.sample_modes == 0).sum())
    torch.testing.assert_close(shown[:first, :first], torch.ones(first, first))
    assert [line.get_ydata()[0] for line in axes.lines[:1]] == [first - 0.5]


def test_the_plane_shows_losses_and_the_path():
    first, second = torch.linspace(-1, 1, 5), torch.linspace(0, 3, 4)
    plane = ModePlane((2, 0), first, second, first[:, None] ** 2 + second, torch.rand(2, 4))
    axes = plot_plane(plane).axes[0]
    x, y = axes.lines[0].get_data()
    assert (list(x), list(y)) == tuple(plane.path.tolist())
    assert axes.get_xlabel() == "reference of mode 2"
    assert axes.get_xlim() == pytest.approx((-1, 1))
    assert axes.get_ylim() == pytest.approx((0, 3))


def test_all_in_one_figure_that_can_be_written(modes, tmp_path):
    plot_modes(modes).savefig(tmp_path / "modes.svg")
    assert (tmp_path / "modes.svg").read_text(encoding="utf-8").startswith("<?xml")
