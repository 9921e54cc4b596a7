import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from commands import slipstream
from slipstream import demo
from slipstream.evaluation import evaluate
from slipstream.named_task import NamedTask
from slipstream.training import TrainingPlan
from slipstream.trajectory import Trajectory
from slipstream.transfer import TransferPlan, find_source, load_transfer
from slipstream.weights import weights_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    slipstream("train", "mlp", "--width", 8, "--examples", 300, "--epochs", 2, "--out", path)
    return path


def test_a_run_is_transferred_to_a_seed_shown_and_evaluated(run, tmp_path):
    out = tmp_path / "out"
    told = slipstream(
        "transfer", run, "--seed", 7, "--method", "fgmt-signed", "--stages", 3, "--out", out
    ).stdout
    assert "9 gradients" in told
    result = load_transfer(out)
    assert (result.plan.method, result.plan.stages) == ("fgmt-signed", 3)
    start = weights_of(NamedTask("mlp", width=8).build(seed=7).model)
    assert torch.equal(result.trajectory[0].weights["hidden1.weight"], start["hidden1.weight"])
    assert "validation loss" in told
    assert f"{result.stages[-1].metrics['accuracy']:.4f}" in told
    described = result.trajectory.description["configuration"]
    assert described["target_seed"] == 7
    assert find_source(out) == run.resolve()
    shown = json.loads(slipstream("show", out, "--json").stdout)
    assert [snapshot["step"] for snapshot in shown["snapshots"]] == [0, 1, 2, 3, 4]
    assert not shown["problems"]
    measured = json.loads(slipstream("evaluate", out, "--json").stdout)
    assert f"{measured['accuracy']:.4f}" in told


def test_a_budget_says_how_many_stages_and_what_is_needed(run, tmp_path):
    told = slipstream(
        "transfer", run, "--seed", 7, "--budget", 4, "--out", tmp_path / "four"
    ).stdout
    assert "4 gradients" in told
    assert told.count("\n") > 6
    assert "needs labels" in told
    assert load_transfer(tmp_path / "four").plan == TransferPlan.for_budget(4)
    told = slipstream(
        "transfer", run, "--seed", 7, "--budget", 0, "--out", tmp_path / "none"
    ).stdout
    assert "0 gradients" in told
    assert "needs unlabelled batches" in told
    for stages in (4, TransferPlan().stages):
        both = ("--budget", 4, "--stages", stages)
        refused = slipstream("transfer", run, "--seed", 7, *both, "--out", tmp_path / "x", code=2)
        assert "Give --stages or --budget" in refused.stderr
    none = ("--method", "activations-signed", "--budget", 0)
    refused = slipstream("transfer", run, "--seed", 7, *none, "--out", tmp_path / "x", code=2)
    assert "activations-signed takes at least 1 gradients" in refused.stderr
    little = ("--method", "fgmt", "--budget", 1)
    refused = slipstream("transfer", run, "--seed", 7, *little, "--out", tmp_path / "x", code=2)
    assert "fgmt takes at least 2 gradients, more than the budget of 1" in refused.stderr


def test_a_file_is_a_target_and_json_is_for_machines(run, tmp_path):
    target, groups = tmp_path / "start.safetensors", tmp_path / "groups.json"
    save_file(Trajectory.open(run)[0].weights, target)
    slipstream("groups", run, "--save", groups)
    out = tmp_path / "out"
    more = ("--stages", 2, "--groups", groups, "--keep", "best", "--json", "--out", out)
    told = json.loads(slipstream("transfer", run, "--target", target, *more).stdout)
    assert told["cost"]["gradient_evaluations"] == 2
    assert told["stages"][2]["metrics"]["accuracy"] > 0.2  # the source's own start leads there
    again = slipstream("transfer", run, "--target", target, *more, code=2)
    assert "already holds a run" in again.stderr
    slipstream("transfer", run, "--target", target, *more, "--resume")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "1", "--target", "x"], "exactly one of --seed N and --target FILE"),
        ([], "exactly one of"),
        (["--target", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--seed", "1", "--stages", "0"], "stages must be at least 1, got 0"),
        (["--seed", "1", "--exclude", "hat.*"], "'hat.*' matches no tensor"),
        (["--seed", "1", "--method", "oracle"], "give --trained-target FILE"),
        (["--seed", "1", "--model", "conv_net"], "lacks the tensor"),
    ],
)
def test_mistakes_are_told_in_one_line(run, tmp_path, arguments, words):
    out = tmp_path / "out"
    result = slipstream("transfer", run, *arguments, "--out", out, code=2)
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_the_demo_compares_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SETUP", NamedTask("mlp", "digits", width=8, batch_size=64))
    monkeypatch.setattr(demo, "TRAINING", TrainingPlan(epochs=1, lr=0.05))
    told = slipstream("demo", "--targets", 2, "--out", tmp_path / "demo").stdout
    for row in ("target start", "naive", "activations", "activations-signed", "oracle", "muon"):
        assert row in told
    picture = tmp_path / "demo" / "accuracy_along_the_transfer.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert Trajectory.open(tmp_path / "demo" / "source").steps[0] == 0
    told = json.loads(
        slipstream("demo", "--targets", 1, "--json", "--out", tmp_path / "demo").stdout
    )
    assert len(told["outcomes"]) == 9
    rivals = {o["name"] for o in told["outcomes"] if o["without_source"]}
    assert rivals == set(demo.RIVALS)
    (own,) = (o for o in told["outcomes"] if o["name"] == "target start")
    source = Trajectory.open(tmp_path / "demo" / "source")
    experiment = demo.SETUP.build()
    there = evaluate(
        experiment.model, experiment.measured, weights=source[0].weights, data=experiment.test
    )
    assert own["metrics"] != there  # another seed


def test_the_further_epoch_is_the_best_by_validation_and_begins_at_the_start(monkeypatch):
    monkeypatch.setattr(demo, "FURTHER_RATES", (1e-6, 0.1, 1e-5))
    experiment = replace(NamedTask("mlp", "digits", width=8, batch_size=64).build(), test=[])
    start = weights_of(NamedTask("mlp", width=8).build(seed=3).model)
    # The demo runs for a minute; this is one step of it.
    found = demo._best_epoch(experiment, start)
    moved = max((found[name] - value).abs().max().item() for name, value in start.items())
    assert moved > 0.01  # at the rate that learns
    # As `_best_epoch` trains for each of its rates.
    still = demo._train_on(experiment, start, epochs=1, lr=1e-9)
    assert all(torch.allclose(still[name], value, atol=1e-4) for name, value in start.items())
