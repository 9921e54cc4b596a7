import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from slipstream.dynamics import (
    ComplexityMeter,
    InputBias,
    TrainingComplexity,
    complexity_of_run,
    with_input_bias,
)
from slipstream.evaluation import Task
from slipstream.trajectory import Trajectory
from slipstream.weights import clone, weights_of


def network(*, first=None, inputs=4, activation=nn.ReLU, dtype=torch.float64):
    """A network of one output behind a first layer, by default a wide one."""
    first = first or nn.Linear(inputs, 6)
    width = getattr(first, "out_features", inputs)
    return nn.Sequential(
        first, activation(), nn.Linear(width, 8), activation(), nn.Linear(8, 1)
    ).to(dtype)


def identity(inputs=4):
    layer = nn.Linear(inputs, inputs)
    nn.init.eye_(layer.weight)
    layer.weight.requires_grad_(False)
    return layer


def examples(count=30, *, inputs=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, inputs, generator=generator, dtype=dtype)
    y = torch.randint(2, (count, 1, 1), generator=generator).to(dtype)
    return list(zip(x, y, strict=True))


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().mean() / 2


def logistic(model, batch):
    return functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def trained(model, loss, data, *, lr=0.05, optimizer=None, watch=True, layer=None):
    """What the meter found, and the snapshots of every step."""
    optimizer = optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr)
    kept = [clone(weights_of(model))]
    with ComplexityMeter(model, layer=layer) as meter:
        if watch:
            meter.attach(optimizer)
        for batch in data:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
            if not watch:
                meter.update(learning_rate=lr)
            kept.append(clone(weights_of(model)))
    return meter.result(), Trajectory.from_weights(kept)


@pytest.mark.parametrize("loss", [squared, logistic])
@pytest.mark.parametrize(
    "model",
    [
        lambda: network(first=identity()),
        lambda: with_input_bias(network(), [4]),
        lambda: with_input_bias(network(first=nn.Linear(4, 6, bias=False)), [4]),
    ],
    ids=["identity", "input bias", "no bias of its own"],
)
def test_behind_the_identity_each_move_is_the_slope(model, loss):
    found, _ = trained(model(), loss, examples())
    assert found.violations == ()
    assert found.identity_error < 1e-9
    assert found.outside == 0
    low, high = found.mean_lipschitz_bounds
    assert low == pytest.approx(high) == pytest.approx(found.mean_lipschitz)


@pytest.mark.parametrize("loss", [squared, logistic])
def test_slopes_and_exposures_are_those_of_autograd(loss):
    """By the formulas of the paper, from the recorded weights: |yhat - y|, and 1/|1 - y - yhat|."""
    model, data = network(first=nn.Linear(4, 3)), examples(12)
    found, run = trained(model, loss, data, lr=0.1)
    for step, (x, y) in enumerate(data):
        model.load_state_dict(run[step].weights)
        x = x.clone().requires_grad_()
        output = model(x)
        if loss is squared:
            value, exposure = output, (output - y).abs().detach()
            by_value = torch.autograd.grad(value.sum(), x)[0].norm()
            assert float(found.exposures[step]) == pytest.approx(0.1 * float(exposure))
            assert float(found.lipschitz[step]) == pytest.approx(float(by_value))
        else:  # the same product, with the sigmoid as a part of the function
            value = output.sigmoid()
            exposure = 1 / (1 - y - value).abs().detach()
            by_value = torch.autograd.grad(value.sum(), x)[0].norm()
            assert float(found.slopes[step]) == pytest.approx(0.1 * float(exposure * by_value))
        singular = torch.linalg.svdvals(run[step].weights["0.weight"])
        assert float(found.largest[step]) == pytest.approx(float(singular[0]))
        assert float(found.smallest[step]) == pytest.approx(float(singular[-1]))
        move = run[step + 1].weights["0.bias"] - run[step].weights["0.bias"]
        assert float(found.moves[step]) == pytest.approx(float(move.norm()))


def test_a_sigmoid_in_the_model_is_no_violation_and_its_slope_counts():
    model = nn.Sequential(network(first=identity()), nn.Sigmoid())

    def loss(model, batch):
        return functional.binary_cross_entropy(model(batch[0]), batch[1])

    found, run = trained(model, loss, examples(5), lr=0.1)
    assert found.violations == ()
    for step, (x, y) in enumerate(examples(5)):
        model.load_state_dict(run[step].weights)
        expected = 0.1 / (1 - y - model(x)).abs().detach()
        assert float(found.exposures[step]) == pytest.approx(float(expected))


