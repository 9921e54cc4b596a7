"""`slipstream compare` and `slipstream choose-start`."""

import json

import pytest
import torch
from safetensors.torch import save_file

from commands import complaint, slipstream
from slipstream.named_task import NamedTask
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import clone, weights_of


@pytest.fixture
def files(tmp_path):
    model = NamedTask("mlp", "digits", width=16).build().model
    base = clone(weights_of(model))
    groups = find_neuron_groups(model, torch.zeros(1, 64))
    made = {
        "base": base,
        "half": {name: value.half() for name, value in base.items()},
        "moved": Permutation.random(groups, seed=1).apply(base),
        "near": {name: value + 0.01 * torch.randn_like(value) for name, value in base.items()},
    }
    for name, weights in made.items():
        whole = {key: value.contiguous() for key, value in weights.items()}
        save_file(whole, tmp_path / f"{name}.safetensors")
    return [tmp_path / f"{name}.safetensors" for name in made]


def test_a_pair_is_told_with_its_tensors(files, tmp_path):
    base, half, _, near = files
    assert "re-saved of base.safetensors (proven)" in slipstream("compare", base, half).stdout
    said = slipstream("compare", base, near, "--layers", 2, "--out", tmp_path / "o.json").stdout
    assert "fine-tune of base.safetensors (likely)" in said  # which is as it was initialised
    assert "2 of 4 tensors" in said
    assert "advice: port as it is" in said
    told = json.loads((tmp_path / "o.json").read_text())["pairs"][0]
    assert told["parent"] == "base.safetensors"


def test_a_permutation_is_proven_with_the_model(files):
    base, _, moved, _ = files
    words = ["compare", base, moved, "--model", "mlp", "--data", "digits", "--width", 16, "--json"]
    found = json.loads(slipstream(*words).stdout)
    assert found["pairs"][0]["relation"] == "permuted"
    assert found["pairs"][0]["certainty"] == "proven"
    assert "permuted (sure)" in slipstream("compare", base, moved).stdout


def test_of_several_there_is_a_tree(files):
    said = slipstream("compare", *files).stdout
    assert "└── " in said
    assert "port with matching" in said
    assert len(json.loads(slipstream("compare", *files, "--json").stdout)["pairs"]) == 6


def test_mistakes_are_told(files, tmp_path):
    assert "at least two" in complaint(slipstream("compare", files[0], code=2))
    assert "does not exist" in complaint(slipstream("compare", files[0], tmp_path / "x", code=2))
    broken = {"a": torch.full((4, 4), torch.nan)}
    for name in "pq":
        save_file(broken, tmp_path / f"{name}.safetensors")
    words = [tmp_path / "p.safetensors", tmp_path / "q.safetensors"]
    assert "NaN" in complaint(slipstream("compare", *words, code=2))


def test_the_best_start_is_found(files):
    base, _, _, near = files
    words = ["choose-start", base, near, "--model", "mlp", "--data", "digits", "--width", 16]
    words += ["--batches", 2, "--steps", 1, "--rate", 0.001]
    found = json.loads(slipstream(*words, "--json").stdout)
    assert found["gradients"] == 6
    assert {one["name"] for one in found["candidates"]} == {
        "base.safetensors",
        "near.safetensors",
        "fresh",
    }
    assert "6 gradients" in slipstream(*words).stdout
