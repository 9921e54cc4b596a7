import json

import pytest
import torch

from commands import slipstream
from slipstream.recipes import load_subspace
from slipstream.trajectory import Trajectory

SMALL = ("mlp", "--width", 8, "--examples", 200, "--epochs", 3)


@pytest.mark.parametrize("shape", [("line",), ("simplex", "--corners", 4)])
def test_it_trains_records_and_tells(tmp_path, shape):
    out = tmp_path / "run"
    how = ("--shape", *shape, "--points", 3, "--out", out)
    said = json.loads(slipstream("recipe", "subspace", *SMALL, *how, "--json").stdout)
    assert said["steps"] == 6
    points = 3 if shape == ("line",) else 10
    ways = ["midpoint", f"worst of {points}", "ensemble"]
    assert list(said["test"]) == list(said["validation"]) == ways
    assert said["test"][ways[1]]["accuracy"] <= said["test"]["midpoint"]["accuracy"]
    shown = json.loads(slipstream("show", out, "--json").stdout)
    assert shown["problems"] == []
    last = shown["snapshots"][-1]["metrics"]
    assert last["validation_accuracy"] == said["validation"]["midpoint"]["accuracy"]
    evaluated = json.loads(slipstream("evaluate", out, "--json").stdout)
    assert evaluated["accuracy"] == said["test"]["midpoint"]["accuracy"]
    corner = out / "corners" / "1.safetensors"
    slipstream("evaluate", out, "--weights", corner)
    assert load_subspace(out).cosine == said["cosine"]


def test_people_get_a_table(tmp_path):
    text = slipstream("recipe", "subspace", *SMALL, "--out", tmp_path / "run").stdout
    for words in ("6 steps in", "cosine of the angle between corners", "midpoint", "ensemble"):
        assert words in text


def test_resuming_what_is_finished_says_the_same(tmp_path):
    out = tmp_path / "run"
    first = slipstream("recipe", "subspace", *SMALL, "--out", out, "--json").stdout
    again = slipstream("recipe", "subspace", *SMALL, "--out", out, "--resume", "--json").stdout
    assert json.loads(first) == json.loads(again)
    replaced = slipstream("recipe", "subspace", *SMALL, "--out", out, "--overwrite", "--json")
    assert json.loads(replaced.stdout)["losses"] == json.loads(first)["losses"]
    assert all(torch.isfinite(v).all() for v in Trajectory.open(out)[-1].weights.values())


def test_mistakes_are_one_line(tmp_path):
    out = tmp_path / "run"
    slipstream("recipe", "subspace", *SMALL, "--out", out)
    for options, message in [
        (("--out", out), "already holds a run"),
        (("--out", tmp_path / "a", "--shape", "line", "--corners", 3), "A line has 2 corners"),
        (
            ("--out", tmp_path / "b", "--shape", "simplex", "--corners", 9),
            "must be 2 to 6, got 9",
        ),
        (("--out", tmp_path / "c", "--lr", 1e30), "is nan: try a smaller lr"),
        (("--out", out, "--resume", "--repulsion", 2), "finished subspace of another plan"),
    ]:
        result = slipstream("recipe", "subspace", *SMALL, *options, code=2)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