def test_the_bounds_hold_for_a_narrow_first_layer_and_have_no_floor_for_a_wide_one():
    narrow, _ = trained(network(first=nn.Linear(4, 3)), squared, examples())
    wide, _ = trained(network(), squared, examples())
    for found in (narrow, wide):
        assert found.violations == ()
        assert found.outside == 0
        low, high = found.mean_lipschitz_bounds
        assert low <= found.mean_lipschitz <= high
        assert math.isnan(found.identity_error)
    assert narrow.mean_lipschitz_bounds[0] > 0
    assert wide.mean_lipschitz_bounds[0] == 0


def test_float32_stays_in_the_bounds_too():
    model = with_input_bias(network(dtype=torch.float32), [4])
    found, _ = trained(model, squared, examples(dtype=torch.float32), lr=1e-4)
    assert found.outside == 0
    assert found.identity_error < 1e-2


@pytest.mark.parametrize("watch", [True, False], ids=["attached", "updated by hand"])
def test_a_recorded_run_gives_the_same(watch):
    model, data = network(first=nn.Linear(4, 3)), examples()
    found, run = trained(model, squared, data, watch=watch)
    before = clone(weights_of(model))
    model[0].bias.grad = torch.ones(3, dtype=torch.float64)
    seen = []
    again = complexity_of_run(
        run, Task(model, data, squared), learning_rate=0.05, progress=lambda *at: seen.append(at)
    )
    for field in ("moves", "exposures", "slopes", "largest", "smallest"):
        torch.testing.assert_close(getattr(again, field), getattr(found, field))
    assert again.violations == ()
    assert seen[-1] == (30, 30)
    assert all(torch.equal(before[n], v) for n, v in weights_of(model).items())
    assert torch.equal(model[0].bias.grad, torch.ones(3, dtype=torch.float64))


def test_rates_may_change_from_step_to_step():
    model, data = network(first=identity()), examples(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    kept, rates = [clone(weights_of(model))], []
    with ComplexityMeter(model).attach(optimizer) as meter:
        for batch in data:
            optimizer.zero_grad()
            squared(model, batch).backward()
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
            kept.append(clone(weights_of(model)))
    found = meter.result()
    again = complexity_of_run(
        Trajectory.from_weights(kept), Task(model, data, squared), learning_rate=rates
    )
    assert found.violations == again.violations == ()
    assert max(found.identity_error, again.identity_error) < 1e-9


def test_outside_counts_both_bounds_and_forgives_rounding():
    def numbers(*values):
        return torch.tensor(values, dtype=torch.float64)

    found = TrainingComplexity(
        "first",
        moves=numbers(1, 1, 1, 1, 1),
        exposures=numbers(1, 1, 1, 1, 1),
        slopes=numbers(0.4, 0.6, 1.9, 2.1, 2.1),
        largest=numbers(2, 2, 2, 2, 2),
        smallest=numbers(0.5, 0.5, 0.5, 0.5, 0.5),
        rounding=numbers(0, 0, 0, 0, 0.2),
        precision=1e-16,
        violations=(),
    )
    assert found.outside == 2
    assert replace(found, slopes=numbers(0.4, 0.4, 1, 1, 0.41)).outside == 2
    assert found.mean_lipschitz_bounds == (0.5, 2.0)
    assert found.length == 5


class Skipping(nn.Module):
    """The input also goes around the first layer."""

    def __init__(self):
        super().__init__()
        self.first = identity()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.first(x).relu() + 3 * x)


def test_an_input_that_goes_around_the_first_layer_breaks_the_bounds():
    found, _ = trained(Skipping().double(), squared, examples())
    assert found.outside > 20
    assert trained(with_input_bias(Skipping().double(), [4]), squared, examples())[0].outside == 0


def stacked(data):
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    return [(x, y)] * 3


