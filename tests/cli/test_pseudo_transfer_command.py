import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from commands import slipstream
from slipstream.recipes import ConditionalGenerator
from slipstream.testbed import load_data
from slipstream.testbed.conditional_vae import ConditionalVAE
from slipstream.testbed.generator_file import save_generator
from slipstream.trajectory import Trajectory, check_run

SMALL = (
    "recipe", "pseudo-transfer", "mlp", "--width", 8, "--epochs", 3, "--labels", 2,
    "--pretraining", 1, "--source-epochs", 1,
)  # fmt: skip
RUNS = ("pretrained", "task")


@pytest.fixture
def own(monkeypatch):
    """A module of the user's own."""

    def hard(labels, generator):
        return torch.randn(len(labels), 1, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1)

    def soft(labels, generator):
        return hard(labels.argmax(1), generator)

    digits = load_data("digits")
    module = SimpleNamespace(
        hard=lambda: ConditionalGenerator(hard, 7, "hard"),
        soft=lambda: ConditionalGenerator(soft, 7),
        fits=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 7)),
        not_a_function=lambda: 3,
        other=lambda: SimpleNamespace(
            train=digits.train.batches(9), validation=digits.validation.batches(50),
            test=digits.test.batches(50), spec=digits.spec,
        ),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "own_source", module)


def test_it_prints_its_controls_and_records_both_runs(tmp_path):
    out = tmp_path / "pseudo"
    given = (*SMALL, "--out", out)
    said = json.loads(slipstream(*given, "--json").stdout)
    assert list(said["test"]) == [
        "PP + P-SSL", "PP", "P-SSL", "from scratch", "from scratch, as many steps in all",
        "distillation",
    ]  # fmt: skip
    assert (said["pretraining"], said["steps"], said["synthetic"]) == (100, 3, 12860)
    first, second = (Trajectory.open(out / name) for name in RUNS)
    assert all(check_run(out / name) == [] for name in RUNS)
    for name, value in first[-1].weights.items():
        assert torch.equal(second[0].weights[name], value)
    there = json.loads(slipstream("evaluate", out / "task", "--json").stdout)
    assert there["accuracy"] == said["test"]["PP + P-SSL"]["accuracy"]
    text = slipstream(*given, "--overwrite").stdout
    assert "100 steps of pre-training, 3 on the target, 12860 synthetic" in " ".join(text.split())
    again = json.loads(slipstream(*given, "--resume", "--no-controls", "--json").stdout)
    assert again["test"] == {"PP + P-SSL": said["test"]["PP + P-SSL"]}
    assert "another training" in slipstream(*given, "--resume", "--labels", 3, code=2).stderr


def test_either_half_can_be_left_out(tmp_path):
    given = (*SMALL, "--no-controls", "--json", "--out")
    alone = json.loads(slipstream(*given, tmp_path / "a", "--pretraining", 0).stdout)
    assert (list(alone["test"]), alone["pretraining"]) == (["P-SSL"], 0)
    before = json.loads(slipstream(*given, tmp_path / "b", "--weight", 0).stdout)
    assert (list(before["test"]), before["synthetic"]) == (["PP"], 12800)


def test_own_functions_and_files_are_a_source(tmp_path, own):
    given = (*SMALL, "--json", "--out")
    named = ("--generator", "own_source:soft", "--classifier", "own_source:fits")
    said = json.loads(slipstream(*given, tmp_path / "a", *named).stdout)
    assert "distillation" in said["test"]
    other = ("--data", "own_source:other", "--conditioning", "uniform")
    said = json.loads(
        slipstream(*given, tmp_path / "b", "--generator", "own_source:hard", *other).stdout
    )
    assert "distillation" not in said["test"]
    file = tmp_path / "vae.safetensors"
    save_generator(ConditionalVAE((1, 8, 8), classes=10, width=8), file)
    slipstream("train", "mlp", "--width", 8, "--epochs", 1, "--out", tmp_path / "run")
    named = ("--generator", file, "--classifier", tmp_path / "run", "--start", tmp_path / "run")
    slipstream(*given, tmp_path / "c", "--no-controls", *named)
    start = Trajectory.open(tmp_path / "run")[-1].weights
    begun = Trajectory.open(tmp_path / "c" / "pretrained")[0].weights
    assert all(torch.equal(begun[name], value) for name, value in start.items())


def test_mistakes_are_one_line(tmp_path, own):
    soft = ("--generator", "own_source:soft")
    hard = ("--generator", "own_source:hard", "--classifier", "own_source:fits")
    for number, (given, message) in enumerate(
        [
            (hard, "Use --conditioning sampled"),
            (soft, "--conditioning soft asks a classifier"),
            (("--generator", "own_source:fits"), "must return a slipstream.recipes.Conditional"),
            (("--generator", "own_source:nothing"), "cannot be imported"),
            (("--classifier", "own_source:not_a_function"), "must return a function from inputs"),
            (("--labels", 1000), "--labels is 1000, but a class has"),
            (("--head", "top"), "The model has no layer 'top'"),
            (("--weight", -1), "weight must be at least 0 and finite, got -1.0"),
            (("--source", "letters"), "data must be digits, mnist:DIR or cifar10:DIR"),
        ]
    ):
        result = slipstream(*SMALL, *given, "--out", tmp_path / str(number), code=2)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / str(number)).exists()
