import json

import pytest
import torch

from commands import slipstream
from slipstream.trajectory import Trajectory, check_run

SMALL = ("mlp", "--width", 8)
BRIEF = ("--epochs", 2, "--batch-size", 128)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    slipstream("train", *SMALL, "--epochs", 3, "--out", path)
    return path


def test_lure_starts_at_a_run_and_prints_its_controls(tmp_path, run):
    out = tmp_path / "lure"
    given = ("recipe", "lure", *SMALL, *BRIEF, "--chunks", 3, "--start", run, "--out", out)
    said = json.loads(slipstream(*given, "--json").stdout)
    weights = 64 * 8 + 8 + 8 * 10 + 10
    for choice, reset in (("saliency", weights // 5), ("random", weights // 5), ("none", 0)):
        assert [stage["reset"] for stage in said["stages"][choice]] == [0, reset, reset]
    recorded = Trajectory.open(out)
    assert torch.equal(
        recorded[0].weights["head.weight"], Trajectory.open(run)[-1].weights["head.weight"]
    )
    last = recorded[-1].metrics["validation_accuracy"]
    assert said["stages"]["saliency"][-1]["metrics"]["validation_accuracy"] == last
    assert check_run(out) == []
    text = slipstream(*given, "--overwrite").stdout
    for words in ("random", "warm", " 122 ", f"{weights} weights may be reset"):
        assert words in text
    alone = json.loads(slipstream(*given, "--resume", "--no-controls", "--json").stdout)
    assert alone["stages"]["saliency"] == said["stages"]["saliency"]
    assert list(alone["stages"]) == ["saliency"]


def test_side_tuning_prints_its_controls_and_what_was_kept(tmp_path, run):
    out = tmp_path / "side"
    given = ("recipe", "side-tuning", run, "--data", "digits+turned", "--epochs", 2, "--out", out)
    said = json.loads(slipstream(*given, "--batches", 2, "--json").stdout)
    ways = ["side-tuning", "features alone", "fine-tuning", "from scratch"]
    assert list(said["test"]) == ways
    own = json.loads(slipstream("evaluate", run, "--json").stdout)
    assert said["base"]["base"]["accuracy"] == own["accuracy"]
    assert said["base"]["after fine-tuning"]["loss"] != said["base"]["base"]["loss"]
    assert said["steps"] == 4
    assert next(iter(Trajectory.open(out / "task")[-1].weights)) == "alpha"
    assert check_run(out / "task") == check_run(out / "distilled") == []
    text = slipstream(*given, "--overwrite").stdout
    assert "weight of the base 0." in text
    assert "never changed" in " ".join(text.split())


def test_aggregation_prints_its_controls(tmp_path, run):
    out = tmp_path / "sum"
    given = ("recipe", "aggregation", *SMALL, *BRIEF, "--out", out)
    said = json.loads(slipstream(*given, "--start", run, "--start", run, "--json").stdout)
    assert list(said["test"]) == [
        "sum", "aggregate", "specialist 1", "specialist 2", "without 1", "without 2",
        "sum, apart", "mean, apart", "one network",
    ]  # fmt: skip
    file = out / "specialists" / "2.safetensors"
    given_data = ("--data", "digits+permuted", "--json")
    there = json.loads(slipstream("evaluate", out, "--weights", file, *given_data).stdout)
    assert there["accuracy"] == said["test"]["specialist 2"][1]["accuracy"]
    text = slipstream(*given, "--overwrite", "--no-controls").stdout
    assert "digits+permuted" in text
    assert "apart" not in text


def test_mistakes_are_one_line(tmp_path, run):
    lure = ("recipe", "lure", *SMALL, *BRIEF, "--no-controls")
    side = ("recipe", "side-tuning", run, "--epochs", 1)
    both = ("recipe", "aggregation", *SMALL, *BRIEF)
    for number, (given, message) in enumerate(
        [
            ((*lure, "--share", 1), "share must be at least 0 and below 1, got 1.0"),
            ((*lure, "--chunks", 30), "--chunks must be at most 11, the number of batches, got 30"),
            ((*lure, "--lr", 1e30), "is nan: try a smaller lr"),
            ((*lure, "--width", 9, "--start", run), "differ in the shape of 'hidden1.weight'"),
            ((*side, "--head", "top"), "The model has no layer 'top'"),
            ((*side, "--side-width", 0), "width must be at least 1, got 0"),
            ((*side, "--data", "digits+odd"), "a change must be permuted, turned, inverted"),
            ((*both, "--pull", -1), "pull must not be negative"),
            ((*both, "--data", "digits"), "data must hold 2 sets of batches at least, got 1"),
            ((*both, "--start", run), "weights for each of the 2 data sets, got 1"),
        ]
    ):
        result = slipstream(*given, "--out", tmp_path / str(number), code=2)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
