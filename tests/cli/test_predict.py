import json

import pytest
import torch
from safetensors.torch import save_file

from commands import slipstream
from slipstream.cli.predict import first_examples
from slipstream.dynamics import PredictionPlan, predict_training_time
from slipstream.evaluation import Task, classification_loss
from slipstream.named_task import NamedTask
from slipstream.weights import weights_of

NETWORK = ("--model", "mlp", "--width", 16, "--data", "digits", "--examples", 20)


def test_it_says_and_draws_what_the_library_predicts(tmp_path):
    experiment = NamedTask("mlp", "digits", width=16).build()
    weights = tmp_path / "start.safetensors"
    moved = {name: value * 1.5 for name, value in weights_of(experiment.model).items()}
    save_file(moved, weights)
    words = [*NETWORK, "--weights", weights, "--lr", 0.1, "--momentum", 0.5, "--batch-size", 8]
    words += ["--seed", 3, "--schedule", "cosine", "--max-steps", 50, "--linearisations", 2]
    words += ["--reach", "80%", "--reach", 1e-6]
    said = json.loads(slipstream("predict", *words, "--json").stdout)
    inputs, labels = (part[:20] for part in next(iter(experiment.data)))
    found = predict_training_time(
        Task(experiment.model.eval(), [(inputs, labels)], classification_loss),
        weights=moved,
        plan=PredictionPlan(
            thresholds=[said["losses"][0] * 0.8, 1e-6],
            lr=[
                0.1 * (1 + torch.cos(torch.tensor(torch.pi * at / 50)).item()) / 2
                for at in range(50)
            ],
            momentum=0.5,
            batch_size=8,
            seed=3,
            linearisations=2,
        ),
    )
    assert said["losses"] == pytest.approx(found.losses.tolist(), rel=1e-4)
    assert [one["steps"] for one in said["arrivals"]] == [found.arrivals[0].steps, None]
    assert said["status"] == found.status == "not reached"
    figure = tmp_path / "curve.png"
    text = slipstream("predict", *words, "--figure", figure).stdout
    assert f"(80%): {found.arrivals[0].steps} steps" in text
    assert "not within 50" in text
    assert "trust: " in text
    assert figure.read_bytes()[1:4] == b"PNG"


def test_from_a_run_at_its_last_step(tmp_path):
    train = ("--width", 16, "--examples", 64, "--epochs", 1, "--out", tmp_path / "run")
    slipstream("train", "mlp", *train)
    said = slipstream("predict", tmp_path / "run", "--examples", 20, "--lr", 0.01)
    assert "50%" in said.stdout
    assert "10%" in said.stdout


def test_what_diverges_is_valid_json():
    text = slipstream("predict", *NETWORK, "--lr", 1e6, "--json").stdout
    said = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert said["status"] == "unstable"
    assert said["trust"]["path_error"] is None
    plain = slipstream("predict", *NETWORK, "--lr", 1e6).stdout
    assert f"rates are stable below {said['stable_lr']:.3g}" in plain


def test_mistakes_are_one_line():
    for words, message in [
        (("--lr", -1), "--lr must be positive, got -1.0"),
        (
            ("--reach", "soon"),
            "--reach must be losses such as 0.1, or shares such as 10%, got",
        ),
        (("--reach", "120%"), "--reach must be below the loss at the start"),
        (("--memory", 1e-6), "with 10 outputs each takes 0.00016 GB, and memory allows 1e-06 GB"),
        (("--examples", 0), "--examples must be at least 1, got 0"),
    ]:
        result = slipstream("predict", *NETWORK, *words, code=2)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert "Give a run folder, or name a model" in slipstream("predict", code=2).stderr


def test_the_first_examples_are_counted_over_batches():
    batches = [(torch.arange(n), torch.arange(n)) for n in (3, 4, 5)]
    assert [len(x) for x, _ in first_examples(batches, 6)] == [3, 3]
    assert [len(x) for x, _ in first_examples(batches, 7)] == [3, 4]
    assert [len(x) for x, _ in first_examples(batches, 99)] == [3, 4, 5]
