"""Code is imported only if the user names it: never because a run folder says so."""

import json
import sys

import pytest

from commands import complaint, slipstream
from slipstream.named_task import NamedTask
from slipstream.trajectory import Recorder, Trajectory

OWN = """
from pathlib import Path
from types import SimpleNamespace
import torch
from torch import nn

Path("the_code_ran").touch()

def model():
    return nn.Linear(3, 1)

def data():
    batches = [(torch.eye(3), torch.ones(3, 1))]
    return SimpleNamespace(train=batches, validation=batches, test=batches)

def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()

def largest(model, batch):
    return (model(batch[0]) - batch[1]).abs().max().detach()

def metrics():
    return {"largest": largest}
"""
NAMES = {part: f"own_code_of_runs:{part}" for part in ("model", "data", "loss", "metrics")}
COMMANDS = [
    "show run", "groups run", "evaluate run", "average run", "transfer run --seed 1",
    "compress run", "modes run", "motion run", "curvature run", "complexity run", "predict run",
    "match run run --model run --out matched.safetensors",
    "match run run --model run --out matched.safetensors --method activations",
    "report run -o page.html --seconds 0", "plot line run --seconds 0",
    "landscape line run run@0", "landscape barrier run run@0", "landscape plane run",
    "landscape curve run run@0", "landscape study run run@0",
    "recipe side-tuning run", "recipe pseudo-transfer --classifier run --source digits",
    "recipe lure --start run", "recipe aggregation --start run --start run",
    "port --from-base run --fine-tuned run --to-base run -o ported --model run",
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with a module, and a run whose run.json names it."""
    (tmp_path / "own_code_of_runs.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    task = NamedTask("mlp", width=4, examples=64).build()
    with Recorder(tmp_path / "run", task.model, configuration={"setup": NAMES}) as recorder:
        recorder.record(step=0)
        recorder.record(step=1)
    yield tmp_path / "run"
    sys.modules.pop("own_code_of_runs", None)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_what_a_run_names(run, command):
    slipstream(*command.split(), code=(0, 2))
    assert not (run.parent / "the_code_ran").exists()
    assert str(run.parent) not in sys.path


def test_the_message_names_the_flags(run):
    said = complaint(slipstream("evaluate", "run", code=2))
    assert "The run names its model as own_code_of_runs:model and its data as" in said
    assert "give --model own_code_of_runs:model --data own_code_of_runs:data" in said
    assert "slipstream.toml" in said


FLAGS = [text for part, name in NAMES.items() for text in (f"--{part}", name)]


@pytest.mark.parametrize("where", ["flags", "slipstream.toml", "other.toml"])
def test_code_that_the_user_names_is_imported(run, where):
    if where == "flags":
        given = FLAGS
    else:
        lines = [f'{part} = "{name}"' for part, name in NAMES.items()]
        (run.parent / where).write_text("\n".join(["[task]", *lines]))
        given = [] if where == "slipstream.toml" else ["--task", where]
    slipstream("train", *given, "--out", "own", "--epochs", 1)
    kept = Trajectory.open("own").description["configuration"]["setup"]
    assert {part: kept[part] for part in NAMES} == NAMES
    found = json.loads(slipstream("evaluate", "own", *given, "--json").stdout)
    assert found.keys() == {"split", "loss", "largest"}


def test_the_command_line_comes_before_the_file_and_the_file_before_the_run(run):
    (run.parent / "slipstream.toml").write_text('[task]\nmodel = "mlp"\nwidth = 8\nseed = 3\n')
    slipstream("train", "--epochs", 1, "--width", 6, "--batch-size", 500, "--out", "trained")
    kept = Trajectory.open("trained").description["configuration"]["setup"]
    assert (kept["width"], kept["seed"], kept["batch_size"]) == (6, 3, 500)
    (run.parent / "slipstream.toml").write_text('[task]\ndata = "gone:data"\n')
    assert "gone" in slipstream("evaluate", "trained", code=2).stderr
    slipstream("evaluate", "trained", "--data", "digits")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[task]\ndepth = 3", "slipstream.toml: [task] has no setting 'depth'; it has model, data"),
        ("[task", "slipstream.toml is not a TOML file"),
        ("task = 1", "slipstream.toml has no table [task]"),
        ("[task]\nmodel = 1", "model must be a name, got 1"),
        ('[task]\nmodel = "mlp"\nwidth = -1', "--width must be above 0, got -1"),
        ('[task]\nmodel = "mlp"\noptions = 3', "options must be a mapping"),
        ('[task]\nmodel = "mlp"\n[task.options]\nhidden_layers = "two"', "options do not fit mlp"),
    ],
)
def test_mistakes_in_the_file_are_one_line(run, text, message):
    (run.parent / "slipstream.toml").write_text(text)
    data = ("--data", "digits") if "mlp" in text else FLAGS[2:4]
    given = (*data, *FLAGS[4:])
    assert message in complaint(slipstream("evaluate", "run", *given, code=2))


def test_what_is_missing_is_named(run):
    with Recorder("foreign", NamedTask(width=4).build().model) as recorder:
        recorder.record(step=0)
    said = complaint(slipstream("evaluate", "foreign", "--model", "mlp", code=2))
    assert said.startswith("--data is missing.")
    said = complaint(slipstream("evaluate", "foreign", code=2))
    assert said.startswith("--model and --data are missing.")


def test_a_recorder_can_hold_the_names(run):
    names = {"task": {"model": "mlp", "data": "digits", "width": 4}}
    with Recorder("own", NamedTask(width=4).build().model, configuration=names) as recorder:
        recorder.record(step=0)
    assert slipstream("evaluate", "own").stdout.startswith("test: loss")


def test_names_in_python_are_trusted_only_if_it_is_said(run):
    configuration = Trajectory.open(run).description["configuration"]
    with pytest.raises(ValueError, match="The run names code: model='own_code_of_runs:model'"):
        NamedTask.of_run(configuration)
    assert NamedTask.of_run(configuration, trusted=True).model == NAMES["model"]
    assert NamedTask.of_run(configuration, **NAMES).data == NAMES["data"]
