"""The controls: each against its closed form or against a second way to get it."""

import pytest
import torch
from moving_runs import curves, moving_run

from slipstream.modes import compare_modes, fit_modes
from slipstream.modes.fit import sample_rows
from slipstream.trajectory import Trajectory


@pytest.fixture
def run():
    return moving_run(noise=0.2, dtype=torch.float64)[0]


def flat(trajectory):
    return torch.cat([trajectory[name].flatten(1) for name in trajectory.names], 1).double()


def test_its_modes_are_those_of_fit_modes(run, monkeypatch):
    # A run of usual blocks would have to be large to have several.
    monkeypatch.setattr("slipstream.trajectory.trajectory._BLOCK", 20 * 8 * 7)
    for grouping in ("complete", "k-means"):
        table = compare_modes(run, modes=4, samples=30, grouping=grouping, seed=1)
        for reference in ("member", "component"):
            found = fit_modes(
                run, modes=4, samples=30, reference=reference, grouping=grouping, seed=1
            )
            assert table[reference].share == pytest.approx(found.share)
            assert table[reference].relative_error == pytest.approx(found.relative_error)


def test_pca_is_that_of_the_whole_run(run):
    centred = flat(run) - flat(run).mean(0)
    values = torch.linalg.svdvals(centred).square()
    for modes in (1, 3):
        table = compare_modes(run, modes=modes)
        assert table["PCA"].share == pytest.approx(float(values[:modes].sum() / values.sum()))
        assert table["PCA"].numbers_per_weight == modes + 1
        assert table["PCA"].share >= table["component"].share


def test_layers_suit_a_run_whose_layers_move_as_one():
    steps = curves(20)
    a = torch.linspace(-2, 3, 12, dtype=torch.float64)
    rows = [{f"w{n}": a * steps[n, t] + n for n in range(3)} for t in range(20)]
    table = compare_modes(Trajectory.from_weights(rows), modes=2)
    assert table["layers"].share == pytest.approx(1)
    assert table["layers"].curves == 3
    assert table["component"].share < 0.995


def test_one_mode_and_random_groups_by_hand(run):
    rows, _ = sample_rows(run, 1000, seed=0)
    reference = torch.linalg.svd(rows)[2][0]
    centred = flat(run) - flat(run).mean(0)
    expected = (reference @ centred).square().sum() / centred.square().sum()
    table = compare_modes(run, modes=3)
    assert table["one mode"].share == pytest.approx(float(expected))
    once = compare_modes(run, modes=1)
    for name in ("component", "random groups"):
        assert once[name].share == pytest.approx(float(expected))


def test_grouping_gains_where_there_are_groups_and_it_is_said_where_not(run):
    table = compare_modes(run, modes=3)
    assert table["random groups"].share < table["component"].share - 0.1
    assert table.gain > 0.01
    assert "adds nothing" not in str(table)
    line = Trajectory.from_weights([{"w": torch.linspace(-1, 1, 9) * t} for t in range(5)])
    assert "the grouping adds nothing" in str(compare_modes(line, modes=2))


def test_random_groups_are_dealt_blindly(run):
    count = flat(run).shape[1]
    table = compare_modes(run, modes=count)  # each weight is a reference
    assert table["member"].share == pytest.approx(1)
    assert table["random groups"].share < 0.8


def test_what_is_drawn_is_drawn_by_the_seed(run):
    first, again, other = (str(compare_modes(run, modes=3, seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_bad_input_is_told(run):
    with pytest.raises(ValueError, match="has 2 snapshots; modes need at least 3"):
        compare_modes(run[:2])
    rows = [snapshot.weights for snapshot in run]
    rows[4] = rows[4] | {"first.bias": torch.full_like(rows[4]["first.bias"], torch.nan)}
    with pytest.raises(ValueError, match=r"'first\.bias' at step 4"):
        compare_modes(Trajectory.from_weights(rows))
