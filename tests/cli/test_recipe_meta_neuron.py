import json

import pytest

from commands import slipstream
from slipstream.recipes import MetaNeuron
from slipstream.testbed import tasks as testbed_tasks
from slipstream.trajectory import Trajectory, check_run
from slipstream.weights import load_weights_

SMALL = ("--epochs", 1, "--batches", 2, "--tasks", 2, "--shots", 2, "--ways", 3, "--hidden", 8)


@pytest.fixture(autouse=True)
def few_test_tasks(monkeypatch):
    monkeypatch.setattr(testbed_tasks, "VALIDATION_TASKS", 20)
    monkeypatch.setattr(testbed_tasks, "TEST_TASKS", 20)


def recipe(*options, code=0):
    return slipstream("recipe", "meta-neuron", *SMALL, *options, code=code)


def test_maps_and_a_life_are_runs_for_every_other_command(tmp_path):
    out = tmp_path / "neuron"
    said = json.loads(recipe("--out", out, "--json").stdout)
    assert said["steps"] == 2
    assert list(said["test"]) == [
        "neuron, class by class", "neuron, random order", "SGD, class by class",
        "SGD, random order", "SGD with 3 examples kept", "class means",
    ]  # fmt: skip
    load_weights_(MetaNeuron((64, 8, 3)), Trajectory.open(out / "maps")[-1].weights)
    life = Trajectory.open(out / "life")
    assert life[0].weights["layers.0"].shape == (64, 8)
    assert (life.steps[-1], "validation_accuracy" in life[-1].metrics) == (6, True)
    for name in ("maps", "life"):
        run = out / name
        assert check_run(run) == []
        assert "recipe: meta-neuron" in slipstream("show", run).stdout
        assert json.loads(slipstream("motion", run, "--json").stdout)
        assert slipstream("compare", f"{run}@0", run).stdout
        slipstream("report", run, "-o", tmp_path / f"{name}.html", "--no-landscape")
    lines = recipe("--out", out, "--overwrite").stdout
    assert "2 steps, " in lines
    assert "accuracy on 20 test streams" in lines
    assert recipe("--out", out, "--resume").stdout.startswith("2 steps")


def test_mistakes_are_one_line(tmp_path):
    said = recipe("--population", 3, "--out", tmp_path / "no", code=2).stderr
    assert "--population must be even and at least 2, got 3" in said
    assert "data must be digits" in recipe("--data", "mnist", code=2).stderr
