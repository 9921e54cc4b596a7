"""`slipstream port`: from files, with data and without."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import slipstream
from slipstream.named_task import NamedTask
from slipstream.weights import weights_of

TASK = """
from types import SimpleNamespace
import torch

def batches():
    batch = (torch.eye(3), torch.ones(3, 1))
    return SimpleNamespace(train=[batch], validation=[batch], test=[batch])

def build():
    return torch.nn.Linear(3, 1)

def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()
"""


def port(*arguments, code=0):
    return slipstream("port", *arguments, code=code)


@pytest.fixture
def files(tmp_path):
    """Three files of weights of an MLP, as options; the fine-tune adds one to every number."""
    base, other = (
        weights_of(NamedTask("mlp", "digits", width=8).build(seed=seed).model) for seed in (0, 1)
    )
    for name, weights in (
        ("base", base), ("tuned", {n: v + 1 for n, v in base.items()}), ("other", other),
    ):  # fmt: skip
        save_file(weights, tmp_path / f"{name}.safetensors")
    names = {"--from-base": "base", "--fine-tuned": "tuned", "--to-base": "other"}
    return [w for option, n in names.items() for w in (option, tmp_path / f"{n}.safetensors")]


def test_it_writes_weights_and_a_report(files, tmp_path):
    out = tmp_path / "out.safetensors"
    done = port(*files, "-o", out, "--method", "identity", "--exclude", "head.*")
    assert "kept as they were: head.bias, head.weight" in done.output
    before, after = load_file(tmp_path / "other.safetensors"), load_file(out)
    assert torch.allclose(after["hidden1.weight"], before["hidden1.weight"] + 1)
    assert torch.equal(after["head.weight"], before["head.weight"])
    assert json.loads((tmp_path / "out.port.json").read_text())["method"] == "identity"
    again = port(*files, "-o", out, code=2)
    assert "exists already" in again.output


def test_a_network_of_the_testbed_is_matched_and_measured(files, tmp_path):
    out = tmp_path / "out.safetensors"
    model = ["--model", "mlp", "--width", 8, "--data", "digits", "--stages", 2, "--json"]
    said = json.loads(port(*files, "-o", out, *model).stdout)
    assert said["path"] == str(out)
    assert said["loss_after"] <= said["loss_identity"]
    assert said["gradient_evaluations"] > 0


def test_own_data_and_a_model_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_port.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)
    for number, name in enumerate(("base", "tuned", "other")):
        tensors = {"weight": torch.full((1, 3), number / 2), "bias": torch.zeros(1)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    done = port(
        *("--from-base", tmp_path / "base.safetensors", "--to-base", tmp_path / "base.safetensors"),
        *("--fine-tuned", tmp_path / "tuned.safetensors", "-o", tmp_path / "out.safetensors"),
        *("--data", "own_port:batches", "--model", "own_port:build", "--loss", "own_port:loss"),
        *("--method", "sign-mask", "--stages", 1),
    )
    assert "validation loss 1.0000 before" in done.output
    assert load_file(tmp_path / "out.safetensors")["weight"].tolist() == [[1.0] * 3]
