"""Trajectories in memory and on disk: positions, steps, tensors, lines."""

import math

import pytest
import torch
from recorded_networks import tied

from slipstream.trajectory import Layout, Trajectory, create_run
from slipstream.weights import interpolate, weights_of


def points(count=5):
    return [
        {"a": torch.full((2, 3), float(t)), "b": torch.full((1,), t * 1.5, dtype=torch.float64)}
        for t in range(count)
    ]


@pytest.fixture(params=["memory", "disk"])
def run(request, tmp_path):
    if request.param == "memory":
        return Trajectory.from_weights(points(), steps=[0, 10, 20, 30, 40])
    with create_run(tmp_path / "run", model=Layout.of_weights(points(1)[0])) as writer:
        for t, weights in enumerate(points()):
            writer.append(step=10 * t, weights=weights)
    return Trajectory.open(tmp_path / "run")


def test_by_position_by_step_and_by_slice(run):
    assert run.steps == [0, 10, 20, 30, 40]
    assert len(run) == 5
    assert run[3].step == run[-2].step == run.at(30).step == 30
    assert run[1:3].steps == [10, 20]
    assert run[::2].steps == [0, 20, 40]
    assert [snapshot.step for snapshot in run] == run.steps
    assert run[3].weights["a"].tolist() == [[3.0] * 3] * 2
    assert run[1:][2]["b"].tolist() == [4.5]
    with pytest.raises(IndexError, match=r"Snapshot 5 .* has 5"):
        run[5]
    with pytest.raises(KeyError, match="Step 33 was not kept; the nearest is 30"):
        run.at(33)


def test_by_tensor(run):
    assert run.names == ("a", "b")
    assert run.shapes == {"a": (2, 3), "b": (1,)}
    assert run["a"].shape == (5, 2, 3)
    assert run["a"][:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert run["b"].dtype == torch.float64
    assert run[::-2]["b"].flatten().tolist() == [6.0, 3.0, 0.0]
    assert run[:0]["a"].shape == (0, 2, 3)
    with pytest.raises(KeyError, match=r"'c'; there are a, b"):
        run["c"]


def test_a_stretch_of_a_tensor(tmp_path):
    rows = [{"a": torch.arange(6.0).view(2, 3) * t} for t in (1, 2, 5)]
    with create_run(tmp_path / "run", model=Layout.of_weights(rows[0])) as writer:
        for t, row in enumerate(rows):
            writer.append(step=t, weights=row)
    line = Trajectory.line(rows[0], rows[-1], stages=3)
    for run in (Trajectory.from_weights(rows), Trajectory.open(tmp_path / "run"), line):
        for start, stop in ((0, 6), (2, 5), (4, 4)):
            expected = run["a"].flatten(1)[:, start:stop]
            assert torch.equal(run.part("a", start=start, stop=stop), expected)
        with pytest.raises(IndexError, match=r"'a' \(2, 3\) float32 has no numbers from 4 to 7"):
            run.part("a", start=4, stop=7)


def test_a_tensor_large_enough_for_threads_is_the_same(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(700, 500, generator=generator) for _ in range(4)]
    with create_run(tmp_path / "run", model=Layout.of_weights({"w": rows[0]})) as writer:
        for t, row in enumerate(rows):
            writer.append(step=t, weights={"w": row})
    assert torch.equal(Trajectory.open(tmp_path / "run")["w"], torch.stack(rows))


@pytest.mark.parametrize("total", [2, 3, 5, 10, 101])
def test_resample_takes_the_nearest_to_even_positions(total):
    run = Trajectory.from_weights([{"w": torch.zeros(1)}] * total)
    for count in range(2, total + 1):
        steps = run.resample(count).steps
        even = torch.linspace(0, total - 1, count, dtype=torch.float64)
        assert len(set(steps)) == count
        assert (steps[0], steps[-1]) == (0, total - 1)
        assert (torch.tensor(steps) - even).abs().max() <= 0.5
    with pytest.raises(ValueError, match=f"from 2 to {total}, got {total + 1}"):
        run.resample(total + 1)


@pytest.mark.parametrize("stages", [1, 2, 7, 30])
def test_the_line_by_its_formula(stages):
    start, end = (weights_of(tied(seed)) for seed in (1, 2))
    for schedule in ("uniform", "cosine"):
        line = Trajectory.line(start, end, stages=stages, schedule=schedule)
        assert line.steps == list(range(stages + 1))
        moves = [
            1.0 if schedule == "uniform" else 1 + math.cos(math.pi * t / stages)
            for t in range(stages)
        ]
        for stage, snapshot in enumerate(line):
            expected = interpolate(start, end, sum(moves[:stage]) / sum(moves))
            for name, value in snapshot.weights.items():
                torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
        for name in line.names:
            series = line[name]
            assert torch.equal(series[0], start[name])
            assert torch.equal(series[-1], end[name])
            for stage, snapshot in enumerate(line):
                assert torch.equal(series[stage], snapshot.weights[name])


def test_the_line_between_snapshots_of_a_run(run):
    line = Trajectory.line(run[0], run[-1], stages=2)
    assert line["a"][:, 0, 0].tolist() == [0, 2, 4]


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"end.*'w' is \(3,\) float32, expected \(2,\) float32"):
        Trajectory.line({"w": torch.ones(2)}, {"w": torch.ones(3)})
    with pytest.raises(ValueError, match=r"step 1: the tensor 'b' \(1,\) float64 is missing"):
        Trajectory.from_weights([points()[0], {"a": torch.zeros(2, 3)}])
    with pytest.raises(ValueError, match="2 growing numbers"):
        Trajectory.from_weights(points(2), steps=[3, 3])
    with pytest.raises(ValueError, match="at least one"):
        Trajectory.from_weights([])
    with pytest.raises(ValueError, match="stages must be at least 1, got 0"):
        Trajectory.line(*points(2), stages=0)
    with pytest.raises(ValueError, match="'uniform' or 'cosine', got 'linear'"):
        Trajectory.line(*points(2), schedule="linear")


def test_a_tied_tensor_is_stored_once_and_known_by_both_names(tmp_path):
    model = tied()
    with create_run(tmp_path / "run", model=model) as writer:
        writer.append(step=0, weights=weights_of(model))
        writer.append(step=1, weights=model.state_dict())
    run = Trajectory.open(tmp_path / "run")
    assert "decoder.weight" not in run[0].weights
    assert list(run[0].weights) == list(weights_of(model))
    assert torch.equal(run["decoder.weight"], run["encoder.weight"])
    assert torch.equal(run[1]["decoder.weight"], model.encoder.weight)
    other = tied(seed=5)
    other.load_state_dict(run[0].state_dict())
    assert torch.equal(other.decoder.weight, model.encoder.weight)
    with (
        pytest.raises(ValueError, match=r"'decoder.weight' and 'encoder.weight', tied .* differ"),
        create_run(tmp_path / "other", model=model) as writer,
    ):
        writer.append(step=0, weights=model.state_dict() | {"decoder.weight": torch.ones(4, 4)})
