"""Choosing among averages: on validation data, with BatchNorm recalibrated, and nothing else."""

import json
import math
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from commands import slipstream
from slipstream.averaging import (
    EMA,
    LAWA,
    PowerEMA,
    average_candidates,
    average_run,
    choose_average,
)
from slipstream.evaluation import Task, evaluate, recalibrate_batchnorm
from slipstream.modes import fit_modes
from slipstream.named_task import NamedTask
from slipstream.trajectory import Trajectory
from slipstream.weights import weights_of


def value_of(model, batch):
    return model.weight.square().sum()


def distance_from(target):
    return lambda model, batch: (model.weight - target).square().sum()


def line(*values):
    return Trajectory.from_weights([{"weight": torch.tensor([[v]])} for v in values])


ONE = [torch.ones(2, 1)]


def choose(trajectory, metrics, *, rules=None, **options):
    model = nn.Linear(1, 1, bias=False)
    candidates = average_candidates(trajectory, rules=rules)
    rest = {name: metric for name, metric in metrics.items() if name != "loss"}
    task = Task(model, ONE, metrics["loss"], validation=ONE, metrics=rest)
    return choose_average(candidates, task, **options)


def test_the_best_on_validation_data_wins():
    run = line(0.0, 4.0, 2.0, 8.0)  # the mean of the last two is 5, of the last three 14/3
    choice = choose(run, {"loss": distance_from(5.0)}, rules=[LAWA(2), LAWA(3), EMA(0.1)])
    assert [c.name for c in choice.candidates] == ["last", "lawa:2", "lawa:3", "ema:0.1"]
    assert [c.validation["loss"] for c in choice.candidates[:3]] == pytest.approx([9, 0, 1 / 9])
    assert choice.best is choice.candidates[1]
    assert choice.weights["weight"] == 5


def test_the_highest_wins_where_high_is_good_and_the_loss_decides_among_equals():
    run = line(1.0, 2.0, 3.0)
    metrics = {"loss": distance_from(2.4), "accuracy": lambda model, batch: 0.5}
    choice = choose(run, metrics, rules=[LAWA(2)], criterion="accuracy", highest=True)
    assert choice.best.name == "lawa:2"
    metrics["accuracy"] = lambda model, batch: model.weight.item()
    choice = choose(run, metrics, rules=[LAWA(2)], criterion="accuracy", highest=True)
    assert choice.best.name == "last"


def test_what_is_not_finite_never_wins():
    run = line(1.0, 2.0)
    metrics = {"loss": lambda model, batch: math.nan if model.weight > 1.9 else 1.0}
    assert choose(run, metrics, rules=[LAWA(2)]).best.name == "lawa:2"
    with pytest.raises(ValueError, match="No candidate has a finite loss"):
        choose(run, {"loss": lambda model, batch: math.inf}, rules=[])


class Drawn:
    """Other batches in each pass: of other values, or the same ones in another order."""

    def __init__(self, *passes):
        self.passes = cycle(passes)

    def __iter__(self):
        return iter(next(self.passes))


def test_validation_data_that_change_are_refused():
    def mean(model, batch):
        return batch.mean() * model.weight.sum()

    candidates = average_candidates(line(1.0), modes=[])
    low, high = torch.full((2, 1), 0.1), torch.full((1, 1), 0.7)
    task = Task(nn.Linear(1, 1, bias=False), ONE, mean, validation=Drawn([low], [high]))
    with pytest.raises(ValueError, match=r"loss of the same weights was .*, then "):
        choose_average(candidates, task)
    task = replace(task, validation=Drawn([low, high], [high, low]))
    assert choose_average(candidates, task).best.name == "last"
    task = replace(task, validation=(batch for batch in (low, high)))
    assert choose_average(candidates, task).best.name == "last"


def test_an_unknown_metric_and_an_empty_run_are_told():
    with pytest.raises(ValueError, match="criterion must be one of loss, got 'accuracy'"):
        choose(line(1.0), {"loss": value_of}, criterion="accuracy")
    with pytest.raises(ValueError, match="at least one snapshot"):
        average_candidates(line(1.0)[:0])


def test_short_runs_have_candidates_too():
    assert list(average_candidates(line(1.0)))[:2] == ["last", "swa:0"]
    assert "lawa:3" not in average_candidates(line(1.0, 2.0))


