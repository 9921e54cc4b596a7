"""What the figures of motion, curvature and complexity show."""

import math

import pytest
import torch

from slipstream.dynamics import (
    TrainingComplexity,
    find_phases,
    measure_motion,
    principal_path,
)
from slipstream.landscape import Curvature, CurvatureAlong
from slipstream.report.dynamics import plot_complexity, plot_curvature, plot_motion
from slipstream.trajectory import Trajectory


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
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    steps = panels["speed of all weights, by step"].patches[0].get_data()
    assert list(steps.values) == pytest.approx(motion.combined().speeds[0].tolist())
    assert list(steps.edges) == list(motion.steps)
    turns = panels["cosine between a move and the next"].lines[1]
    assert list(turns.get_ydata()) == motion.combined().cosines[0].tolist()
    shown = panels["speed, relative to the weights"].collections[0].get_array()
    assert shown.shape == motion.speeds.shape
    assert shown[0, 1] == pytest.approx(float(motion.relative_speeds[0, 1]))
    borders = [line.get_xdata()[0] for line in panels["cosine between a move and the next"].lines]
    assert borders[2:] == [phase.start for phase in phases.phases[1:]] == [40]
    drawn = panels["path: from the circle to the star"].lines[0].get_data()
    assert (list(drawn[0]), list(drawn[1])) == tuple(path.coordinates.tolist())
    figure.savefig(tmp_path / "motion.svg")
    assert (tmp_path / "motion.svg").stat().st_size


def test_motion_of_two_snapshots_and_of_none_can_be_drawn(run, tmp_path):
    plot_motion(measure_motion(run[:2]), path=principal_path(run[:2], components=1)).savefig(
        tmp_path / "two.png"
    )
    still = Trajectory.from_weights([{"w": torch.ones(2)}] * 3)
    plot_motion(measure_motion(still)).savefig(tmp_path / "still.png")


def test_curvature_is_drawn_with_its_errors(tmp_path):
    rows = [
        Curvature(2.0, 1.0, 9.0, 0.5, -1.0, 0.1, True, 20.0, 3.0, 0.4, math.inf, 12),
        Curvature(1.0, 0.5, 4.0, 0.2, -0.5, 0.1, False, 10.0, 1.0, 0.2, 30.0, 12),
    ]
    names = tuple(Curvature.__dataclass_fields__)
    values = {
        n: torch.tensor([float(getattr(r, n)) for r in rows], dtype=torch.float64) for n in names
    }
    figure = plot_curvature(CurvatureAlong((0, 50), values))
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    both = panels["largest and lowest eigenvalue"].lines
    assert [list(line.get_ydata()) for line in both[:2]] == [[9, 4], [-1, -0.5]]
    band = panels["trace of the Hessian"].collections[0].get_paths()[0].vertices[:, 1]
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
