"""What goes wrong with recipes on the command line: one line, and nothing lost."""

import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from commands import slipstream
from slipstream.evaluation import classification_loss
from slipstream.trajectory import Trajectory, check_run

HERE = "test_recipe_mistakes"
BRIEF = ("--epochs", 2)
ALONE = (*BRIEF, "--no-controls")


@pytest.fixture(autouse=True)
def this_module(monkeypatch):
    """What `test_recipe_mistakes:function` names."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).relu()).relu())


def two_layers():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


def normed():
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(64))


def parametrised():
    model = two_layers()
    parametrizations.weight_norm(model[1])
    return model


def pruned():
    model = two_layers()
    prune.random_unstructured(model[1], "weight", 0.5)
    return model


def test_models_that_a_recipe_cannot_take(tmp_path):
    for given, message in [
        (("iterand", f"{HERE}:normed", *BRIEF), "has no weight to mask"),
        (("iterand", f"{HERE}:Tied", *BRIEF), "'first.weight' and 'second.weight' are one tied"),
        (("iterand", f"{HERE}:parametrised", *BRIEF), "is parametrised: its layer computes"),
        (("iterand", f"{HERE}:pruned", *BRIEF), "'1.weight_orig' is parametrised"),
        (("iterand", "mlp", "--examples", 0, *BRIEF), "examples must be above 0, got 0"),
        (("iterand", "mlp", "--width", 0, *BRIEF), "width must be above 0, got 0.0"),
        (("iterand", "mlp", "--pruned", 1, *BRIEF), "at least 0 and below 1; got 1.0"),
        (("lure", f"{HERE}:normed", *ALONE), "no weights that LURE may reset"),
        (("lure", f"{HERE}:parametrised", *ALONE), "has parameters, but no reset_parameters"),
        (("lure", f"{HERE}:pruned", *ALONE), "a weight that it computes from others"),
        (("aggregation", f"{HERE}:parametrised", *ALONE), "but no reset_parameters"),
        (("aggregation", f"{HERE}:pruned", *ALONE), "'1.weight_orig' is not re-initialised"),
    ]:
        said = slipstream("recipe", *given, "--out", tmp_path / "run", code=2).stderr
        assert message in said
        assert said.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_a_start_of_another_width_is_named(tmp_path):
    narrow = ("mlp", "--width", 8, *BRIEF)
    slipstream("train", *narrow, "--out", tmp_path / "run")
    given = ("lure", "mlp", "--width", 9, *ALONE, "--start", tmp_path / "run")
    said = slipstream("recipe", *given, "--out", tmp_path / "lure", code=2).stderr
    assert f"the model and step 22 of {tmp_path / 'run'} differ in the shape" in said


STOP = {"at": 0, "calls": 0}


def stopping(model, batch):
    """A loss during which the user presses Ctrl-C."""
    STOP["calls"] += 1
    if STOP["calls"] == STOP["at"]:
        raise KeyboardInterrupt
    return classification_loss(model, batch)


@pytest.mark.parametrize("recipe", ["iterand", "lure", "aggregation", "subspace"])
def test_ctrl_c_then_resume_ends_in_the_same_bits(recipe, tmp_path):
    alone = () if recipe in ("iterand", "subspace") else ("--no-controls",)
    given = ("recipe", recipe, "mlp", "--width", 8, *BRIEF, "--batch-size", 128, *alone)
    given = (*given, "--loss", f"{HERE}:stopping")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    STOP.update(at=0, calls=0)
    slipstream(*given, "--out", whole)
    STOP.update(at=20, calls=0)
    said = slipstream(*given, "--out", broken, code=130).stderr
    assert said == "Interrupted.\n"
    assert check_run(broken) == []
    STOP.update(at=0)
    slipstream(*given, "--out", broken, "--resume")
    for one, other in zip(Trajectory.open(whole), Trajectory.open(broken), strict=True):
        assert all(torch.equal(other.weights[n], value) for n, value in one.weights.items())
    for file in sorted(p for p in whole.rglob("*.safetensors") if p.parent.name != "snapshots"):
        assert file.read_bytes() == (broken / file.relative_to(whole)).read_bytes()


def test_a_full_disk_is_one_line_with_the_file(tmp_path, monkeypatch):
    real = os.fsync

    def full(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "recipe.pt.tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    given = ("recipe", "iterand", "mlp", "--width", 8, *BRIEF, "--out", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = slipstream(*given, code=2).stderr
    assert said == f"{tmp_path / 'run' / 'recipe.pt'}: No space left on device.\n"
    slipstream(*given, "--overwrite")
    assert check_run(tmp_path / "run") == []
