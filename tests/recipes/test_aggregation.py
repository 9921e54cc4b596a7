import math

import pytest
import torch
from small_networks import Interrupt, batches, network, same, same_runs
from torch import nn

from slipstream.evaluation import (
    Task,
    accuracy,
    classification_loss,
    evaluate,
    gradient,
    recalibrate_batchnorm,
)
from slipstream.recipes import AggregationPlan, train_aggregation
from slipstream.recipes.aggregation.specialists import Family, Together
from slipstream.storage import resumable_state as checkpoint
from slipstream.storage.new_run import NewRun
from slipstream.storage.tensor_file import map_tensors
from slipstream.training import TrainingPlan, fresh_weights
from slipstream.trajectory import Trajectory, check_run
from slipstream.weights import clone, parameter_names, weights_of

SHORT = AggregationPlan(descent=TrainingPlan.cosine(epochs=3, lr=0.02))
DATA = (batches(40, seed=1), batches(20, seed=2, along=1))


def plain(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 2)
        return nn.Sequential(*layers)


def tasks(model, data=DATA, **given):
    return [Task(model, part, validation=part, **given) for part in data]


def test_the_objective_in_closed_form():
    model = plain().double()
    starts = [clone(weights_of(plain(seed).double())) for seed in (0, 1)]
    family = Family(model, starts)
    with torch.no_grad():
        for parameter in family.aggregate.parameters():
            parameter += 0.1
    drawn = [[t.double() if t.is_floating_point() else t for t in part[0]] for part in DATA]
    drawn[1] = [tensor[:4] for tensor in drawn[1]]  # unequal: 8 and 4 examples
    found = family.objective([Task(model)] * 2, drawn, 0.7)

    def at(weights, batch):
        return evaluate(model, {"loss": classification_loss}, weights=weights, data=[batch])["loss"]

    aggregate = {n: starts[0][n] + starts[1][n] + 0.1 for n in starts[0]}
    count = sum(value.numel() for value in aggregate.values())
    expected = (
        at(starts[0], drawn[0]) + at(starts[1], drawn[1])
        + (8 * at(aggregate, drawn[0]) + 4 * at(aggregate, drawn[1])) / 12
        + 0.7 * count * 0.1**2
    )  # fmt: skip
    assert found.item() == pytest.approx(expected, rel=1e-12)
    # The gradient of a specialist is that of its own loss, less the pull: 2 mu (A - sum).
    found.backward()
    own = gradient(model, classification_loss, weights=starts[1], data=[drawn[1]])
    slopes = {n: p.grad for n, p in family.specialists[1].named_parameters()}
    for name, slope in slopes.items():
        torch.testing.assert_close(slope, own[name] - 2 * 0.7 * 0.1)


def test_all_sums_are_sums():
    model = plain()
    before = clone(weights_of(model))
    found = train_aggregation(tasks(model), plan=SHORT)
    assert same(before, weights_of(model))
    first, second = found.specialists
    for name in before:
        assert torch.equal(found.sum[name], first[name] + second[name])
        assert torch.equal(found.remainders[0][name], found.aggregate[name] - first[name])
        assert torch.equal(found.remainders[1][name], found.aggregate[name] - second[name])
    rest = torch.cat([(found.aggregate[n] - found.sum[n]).flatten() for n in before])
    total = torch.cat([found.sum[n].flatten() for n in before])
    assert found.gap == pytest.approx(float(rest.norm() / total.norm()), rel=1e-5)
    assert found.steps == 15  # of the longer data set: 5 batches, 3 epochs


def test_three_data_sets_add_up_too():
    found = train_aggregation(tasks(plain(), [*DATA, batches(10, seed=5)]), plan=SHORT)
    name = "3.weight"
    torch.testing.assert_close(found.sum[name], sum(own[name] for own in found.specialists))
    assert len(found.remainders) == 3


def test_shorter_data_begin_again():
    class Counted(list):
        def epoch(self, number):
            return [f"{name} of {number}" for name in self]

    together = Together([Counted("abc"), Counted("x")])
    assert len(together) == 3
    assert list(together.epoch(2)) == [
        ("a of 2", "x of 2"),
        ("b of 2", "x of 2"),
        ("c of 2", "x of 2"),
    ]


def test_data_that_run_out_are_an_error():
    class Once(list):
        def epoch(self, number):
            return [] if number else list(self)

    with pytest.raises(ValueError, match="one of the data sets has no batch any more"):
        train_aggregation(tasks(plain(), [DATA[0], Once(DATA[1])]), plan=SHORT)


def test_the_sum_masters_both_and_a_remainder_forgets():
    # Labels that contradict each other: what one data set calls 0, the other calls 1, and the
    # last input tells which data set it is.
    def flipped(seed, side):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(120, 3, generator=generator)
        inputs[:, 2] = side
        labels = ((inputs[:, 0] > 0) == (side > 0)).long()
        return list(zip(inputs.split(30), labels.split(30), strict=True))

    data = [flipped(0, 2.0), flipped(1, -2.0)]
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
    model.load_state_dict(fresh_weights(model, seed=0))
    plan = AggregationPlan(descent=TrainingPlan.cosine(epochs=60, optimizer="adamw", lr=0.02))
    found = train_aggregation(tasks(model, data), plan=plan)

    def right(weights):
        return [evaluate(model, {"a": accuracy}, weights=weights, data=part)["a"] for part in data]

    assert min(right(found.sum)) > 0.93
    assert right(found.remainders[1])[0] > 0.93
    assert right(found.remainders[1])[1] < 0.7
    assert found.gap < 0.05


