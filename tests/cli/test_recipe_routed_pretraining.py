import json

from commands import slipstream
from slipstream.trajectory import Trajectory, check_run

MODEL = ("--model", "conv_net", "--width", 0.1, "--option", "batchnorm=true")
SMALL = (*MODEL, "--examples", 256, "--batch-size", 64, "--epochs", 4, "--clusters", 2)


def recipe(*options, code=0):
    return slipstream("recipe", "routed-pretraining", *SMALL, *options, code=code)


def test_branches_are_runs_to_start_from(tmp_path):
    out = tmp_path / "routed"
    lines = recipe("--out", out).stdout
    assert lines.startswith("16 steps; deviation of the features 0.")
    runs = [out / "branch-1", out / "branch-2"]
    for run in runs:
        assert f"images; recorded in {run}" in lines
        assert check_run(run) == []
        assert "recipe: routed-pretraining, branch" in slipstream("show", run).stdout
        assert not any(name.startswith("head") for name in Trajectory.open(run)[-1].weights)
    told = slipstream("evaluate", runs[0], *MODEL, "--data", "digits", code=2).stderr
    assert "lacks the tensor 'head.weight'" in told
    slipstream("compare", *runs)
    slipstream("motion", runs[0])
    slipstream("report", *runs, "-o", tmp_path / "page.html", "--no-landscape")
    few = ("--data", "digits", "--batches", 2, "--steps", 1, "--rate", 0.01, "--json")
    chosen = json.loads(slipstream("choose-start", *runs, *MODEL, *few).stdout)
    assert {"branch-1", "branch-2", "fresh"} == {one["name"] for one in chosen["candidates"]}
    again = json.loads(recipe("--out", out, "--resume", "--json").stdout)
    assert sum(again["clusters"]) == 256
    told = recipe("--out", out, code=2).stderr
    assert "branch-1 is not empty" in told


def test_one_network_and_mistakes(tmp_path):
    lines = recipe("--whole", 1, "--method", "masked", "--out", tmp_path / "one").stdout
    assert "one network for all images" in lines
    told = recipe("--hidden", 1, "--out", tmp_path / "no", code=2).stderr
    assert "--hidden must be above 0 and below 1, got 1.0" in told
    assert "no layer 'tail'" in recipe("--head", "tail", "--out", tmp_path / "no", code=2).stderr