def test_power_averages_are_made_of_stored_ones_if_there_are_any():
    run = line(*map(float, range(9)))
    steps = range(1, 9)
    kept = Trajectory.from_weights([{"weight": torch.full((1, 1), 3.0)}] * 8, steps=steps)
    rules = [PowerEMA(0.2), LAWA(2)]
    made = average_candidates(run, rules=rules, stored={PowerEMA(0.1): kept})
    assert made["power:0.2"]()["weight"] == 3
    assert torch.equal(made["lawa:2"]()["weight"], torch.tensor([[7.5]]))
    expected = average_run(run, PowerEMA(0.2))["weight"]
    assert average_candidates(run, rules=rules)["power:0.2"]()["weight"] == expected


def test_batchnorm_is_recalibrated_for_averages_and_left_alone_for_the_last_snapshot():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    points = []
    for _ in range(3):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(4, 3))
        points.append({name: value.clone() for name, value in weights_of(model).items()})
    run = Trajectory.from_weights(points)
    train, validation = [torch.randn(7, 3), torch.randn(5, 3)], [torch.randn(4, 3)]
    metrics = {"loss": lambda model, batch: model(batch).square().mean()}
    choice = choose_average(
        average_candidates(run, rules=[LAWA(2)]),
        Task(model, train, metrics["loss"], validation=validation),
    )
    averaged = average_run(run, LAWA(2))
    averaged |= recalibrate_batchnorm(model, weights=averaged, data=train)
    found = {c.name: c.validation for c in choice.candidates}
    assert found["lawa:2"] == evaluate(model, metrics, weights=averaged, data=validation)
    assert found["last"] == evaluate(model, metrics, weights=points[-1], data=validation)
    expected = points[-1] if choice.best.name == "last" else averaged
    assert all(torch.equal(choice.weights[name], value) for name, value in expected.items())


def test_modes_are_candidates_too():
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(2000, generator=generator)
    points = [
        {"weight": slopes * t + 0.01 * torch.randn(2000, generator=generator)} for t in range(8)
    ]
    candidates = average_candidates(Trajectory.from_weights(points))
    assert list(candidates)[-1] == "modes:10"
    exact = fit_modes(Trajectory.from_weights(points), modes=1, reference="component")
    alone = average_candidates(Trajectory.from_weights(points), modes=[1])
    assert list(alone) == ["last", "modes:1"]
    assert torch.equal(alone["modes:1"]()["weight"], exact.weights_at(7)["weight"])


# the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    command = ["train", "mlp", "--width", "8", "--examples", "300", "--epochs", "4"]
    slipstream(*command, "--out", path)
    return path


def test_the_command_saves_the_best_and_never_sees_test_data(run, tmp_path, monkeypatch):
    build = NamedTask.build
    with monkeypatch.context() as patch:
        patch.setattr(NamedTask, "build", lambda self, **o: replace(build(self, **o), test=None))
        _best_is_saved(run, tmp_path)


def _best_is_saved(run, tmp_path):
    file = tmp_path / "best.safetensors"
    said = json.loads(slipstream("average", run, "--json", "-o", file).stdout)
    named = {c["name"]: c["validation"] for c in said["candidates"]}
    best = max(named, key=lambda name: (named[name]["accuracy"], -named[name]["loss"]))
    assert said["best"] == best
    assert said["by"] == "accuracy"
    experiment = NamedTask("mlp", "digits", width=8, examples=300).build()
    metrics = evaluate(
        experiment.model, experiment.measured, weights=load_file(file), data=experiment.validation
    )
    assert metrics == named[best]


def test_the_command_takes_decays_windows_and_stored_averages(run):
    rules = ["--rule", "1-sqrt:6", "--rule", "lawa:50%", "--rule", "power:0.2"]
    stored = ["--stored", f"power:0.1={run}", "--json"]
    said = json.loads(slipstream("average", run, *rules, *stored).stdout)
    names = [candidate["name"] for candidate in said["candidates"]]
    assert names == ["last", "1-sqrt:6", "lawa:50%", "power:0.2"]


def test_the_command_prints_a_table_and_takes_rules(run):
    lines = slipstream("average", run, "--rule", "lawa:2", "--by", "loss").stdout.splitlines()
    assert lines[0].split() == ["validation", "loss", "accuracy"]
    assert [line.split()[0] for line in lines[1:3]] == ["last", "lawa:2"]
    assert lines[-1].startswith("best by loss: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rule", "mean:3"], "got 'mean:3'"),
        (["--stored", "ema:0.5=run"], "--stored must be power:WIDTH=RUN, got 'ema:0.5=run'"),
        (["--by", "recall"], "criterion must be one of loss, accuracy, got 'recall'"),
        (["--rule", "swa:999"], "SWA starts at step 999; the last snapshot is 12"),
    ],
)
def test_the_command_tells_mistakes(run, options, message):
    assert message in slipstream("average", run, *options, code=2).stderr
