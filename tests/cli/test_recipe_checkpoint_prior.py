"""Checkpoints that are generated, and whether they are new, as a user would type it."""

import json

import pytest
import torch

from commands import complaint, slipstream
from slipstream.trajectory import Trajectory, check_run

SMALL = ("--transformer-width", 16, "--layers", 1, "--heads", 2, "--levels", 5, "--steps", 3)
BRIEF = (*SMALL, "--epochs", 2, "--held-out", 0.2)
NETWORK = ("mlp", "--width", 4, "--examples", 100, "--epochs", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten runs, what was learned from them, and what it generates."""
    folder = tmp_path_factory.mktemp("generated")
    for seed in range(10):
        slipstream("train", *NETWORK, "--seed", seed, "--out", folder / "runs" / f"{seed}")
    slipstream("recipe", "checkpoint-prior", folder / "runs", *BRIEF, "--out", folder / "prior")
    slipstream("recipe", "generate", folder / "prior", "--seed", 7, "--out", folder / "made")
    return folder


def test_both_are_runs_that_say_what_they_are(folder):
    for name, recipe in (("prior", "checkpoint-prior"), ("made", "generated")):
        assert check_run(folder / name) == []
        assert f"recipe: {recipe}" in slipstream("show", folder / name).stdout
        assert json.loads(slipstream("motion", folder / name, "--json").stdout)
        averaged = folder / f"{name}.safetensors"
        slipstream("average", folder / name, "--rule", "lawa:2", "-o", averaged, code=(0, 2))
    assert (folder / "made.safetensors").exists()
    pages = (folder / "prior", folder / "made")
    slipstream("report", *pages, "-o", folder / "page.html", "--no-landscape", "--modes", 2)
    assert "generated" in (folder / "page.html").read_text(encoding="utf-8")
    said = slipstream("compare", f"{folder / 'made'}@0", folder / "made").stdout
    assert "snapshots of one run" in said


def test_a_generated_run_is_evaluated_and_transferred(folder, tmp_path):
    run = Trajectory.open(folder / "made")
    own = json.loads(
        slipstream("evaluate", folder / "made", "--split", "validation", "--json").stdout
    )
    assert own["loss"] == pytest.approx(run[-1].metrics["validation_loss"])
    how = ("--seed", 8, "--method", "naive", "--stages", 2, "--out", tmp_path / "moved")
    slipstream("transfer", folder / "made", *how)
    assert check_run(tmp_path / "moved") == []


def test_the_start_is_of_a_seed_or_of_a_run(folder, tmp_path):
    words = ("recipe", "generate", folder / "prior", "--wanted", 1.5, "--json")
    given = ("--start", folder / "made", "--updates", 2, "--out", tmp_path / "again")
    found = json.loads(slipstream(*words, *given).stdout)
    assert found["wanted"] == pytest.approx(1.5)
    assert len(found["updates"]) == 3
    first, last = Trajectory.open(tmp_path / "again")[0], Trajectory.open(folder / "made")[-1]
    assert all(torch.equal(first[name], last[name]) for name in last)
    fresh = Trajectory.open(folder / "made")[0].weights
    slipstream("train", *NETWORK, "--seed", 7, "--out", tmp_path / "trained")
    begun = Trajectory.open(tmp_path / "trained")[0].weights
    assert all(torch.equal(fresh[name], begun[name]) for name in begun)


def test_memorisation_is_told(folder, tmp_path):
    words = ("memorisation", f"{folder / 'runs' / '3'}@0", folder / "runs" / "3", "--controls", 2)
    given = ("--known", folder / "runs", "--noise", 0.1, "--unseen", folder / "made")
    said = slipstream(*words, *given, "-o", tmp_path / "found.json").stdout
    assert "3: overlap 1.000 with 3, distance 0.000 to 3" in said
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    names = [row["name"] for row in found["rows"]]
    assert names == [
        "given", "unseen", "a known one, left out", "noise 0.1", "average", "matched average",
    ]  # fmt: skip
    assert found["known"] == 10


def test_mistakes_are_told(folder, tmp_path):
    prior = ("recipe", "checkpoint-prior")
    said = complaint(slipstream(*prior, tmp_path, "--out", tmp_path / "p", code=2))
    assert "is not a run folder" in said
    metric = ("--metric", "validation_f1", "--out", tmp_path / "p")
    said = complaint(slipstream(*prior, folder / "runs", *metric, code=2))
    assert "has 'validation_f1' at 0 snapshots" in said
    assert "name one of these" in said
    said = complaint(slipstream(*prior, folder / "runs", *BRIEF, "--out", folder / "prior", code=2))
    assert "give another path, resume it, or pass --overwrite" in said
    made = ("recipe", "generate", folder / "made", "--out", tmp_path / "g")
    assert "it has no prior.json" in complaint(slipstream(*made, code=2))
