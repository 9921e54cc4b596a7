import json

import torch

from commands import slipstream
from slipstream.recipes import load_ticket
from slipstream.trajectory import Trajectory

SMALL = ("mlp", "--width", 8, "--examples", 200, "--epochs", 3)


def recipe(*options, code=0):
    return slipstream("recipe", "iterand", *SMALL, *options, code=code)


def test_it_trains_records_and_tells(tmp_path):
    out = tmp_path / "run"
    how = ("--initial", "signed-constant", "--pruned-in", "head.*=0.25", "--every", 2)
    said = json.loads(recipe("--out", out, *how, "--json").stdout)
    assert (said["steps"], said["rounds"], len(said["churn"])) == (6, 3, 3)
    assert said["pruned"] == {"hidden1.weight": 0.5, "head.weight": 0.25}
    assert said["bytes"]["mask"] == (64 * 8 + 8 * 10) // 8
    shown = json.loads(slipstream("show", out, "--json").stdout)
    assert shown["problems"] == []
    last = shown["snapshots"][-1]["metrics"]
    assert last["validation_accuracy"] == said["validation"]["accuracy"]
    assert last["churn"] == said["churn"][-1]
    evaluated = json.loads(slipstream("evaluate", out, "--json").stdout)
    assert evaluated["accuracy"] == said["test"]["accuracy"]
    ticket = load_ticket(out)
    weights = Trajectory.open(out)[-1].weights
    assert all(torch.equal(weights[n], value) for n, value in ticket.weights.items())
    transferred = tmp_path / "transferred"
    slipstream("transfer", out, "--seed", 7, "--method", "naive", "--out", transferred)
    slipstream("evaluate", transferred)


def test_people_get_lines(tmp_path):
    text = recipe("--out", tmp_path / "run", "--redrawn", 0).stdout
    for words in (
        "6 steps in",
        "this is edge-popup",
        "bit mask: ",
        "first epoch",
        "hidden1.weight",
    ):
        assert words in text


def test_resuming_what_is_finished_says_the_same(tmp_path):
    out = tmp_path / "run"
    first = recipe("--out", out, "--json").stdout
    assert json.loads(recipe("--out", out, "--resume", "--json").stdout) == json.loads(first)
    replaced = json.loads(recipe("--out", out, "--overwrite", "--json").stdout)
    assert replaced["losses"] == json.loads(first)["losses"]


def test_mistakes_are_one_line(tmp_path):
    out = tmp_path / "run"
    recipe("--out", out)
    for number, (options, message) in enumerate(
        [
            (("--pruned", 1), "at least 0 and below 1; got 1.0"),
            (("--redrawn", -1), "redrawn must be a share from 0 to 1"),
            (("--pruned-in", "head"), "--pruned-in must be NAME=VALUE"),
            (("--pruned-in", "hat.*=0.1"), "'hat.*' matches no parameter"),
            (("--exclude", "*"), "has no weight to mask"),
            (("--lr", 0), "lr must be above 0"),
            (
                ("--resume", "--pruned", 0.3, "--out", out),
                "is of another training: its iterand.pruned is 0.5, here it is 0.3",
            ),
            (("--out", out), "already holds a run"),
        ]
    ):
        result = recipe("--out", tmp_path / str(number), *options, code=2)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert "Example: slipstream recipe iterand" in slipstream("recipe", "iterand", "--help").stdout