BROKEN = {
    "minibatch": (lambda: network(), lambda d: stacked(d), None, "more than one example"),
    "momentum": (
        lambda: network(), None,
        lambda m: torch.optim.SGD(m.parameters(), 0.01, momentum=0.9), "momentum 0.9",
    ),
    "weight decay": (
        lambda: network(), None,
        lambda m: torch.optim.SGD(m.parameters(), 0.01, weight_decay=0.1), "weight_decay 0.1",
    ),
    "adam": (
        lambda: network(), None, lambda m: torch.optim.Adam(m.parameters(), 0.01), "is Adam",
    ),
    "tanh": (lambda: network(activation=nn.Tanh), None, None, "piecewise linear.*: tanh"),
    "gelu": (lambda: network(activation=nn.GELU), None, None, "piecewise linear.*: GELU"),
    "dropout": (
        lambda: network(activation=lambda: nn.Dropout(0.5)), None, None, "differs.*Dropout",
    ),
    "before": (
        lambda: nn.Sequential(nn.AvgPool1d(1, 2), network(inputs=2)), None, None,
        "does not reach the first layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_assumptions_are_named(case):
    build, data, optimizer, words = BROKEN[case]
    model = build().double()
    batches = examples(5)
    found, _ = trained(
        model,
        squared,
        data(batches) if data else batches,
        optimizer=optimizer(model) if optimizer else None,
    )
    assert re.search(words, "\n".join(found.violations))
    assert f"violated: {found.violations[0]}" in str(found)


@pytest.mark.parametrize("case", ["momentum", "weight decay", "adam"])
def test_a_step_that_is_no_plain_descent_shows_on_a_recorded_run_too(case):
    build, _, optimizer, _ = BROKEN[case]
    model, data = build(), examples(5)
    _, run = trained(model, squared, data, optimizer=optimizer(model))
    found = complexity_of_run(run, Task(model, data, squared), learning_rate=0.01)
    assert "did not move by the learning rate times its gradient" in found.violations[0]
    other = complexity_of_run(run, Task(model, examples(5, seed=1), squared), learning_rate=0.01)
    assert "(5 of 5 steps)" in other.violations[0]


def test_a_convolution_has_a_length_only():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1)).double()
    data = [(x[:, None], y) for x, y in examples(5)]
    found, _ = trained(model, squared, data)
    assert "is a Conv1d" in found.violations[0]
    assert found.length > 0
    assert all(math.isnan(bound) for bound in found.mean_lipschitz_bounds)
    wrapped, _ = trained(with_input_bias(model, [1, 4]), squared, data)
    assert wrapped.violations == ()
    assert wrapped.identity_error < 1e-9


def test_passes_without_gradients_are_not_steps():
    model, data = network(first=identity()), examples(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ComplexityMeter(model).attach(optimizer) as meter:
        for batch in data:
            optimizer.zero_grad()
            squared(model, batch).backward()
            with torch.no_grad():
                squared(model, batch)
            optimizer.step()
            squared(model, batch)  # nobody goes back through this one
    assert meter.result().violations == ()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_bad_input_is_told():
    frozen = identity()
    frozen.bias.requires_grad_(False)
    for model, message in [
        (nn.Sequential(nn.ReLU()), "no linear layer and no convolution"),
        (network(first=nn.Linear(4, 6, bias=False)), "'0', has no bias.*with_input_bias"),
        (network(first=frozen), "bias of the first layer, '0', is frozen"),
    ]:
        with pytest.raises(ValueError, match=message):
            ComplexityMeter(model)
    model = network()
    with pytest.raises(ValueError, match="layer is 'gone', but the model has 0, 1, 2"):
        ComplexityMeter(model, layer="gone")
    with pytest.raises(ValueError, match="does not have the bias of '0'"):
        ComplexityMeter(model).attach(torch.optim.SGD([model[2].bias], lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="attached to an optimizer already"):
        ComplexityMeter(model).attach(optimizer).attach(optimizer)
    with pytest.raises(ValueError, match="No step was measured"):
        ComplexityMeter(model).result()
    with ComplexityMeter(model), pytest.raises(ValueError, match=r"no gradient by torch\.int64"):
        model(torch.zeros(1, 4, dtype=torch.int64))


def test_runs_and_data_that_do_not_fit_are_told():
    model, data = network(), examples(3)
    _, run = trained(model, squared, data)
    with pytest.raises(ValueError, match="data gave 2 batches, but the run has 3 steps"):
        complexity_of_run(run, Task(model, data[:2], squared), learning_rate=0.05)
    rare = Trajectory.from_weights([s.weights for s in run[::2]], steps=[0, 2])
    with pytest.raises(ValueError, match="no snapshot between the steps 0 and 2"):
        complexity_of_run(rare, Task(model, data, squared), learning_rate=0.05)
    with pytest.raises(ValueError, match="learning_rate has 2 values, but the run has 3 steps"):
        complexity_of_run(run, Task(model, data, squared), learning_rate=[0.1, 0.1])
    with pytest.raises(ValueError, match="complexity needs at least 2"):
        complexity_of_run(run[:1], Task(model, data, squared), learning_rate=0.1)


def test_the_input_bias_starts_as_the_same_function():
    model = network()
    x = examples(1)[0][0]
    wrapped = with_input_bias(model, [4])
    assert torch.equal(wrapped(x), model(x))
    assert isinstance(wrapped.input, InputBias)
    assert wrapped.input.bias.dtype == torch.float64


@pytest.mark.gpu
def test_it_runs_where_the_model_is():
    model = with_input_bias(network(), [4]).cuda()
    found, run = trained(model, squared, [(x.cuda(), y.cuda()) for x, y in examples(5)])
    assert found.violations == ()
    assert found.identity_error < 1e-9
    assert found.moves.device.type == "cpu"
    again = complexity_of_run(run, Task(model, examples(5), squared), learning_rate=0.05)
    torch.testing.assert_close(again.slopes, found.slopes)
