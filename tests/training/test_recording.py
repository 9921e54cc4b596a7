import json
from dataclasses import asdict

import pytest
import torch

from slipstream.evaluation import evaluate
from slipstream.named_task import NamedTask, rebuild
from slipstream.training import TrainingPlan, record_training
from slipstream.trajectory import Trajectory, check_run
from slipstream.weights import load_weights_, weights_of

SMALL = NamedTask("mlp", "digits", width=8, examples=300, batch_size=100)
OWN = NamedTask("own_experiment:model", "own_experiment:data", "own_experiment:loss")


@pytest.fixture(autouse=True)
def _own_experiment(monkeypatch, request):
    monkeypatch.syspath_prepend(request.path.parent)


def test_a_run_holds_its_epochs_and_what_rebuilds_it(tmp_path):
    result = record_training(
        SMALL.build(), TrainingPlan(epochs=3, lr=0.1), run_folder=tmp_path / "run"
    )
    run = Trajectory.open(tmp_path / "run")
    assert check_run(tmp_path / "run") == []
    assert run.steps == [0, 3, 6, 9]
    assert [snapshot.epoch for snapshot in run] == [0, 1, 2, 3]
    assert [s.metrics.get("train_loss") for s in run] == [None, *result.losses]
    again = rebuild(run.description["configuration"])
    for snapshot in run:
        metrics = evaluate(
            again.model, again.measured, weights=snapshot.weights, data=again.validation
        )
        for name, value in metrics.items():
            assert snapshot.metrics[f"validation_{name}"] == pytest.approx(value, abs=1e-6)
    assert result.validation == pytest.approx(metrics, abs=1e-6)
    assert result.test == pytest.approx(
        evaluate(again.model, again.measured, weights=run[-1].weights, data=again.test), abs=1e-6
    )
    assert torch.equal(run[0]["hidden1.weight"], again.model.hidden1.weight)


def test_the_rebuilt_experiment_trains_the_same_again(tmp_path):
    first = record_training(SMALL.build(), TrainingPlan(epochs=2), run_folder=tmp_path / "first")
    configuration = Trajectory.open(tmp_path / "first").description["configuration"]
    setup = NamedTask(**configuration["setup"])
    plan = TrainingPlan.from_dict(configuration["training"])
    second = record_training(setup.build(), plan, run_folder=tmp_path / "second")
    assert first.losses == second.losses
    runs = [Trajectory.open(tmp_path / name)[-1].weights for name in ("first", "second")]
    assert all(torch.equal(runs[0][name], value) for name, value in runs[1].items())


@pytest.mark.parametrize(
    ("keep", "steps"),
    [
        ("epochs", [0, 3, 6]),
        ("every:2", [0, 2, 3, 4, 6]),
        ("every:5", [0, 3, 5, 6]),
        ("log", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_keep_adds_snapshots_between_the_epochs(tmp_path, keep, steps):
    record_training(SMALL.build(), TrainingPlan(epochs=2), run_folder=tmp_path, keep=keep)
    run = Trajectory.open(tmp_path)
    assert run.steps == steps
    assert all(("validation_accuracy" in s.metrics) == (s.step % 3 == 0) for s in run)


def test_a_users_own_experiment_is_recorded_and_rebuilt(tmp_path):
    result = record_training(OWN.build(), TrainingPlan(epochs=30), run_folder=tmp_path)
    assert result.validation.keys() == {"loss"}
    assert result.losses[-1] < 0.01 * result.losses[0]
    run = Trajectory.open(tmp_path)
    other = rebuild(run.description["configuration"], seed=7, trusted=True)
    same = rebuild(run.description["configuration"], trusted=True)
    assert torch.equal(run[0]["weight"], same.model.weight)
    assert not torch.equal(same.model.weight, other.model.weight)


def test_another_seed_changes_the_weights_and_not_the_batches():
    first, second = (rebuild({"setup": asdict(SMALL)}, seed=seed) for seed in (1, 2))
    assert not torch.equal(first.model.head.weight, second.model.head.weight)
    for one, other in zip(first.data, second.data, strict=True):
        assert torch.equal(one[1], other[1])


def test_parts_of_a_setup_can_be_replaced():
    foreign = rebuild({}, model="resnet18", data="digits")
    assert weights_of(foreign.model)["conv1.weight"].shape == (64, 1, 3, 3)
    other = rebuild({"setup": asdict(SMALL)}, model="conv_net")
    assert other.model.head.in_features == 128, "the width was that of the mlp"
    load_weights_(other.model, weights_of(other.model))


def test_configuration_is_plain_data():
    assert NamedTask(**json.loads(json.dumps(asdict(SMALL)))) == SMALL


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (NamedTask(model="gone:model"), "'gone:model' cannot be imported"),
        (NamedTask(model="own_experiment:gone"), "own_experiment:gone.*cannot be imported"),
        (NamedTask(model="math:pi"), "'math:pi' is not a function but a float"),
        (NamedTask(model="own_experiment:no_model"), "must return an nn.Module, got int"),
        (NamedTask(model="own_experiment:model", width=4), "width and options are for the testbed"),
        (NamedTask(data="own_experiment:half"), "it has no test"),
        (NamedTask(data="own_experiment:data"), "mlp must know the inputs and classes"),
    ],
)
def test_what_cannot_be_built_is_named(setup, message):
    with pytest.raises(ValueError, match=message):
        setup.build()


@pytest.mark.parametrize("keep", ["", "every", "every:0.5", "every:-1", "steps"])
def test_bad_keep_leaves_no_folder(tmp_path, keep):
    with pytest.raises(ValueError, match=f"keep must be epochs, log or every:N, got '{keep}'"):
        record_training(SMALL.build(), run_folder=tmp_path / "run", keep=keep)
    assert not (tmp_path / "run").exists()


def test_a_run_of_others_needs_model_and_data():
    with pytest.raises(ValueError, match="was not made by `slipstream train`"):
        rebuild({"lr": 0.1})
    with pytest.raises(ValueError, match="no setting 'depth'"):
        rebuild({"setup": {"depth": 3}})


def test_no_cuda_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda:0', but PyTorch finds no CUDA"):
        SMALL.build(device="cuda:0")
