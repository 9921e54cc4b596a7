import importlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import slipstream
from slipstream.named_task import NamedTask
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.rotation import GroupRotation
from slipstream.symmetry.rotation_proof import find_rotatable_groups
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import clone, weights_of


@pytest.fixture
def files(tmp_path):
    """A network, and the same with its neurons hidden by a permutation."""
    model = NamedTask("mlp", "digits", width=16).build().model
    groups = find_neuron_groups(model, torch.zeros(1, 64))
    hidden = Permutation.random(groups, seed=1)
    source, target = clone(weights_of(model)), hidden.apply(clone(weights_of(model)))
    paths = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    for path, weights in zip(paths, (source, target), strict=True):
        save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return *paths, hidden


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_a_permuted_file_is_laid_over_the_other(files, tmp_path, method):
    source, target, hidden = files
    out, order = tmp_path / "out.safetensors", tmp_path / "order.safetensors"
    words = [source, target, "--model", "mlp", "--width", 16, "--method", method]
    done = slipstream("match", *words, "--out", out, "--permutation", order, "--json")
    found = json.loads(done.stdout)
    assert found["converged"]
    assert found["gain"] == pytest.approx(found["objective"] - found["identity_objective"])
    assert Permutation.load(order).same_as(hidden)
    expected = load_file(target)
    assert all(torch.equal(value, expected[name]) for name, value in load_file(out).items())


def test_people_read_lines(files, tmp_path):
    source, target, _ = files
    words = [source, target, "--model", "mlp", "--width", 16, "--out", tmp_path / "out"]
    assert "converged: True" in slipstream("match", *words).stdout


def test_a_file_of_another_network_is_refused(files, tmp_path):
    source, target, _ = files
    words = [source, target, "--model", "mlp", "--width", 20, "--out", tmp_path / "out"]
    assert "shape" in slipstream("match", *words, code=2).stderr
    assert not (tmp_path / "out").exists()


def test_activations_need_data(files, tmp_path):
    source, target, _ = files
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    words = [source, target, "--model", tmp_path, "--method", "activations"]
    done = slipstream("match", *words, "--out", tmp_path / "out", code=2)
    assert "has no data" in done.stderr


def test_a_file_that_is_not_there_is_named(files, tmp_path):
    words = ["nowhere", files[1], "--model", "mlp", "--width", 16, "--out", tmp_path / "out"]
    failed = slipstream("match", *words, code=2)
    assert failed.stderr == "nowhere: No such file or directory.\n"


CODE = """
from types import SimpleNamespace

import torch
from torch import nn


def build():
    layers = [nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def load():
    draw = torch.Generator().manual_seed(0)
    data = [(torch.randn(40, 5, generator=draw), torch.arange(40) % 3) for _ in range(3)]
    return SimpleNamespace(train=data, validation=data, test=data)
"""


def test_a_rotated_file_is_laid_over_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "stream_of_six.py").write_text(CODE)
    module = importlib.import_module("stream_of_six")
    model = module.build()
    found = find_rotatable_groups(model, module.load().train[0][0])
    own = clone(weights_of(model))
    hidden = GroupRotation.random(found, seed=0, norms=found.norm_values(own))
    save_file(hidden.apply(own), "source.safetensors")
    save_file(own, "target.safetensors")
    words = ["source.safetensors", "target.safetensors", "--model", "stream_of_six:build"]
    words += ["--data", "stream_of_six:load", "--method", "rotations", "--out", "out.safetensors"]
    lines = slipstream("match", *words).stdout
    assert "moved: 0.4" in lines  # 6 of 14 neurons
    assert "rotated_groups: 1\npermuted_groups: 1\ngains_folded_and_unfolded: 1\n" in lines
    for name, value in load_file("out.safetensors").items():
        torch.testing.assert_close(value, own[name], rtol=0, atol=1e-5)
    words.append("--overwrite")
    said = json.loads(slipstream("match", *words, "--learn-steps", 3, "--json").stdout)
    assert said["converged"]
    assert said["architecture"] == "unchanged"
    words = ["source.safetensors", "target.safetensors", *words[2:6], "--points", 3, "--json"]
    words += ["--match", "rotations", "--learn-steps", 3]
    said = json.loads(slipstream("landscape", "barrier", *words).stdout)
    distances = [said[name]["line"]["distances"][-1] for name in ("matched", "as they are")]
    assert distances[0] < 0.2 < distances[1]


def test_what_does_not_go_with_rotations_is_refused(files, tmp_path):
    source, target, _ = files
    words = [source, target, "--model", "mlp", "--width", 16, "--out", tmp_path / "out"]
    said = slipstream("match", *words, "--method", "rotations", code=2).stderr
    assert "No neuron group may be rotated. hidden1.weight:0: a rotation moved" in said
    said = slipstream("match", *words, "--learn-steps", 3, code=2).stderr
    assert "--learn-steps goes with --method rotations only" in said
    words += ["--method", "rotations"]
    said = slipstream("match", *words, "--restarts", 2, code=2).stderr
    assert "--restarts goes with --method weights and activations only" in said
    words += ["--permutation", tmp_path / "order.safetensors"]
    assert "has no place for rotations" in slipstream("match", *words, code=2).stderr
