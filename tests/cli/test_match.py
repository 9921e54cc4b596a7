import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import slipstream
from slipstream.named_task import NamedTask
from slipstream.symmetry.permutation import Permutation
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
