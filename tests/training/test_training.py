import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, accuracy, classification_loss, evaluate
from slipstream.testbed.datasets import Examples, load_data
from slipstream.testbed.networks import build_network
from slipstream.training import TrainingPlan, train
from slipstream.weights import weights_of


def small(seed=0):
    inputs = torch.randn(11, 3, generator=torch.Generator().manual_seed(seed))
    return Examples(inputs, (inputs.sum(1) > 0).long())


HOOKS = ("on_optimizer", "on_epoch", "progress")


def trained(*, data=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
    hooks = {name: options.pop(name) for name in HOOKS if name in options}
    task = Task(model, small().batches(4, seed=0) if data is None else data)
    return train(task, TrainingPlan(**{"epochs": 3, "lr": 0.1} | options), **hooks), weights_of(
        model
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_same_seed_same_weights_bit_for_bit(optimizer):
    (first, weights), (second, same) = trained(optimizer=optimizer), trained(optimizer=optimizer)
    assert first.losses == second.losses
    assert all(torch.equal(weights[name], value) for name, value in same.items())
    for change in ({"seed": 1}, {"data": small().batches(4, seed=1)}):
        _, other = trained(optimizer=optimizer, **change)
        assert not torch.equal(other["0.weight"], weights["0.weight"])


def test_steps_are_those_of_momentum_and_weight_decay():
    """On the loss w, the gradient is 1: v = .9 v + 1 + decay w, w -= lr v."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    w, v = model.weight.item(), 0.0
    data = [torch.ones(2, 1, dtype=torch.float64)] * 3
    result = train(
        Task(model, data, lambda model, batch: model(batch).mean()),
        TrainingPlan(epochs=2, lr=0.1, momentum=0.9, weight_decay=0.5),
    )
    losses = []
    for _ in range(6):
        losses.append(w)
        v = 0.9 * v + 1 + 0.5 * w
        w -= 0.1 * v
    assert model.weight.item() == pytest.approx(w)
    assert result.losses == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])
    assert result.steps == 6


def test_cosine_schedule_falls_from_lr_to_zero():
    rates = []

    def watch(optimizer):
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))

    trained(schedule="cosine", on_optimizer=watch, epochs=2)
    middles = [(n + 0.5) / 6 for n in range(6)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * done)) for done in middles])


def test_loss_is_weighted_by_batch_size():
    task = Task(
        nn.Linear(1, 1),
        [torch.ones(3, 1), torch.full((1, 1), 5.0)],
        lambda model, batch: 0 * model(batch).mean() + batch.mean(),
    )
    assert train(task, TrainingPlan(epochs=1)).losses == (2.0,)
    halves = replace(task, batch_size=lambda batch: 1)
    assert train(halves, TrainingPlan(epochs=1)).losses == (3.0,)


def test_callbacks_come_in_order_and_validation_does_not_disturb():
    calls, steps = [], [f"{step} of 6" for step in range(1, 7)]
    (_, plain) = trained(epochs=2)
    (_, watched) = trained(
        epochs=2,
        on_optimizer=lambda optimizer: calls.append(type(optimizer).__name__),
        progress=lambda step, total: calls.append(f"{step} of {total}"),
        on_epoch=lambda epoch, loss: calls.append(f"epoch {epoch}"),
    )
    assert calls == ["SGD", *steps[:3], "epoch 1", *steps[3:], "epoch 2"]
    assert all(torch.equal(plain[name], value) for name, value in watched.items())


def test_epochs_are_shuffled_anew_and_the_global_generator_stays():
    asked = []

    class Watched:
        def epoch(self, number):
            asked.append(number)
            return small().batches(4, seed=0)

        def __iter__(self):
            raise AssertionError("epoch(number) should be used")

    torch.manual_seed(3)
    expected = torch.rand(2)
    state = torch.random.get_rng_state()
    trained(data=Watched())
    assert asked == [0, 1, 2]
    torch.random.set_rng_state(state)
    torch.manual_seed(3)
    train(Task(nn.Linear(3, 2), small().batches(4)), TrainingPlan(epochs=1, seed=8))
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgdm"}, "sgd, adam or adamw, got 'sgdm'"),
        ({"schedule": "linear"}, "constant or cosine, got 'linear'"),
        ({"data": []}, "data is empty"),
        ({"data": iter(small().batches(4)), "epochs": 2}, "data is empty in epoch 2"),
        ({"lr": 1e30}, r"loss at step \d is (nan|inf): try a smaller lr"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        trained(**options)


def test_digits_are_learned():
    data = load_data("digits")
    model = build_network("mlp", data=data.spec, width=64)
    train(Task(model, data.train.batches(64, seed=0)), TrainingPlan(epochs=10))
    assert evaluate(model, {"accuracy": accuracy}, data=data.test.batches(500))["accuracy"] > 0.94


def test_every_epoch_runs_in_train_mode():
    model, modes = nn.Linear(3, 2).eval(), []

    def loss(model, batch):
        modes.append(model.training)
        return classification_loss(model, batch)

    task = Task(model, small().batches(4), loss)
    train(task, TrainingPlan(epochs=2), on_epoch=lambda *_: model.eval())
    assert modes == [True] * 6


def test_a_call_of_0_1_trains_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
    with pytest.warns(DeprecationWarning, match="train takes a Task"):
        old = train(model, classification_loss, data=small().batches(4, seed=0), epochs=3, lr=0.1)
    new, weights = trained()
    assert old.losses == new.losses
    assert all(torch.equal(weights[name], value) for name, value in weights_of(model).items())
