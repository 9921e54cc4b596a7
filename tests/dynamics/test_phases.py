import itertools
import math

import pytest
import torch

from slipstream.dynamics import find_phases, measure_motion

# The search and the criterion apart, on residuals that no motion gives.
from slipstream.dynamics.phases import _best_cuts, _criteria
from slipstream.trajectory import Trajectory


def run_of(rows, **options):
    weights = torch.as_tensor(rows, dtype=torch.float64)
    return Trajectory.from_weights([{"w": row} for row in weights], **options)


@pytest.mark.parametrize("unit", [1.0, 0.1 + 1e-9], ids=["exact", "rounded"])
def test_speeds_that_jump_are_cut_where_they_jump(unit):
    lengths = [8 * unit] * 7 + [2 * unit] * 5 + [unit / 2] * 9
    places = torch.tensor([0.0, *itertools.accumulate(lengths)])[:, None]
    found = find_phases(measure_motion(run_of(places, steps=range(0, 220, 10))))
    assert [(p.start, p.end) for p in found.phases] == [(0, 70), (70, 120), (120, 210)]
    assert [p.speed for p in found.phases] == pytest.approx([0.8 * unit, 0.2 * unit, 0.05 * unit])
    assert int(found.criteria.argmin()) == 2


def test_what_is_left_of_an_exact_fit_does_not_count():
    """Among residuals that are all rounding, the smallest is no better than the others."""
    residuals = torch.tensor([10.0, 1e-20, 1e-28], dtype=torch.float64)
    assert int(_criteria(residuals, 21, features=1).argmin()) == 1


def test_a_change_of_direction_alone_is_seen():
    turns = [0.0] * 10 + [2 * math.pi / 3, 0.0] * 5  # the directions of moves of one length
    places = [[0.0, 0.0]]
    for angle in turns:
        places.append([places[-1][0] + math.cos(angle), places[-1][1] + math.sin(angle)])
    found = find_phases(measure_motion(run_of(places)))
    first, second = found.phases
    assert first.cosine == pytest.approx(1)
    assert second.cosine == pytest.approx(-0.5)
    assert first.end == second.start == 10


def test_a_constant_motion_is_one_phase():
    found = find_phases(measure_motion(run_of([[float(t)] for t in range(30)])))
    assert len(found.phases) == 1
    assert found.phases[0].speed == pytest.approx(1)


def test_noise_about_one_level_is_one_phase():
    generator = torch.Generator().manual_seed(0)
    lengths = (0.1 * torch.randn(60, generator=generator, dtype=torch.float64)).exp()
    places = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])[:, None]
    assert len(find_phases(measure_motion(run_of(places))).phases) == 1


def test_pauses_are_a_phase():
    places = [*range(6), *[5] * 6]
    found = find_phases(measure_motion(run_of([[float(p)] for p in places])))
    assert [(p.start, p.end) for p in found.phases][:1] == [(0, 5)]
    assert found.phases[-1].speed == pytest.approx(1e-3)


@pytest.mark.parametrize("shortest", [1, 2, 3])
def test_cuts_are_those_of_trying_all(shortest):
    series = torch.randn(2, 9, dtype=torch.float64)

    def residual(borders):
        parts = [series[:, a:b] for a, b in itertools.pairwise([0, *borders, 9])]
        if any(part.shape[1] < shortest for part in parts):
            return math.inf
        return sum(float((p - p.mean(1, keepdim=True)).square().sum()) for p in parts)

    residuals, ends = _best_cuts(series, 3, shortest)
    for count in (1, 2, 3):
        tried = {b: residual(b) for b in itertools.combinations(range(1, 9), count - 1)}
        best = min(tried, key=tried.get)
        assert float(residuals[count - 1]) == pytest.approx(tried[best])
        assert ends[count - 1] == [*best, 9]


def test_bad_input_is_told():
    motion = measure_motion(run_of([[0.0], [1.0], [2.0]]))
    with pytest.raises(ValueError, match="has 2 moves between snapshots; a phase needs 3"):
        find_phases(motion)
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        find_phases(motion, most=0)
    with pytest.raises(ValueError, match="it has no phases"):
        find_phases(measure_motion(run_of([[1.0]] * 5)))
