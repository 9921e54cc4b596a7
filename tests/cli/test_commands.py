import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from commands import slipstream
from slipstream.evaluation import evaluate
from slipstream.named_task import NamedTask
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.trajectory import Trajectory
from slipstream.weights import weights_of

OWN = """
from types import SimpleNamespace
import torch
from torch import nn

def build():
    return nn.Linear(3, 1)

def load():
    batches = [(torch.eye(3), torch.ones(3, 1))]
    return SimpleNamespace(train=batches, validation=batches, test=batches)

def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()

def stop():
    raise KeyboardInterrupt
"""
SMALL = ["mlp", "--width", "8", "--examples", "300", "--epochs", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 2 epochs of 3 steps, and what `train --json` said of it."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, json.loads(slipstream("train", *SMALL, "--out", path, "--json").stdout)


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_command.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield "own_command"
    sys.modules.pop("own_command", None)


# what the commands do


def test_train_records_what_it_says(run):
    path, said = run
    trajectory = Trajectory.open(path)
    assert trajectory.steps == [0, 3, 6]
    assert said["steps"] == 6
    assert trajectory[-1].metrics["train_loss"] == said["losses"][-1]
    setup = NamedTask("mlp", "digits", width=8, examples=300).build()
    test = evaluate(setup.model, setup.measured, weights=trajectory[-1].weights, data=setup.test)
    assert said["test"] == pytest.approx(test, abs=1e-6)


def test_train_takes_every_setting(tmp_path):
    slipstream(
        *("train", "--model", "mlp", "--option", "hidden_layers=2", "--width", 4, "--keep", "log"),
        *("--optimizer", "adamw", "--lr", 0.01, "--weight-decay", 0.1, "--schedule", "cosine"),
        *("--seed", 3, "--batch-size", 500, "--epochs", 2, "--momentum", 0, "--out", tmp_path),
    )
    configuration = Trajectory.open(tmp_path).description["configuration"]
    assert configuration["setup"] == {
        "model": "mlp", "data": "digits", "loss": None, "width": 4.0, "batch_size": 500,
        "options": {"hidden_layers": 2}, "examples": None, "seed": 3, "few_shot": None,
    }  # fmt: skip
    assert configuration["training"] == {
        "epochs": 2, "optimizer": "adamw", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.1,
        "schedule": "cosine", "warm_up": 0.0, "seed": 3, "keep": "log",
    }  # fmt: skip


def test_train_tells_people_the_two_accuracies(tmp_path):
    lines = slipstream("train", *SMALL, "--out", tmp_path / "run").stdout.splitlines()
    assert lines[0].startswith("6 steps in")
    assert lines[1].startswith("validation: loss")
    assert lines[2].startswith("test: loss")
    assert "accuracy 0." in lines[2]


def test_own_model_data_and_loss(own, tmp_path):
    functions = ("--model", f"{own}:build", "--data", f"{own}:load", "--loss", f"{own}:loss")
    said = json.loads(slipstream("train", *functions, "--json").stdout)
    assert said["path"] == "run"
    assert said["validation"].keys() == {"loss"}
    again = json.loads(slipstream("evaluate", "run", *functions, "--json").stdout)
    assert again == pytest.approx({"split": "test", **said["test"]})
    listed = slipstream("groups", f"{own}:build", "--data", f"{own}:load").stdout
    assert "0 groups" in listed


def test_evaluate_a_step_of_a_run(run):
    path, said = run
    for split in ("validation", "test"):
        found = json.loads(slipstream("evaluate", path, "--split", split, "--json").stdout)
        assert found == {"split": split, **said[split]}
    start = json.loads(
        slipstream("evaluate", path, "--step", 0, "--split", "validation", "--json").stdout
    )
    assert start["loss"] == Trajectory.open(path)[0].metrics["validation_loss"]
    assert slipstream("evaluate", path).stdout.startswith("test: loss")


def test_evaluate_a_file_of_weights(run, tmp_path):
    path, said = run
    file = tmp_path / "weights.safetensors"
    save_file(Trajectory.open(path)[-1].weights, file)
    alone = slipstream(
        *("evaluate", "--weights", file, "--model", "mlp", "--width", 8, "--json")
    ).stdout
    assert json.loads(alone) == {"split": "test", **said["test"]}
    assert slipstream("evaluate", path, "--weights", file, "--json").stdout == alone


def test_show_lists_snapshots_and_problems(run, tmp_path):
    path, said = run
    described = json.loads(slipstream("show", path, "--json").stdout)
    assert described["parameters"] == sum(
        value.numel() for value in Trajectory.open(path)[0].weights.values()
    )
    assert [snapshot["step"] for snapshot in described["snapshots"]] == [0, 3, 6]
    assert described["problems"] == []
    text = slipstream("show", path).stdout
    assert "validation accuracy" in " ".join(text.split())
    assert f"{said['losses'][-1]:.4g}" in text


def test_show_shortens_long_runs_and_names_damage(tmp_path):
    slipstream("train", *SMALL[:-1], 31, "--out", tmp_path)
    (tmp_path / "snapshots" / "00000006.safetensors").write_bytes(b"cut")
    text = slipstream("show", tmp_path).stdout
    assert "of 32 snapshots; --all lists every one" in text
    assert "problem: " in text
    assert any(line.split()[:2] == ["93", "31"] for line in text.splitlines()), "the last step"
    assert len(slipstream("show", tmp_path, "--all").stdout.splitlines()) == 1 + 1 + 32 + 1


def test_groups_of_a_run_are_those_of_its_network(run, tmp_path):
    path, _ = run
    text = slipstream("groups", path, "--save", tmp_path / "groups.json").stdout
    assert "hidden1.weight:0  8" in text
    assert NeuronGroups.load(tmp_path / "groups.json").sizes() == {"hidden1.weight:0": 8}
    named = slipstream("groups", "mlp", "--width", 8, "--json").stdout
    assert json.loads(named)["coverage"]["moved"] > 0.9
    assert slipstream("groups", "mlp", "--width", 8).stdout == text
    turned = slipstream("groups", "mlp", "--width", 8, "--rotations").stdout
    assert turned.startswith(text.rstrip())
    assert "not rotatable: hidden1.weight:0" in turned
    named = slipstream("groups", "mlp", "--width", 8, "--rotations", "--json").stdout
    assert json.loads(named)["rotations"]["rotatable"] == []


def test_groups_of_a_hugging_face_folder_need_no_weights(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 40}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    names = {"architectures": ["LlamaForCausalLM"]}
    transformers.LlamaConfig(**sizes, **layers, **names).save_pretrained(tmp_path)
    found = json.loads(slipstream("groups", tmp_path, "--json").stdout)
    assert [group["size"] for group in found["groups"]] == [16, 2, 8, 24]
    assert found["proven"]
    assert 0.5 < found["coverage"]["everywhere"] < found["coverage"]["moved"] <= 1
    assert "not proven" in slipstream("groups", tmp_path, "--no-prove").stdout
    refused = slipstream("groups", tmp_path, "--width", 2, code=2).stderr
    assert "--data, --width and --option are not for" in refused


def test_groups_of_a_network_of_timm():
    pytest.importorskip("timm")
    assert "conv1.0.weight:0" in slipstream("groups", "timm:resnet10t", "--no-prove").stdout


def test_import_makes_a_run(tmp_path):
    model = nn.Linear(2, 2)
    (tmp_path / "checkpoints").mkdir()
    for step in (10, 20):
        torch.save(model.state_dict(), tmp_path / "checkpoints" / f"step-{step}.pt")
    said = json.loads(
        slipstream("import", tmp_path / "checkpoints", tmp_path / "run", "--json").stdout
    )
    assert said == {"path": str(tmp_path / "run"), "steps": [10, 20], "tensors": 2}
    assert torch.equal(Trajectory.open(tmp_path / "run")[-1]["weight"], model.weight)
    text = slipstream("import", tmp_path / "checkpoints").stdout
    assert text.startswith("2 snapshots of 2 tensors, steps 10 to 20, in")
    assert Trajectory.open(f"{tmp_path}/checkpoints-run").steps == [10, 20]


# what they say about mistakes


MISTAKES = [
    (["train", "mlq"], "There is no network 'mlq'; the testbed has mlp, tapered_mlp"),
    (["train", "--data", "digit"], "got 'digit'"),
    (["train", "--data", "mnist:/nowhere"], "There is no folder '/nowhere'"),
    (["train", "--option", "depth"], "--option must be NAME=VALUE"),
    (["train", "--option", "depth=2"], "mlp has no option 'depth'"),
    (["train", "--keep", "all"], "keep must be epochs, log or every:N, got 'all'"),
    (["train", "--model", "gone:build"], "'gone:build' cannot be imported"),
    (["train", "--epochs", "0", "--keep", "log"], "epochs must be at least 1, got 0"),
    (["train", "--keep", "every:0"], "at least 1, got 0"),
    (["train", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    (["train", "--lr", "1e30", "--width", "4"], "try a smaller lr"),
    (["show", "/nowhere"], "/nowhere is not a run folder"),
    (["evaluate"], "Give a run folder"),
    (["evaluate", "--model", "mlp"], "Give a run folder, or a file with --weights"),
    (["groups", "mlq"], "There is no network 'mlq'"),
    (["import", "/nowhere"], "/nowhere"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = slipstream(*arguments, code=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_weights_that_do_not_fit_are_named(run, tmp_path):
    path, _ = run
    file = tmp_path / "weights.safetensors"
    weights = weights_of(NamedTask("mlp", width=9).build().model)
    save_file(weights, file)
    result = slipstream("evaluate", path, "--weights", file, code=2)
    assert "differ in the shape of 'hidden1.weight': (8, 64) and (9, 64)." in result.stderr
    save_file({"head.bias": weights["head.bias"]}, file)
    result = slipstream("evaluate", path, "--weights", file, code=2)
    assert "lacks the tensor 'hidden1.weight'" in result.stderr
    file.write_text("no weights")
    assert str(file) in slipstream("evaluate", path, "--weights", file, code=2).stderr
    result = slipstream("evaluate", path, "--step", 5, code=2)
    assert result.stderr == "Step 5 was not kept; the nearest is 6.\n"


def test_a_second_run_does_not_overwrite_the_first(run):
    path, _ = run
    before = (path / "run.json").read_bytes()
    assert "already holds a run" in slipstream("train", *SMALL, "--out", path, code=2).stderr
    assert (path / "run.json").read_bytes() == before


def test_an_interrupt_exits_with_130(own):
    result = slipstream("train", "--data", f"{own}:stop", code=130)
    assert result.stderr == "Interrupted.\n"


def test_ctrl_c_while_training_leaves_a_run_that_opens(own, tmp_path):
    code = "from slipstream.cli import main; main()"
    functions = ["--model", f"{own}:build", "--data", f"{own}:load", "--loss", f"{own}:loss"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", *functions, "--epochs", "1000000"],
        stderr=subprocess.PIPE,
        text=True,
    )
    index = tmp_path / "run" / "snapshots.jsonl"
    deadline = time.monotonic() + 100
    while not (index.exists() and index.stat().st_size > 500) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "Interrupted.\n"
    assert len(Trajectory.open(tmp_path / "run")) >= 3


@pytest.mark.parametrize("command", ["train", "import", "show", "groups", "evaluate"])
def test_every_command_explains_itself_with_an_example(command):
    text = slipstream(command, "-h").stdout
    assert f"Example: slipstream {command}" in text
    assert text == slipstream(command, "--help").stdout


def test_help_is_quick_because_torch_stays_out():
    code = "import sys, slipstream.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