def test_sums_of_batchnorm_get_statistics_of_their_own():
    model = network()
    found = train_aggregation(tasks(model), plan=SHORT)
    names = parameter_names(model)
    for weights, data in [
        (found.sum, [*DATA[0], *DATA[1]]),
        (found.remainders[0], DATA[1]),
        (found.remainders[1], DATA[0]),
    ]:
        bare = {name: weights[name] for name in names}
        expected = recalibrate_batchnorm(model, weights=bare, data=data)
        assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_constants_in_buffers_are_not_added_up():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("shift", torch.full((3,), 5.0))

        def forward(self, x):
            return self.layer(x - self.shift)

    found = train_aggregation(tasks(Shifted(), DATA), plan=SHORT)
    for weights in (found.sum, *found.remainders, *found.specialists):
        assert weights["shift"].tolist() == [5.0] * 3


@pytest.mark.parametrize("stop_at", [1, 7, 15])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)  # a state after every epoch
    given = {"plan": SHORT}
    whole = train_aggregation(tasks(plain()), **given, run_folder=tmp_path / "whole")
    given["run_folder"] = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_aggregation(tasks(plain()), **given, progress=Interrupt(stop_at))
    assert not (tmp_path / "run" / "specialists").exists()
    given["run_folder"] = NewRun(tmp_path / "run", resume=True)
    resumed = train_aggregation(tasks(plain()), **given)
    assert same(resumed.sum, whole.sum)
    assert resumed.losses == whole.losses
    assert same_runs(tmp_path / "whole", tmp_path / "run")
    again = train_aggregation(tasks(plain()), **given, progress=lambda *_: 1 / 0)
    assert same(again.sum, whole.sum)


def test_aggregate_and_specialists_are_kept(tmp_path):
    model, folder = plain(), tmp_path / "run"
    found = train_aggregation(tasks(model), plan=SHORT, run_folder=folder)
    assert check_run(folder) == []
    run = Trajectory.open(folder)
    assert run.steps == [0, 5, 10, 15]
    assert same(run[-1].weights, found.aggregate)
    for number, part in enumerate(DATA, start=1):
        file = map_tensors(folder / "specialists" / f"{number}.safetensors")
        assert same(file, found.specialists[number - 1])
        there = evaluate(model, {"a": accuracy}, weights=found.aggregate, data=part)["a"]
        assert run[-1].metrics[f"validation_accuracy_{number}"] == there
    # Overwriting with fewer data sets leaves no specialist of the other run.
    three = [*DATA, batches(10, seed=5)]
    train_aggregation(tasks(model, three), plan=SHORT, run_folder=NewRun(folder, overwrite=True))
    assert len(list((folder / "specialists").iterdir())) == 3
    train_aggregation(tasks(model), plan=SHORT, run_folder=NewRun(folder, overwrite=True))
    assert len(list((folder / "specialists").iterdir())) == 2


def test_it_starts_at_given_weights():
    starts = [clone(weights_of(plain(seed))) for seed in (3, 4)]
    still = AggregationPlan(descent=TrainingPlan.cosine(epochs=1, lr=1e-60))
    found = train_aggregation(tasks(plain(), DATA), plan=still, initial=starts)
    assert all(same(a, b) for a, b in zip(found.specialists, starts, strict=True))
    assert found.gap == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": DATA[:1]}, "data must hold 2 sets of batches at least, got 1"),
        ({"data": [DATA[0], []]}, r"data\[1\] is empty"),
        ({"data": [DATA[0], iter(DATA[1])]}, r"data\[1\] must have a length"),
        ({"initial": [weights_of(plain())]}, "weights for each of the 2 data sets, got 1"),
        (
            {"initial": [weights_of(plain()), {"0.weight": torch.ones(1)}]},
            r"the model and initial\[1\] differ in the shape of '0.weight'",
        ),
        (
            {"plan": AggregationPlan(descent=TrainingPlan(lr=1e30))},
            "is (nan|inf): try a smaller lr",
        ),
        ({"model": nn.ReLU()}, "no parameter that requires a gradient"),
        ({"model": plain().requires_grad_(False)}, "'0.weight' requires no gradient"),
    ],
)
def test_bad_input_says_what_is_wrong(given, message):
    given = {"model": plain(), "data": DATA, "plan": SHORT, **given}
    with pytest.raises(ValueError, match=message):
        train_aggregation(tasks(given.pop("model"), given.pop("data")), **given)


def test_a_pull_must_not_push():
    with pytest.raises(ValueError, match=r"pull must not be negative, got -1.0"):
        AggregationPlan(pull=-1.0)
