"""Emulated decays, against real ones; power averages and those made of stored ones."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from slipstream.averaging import Averages, Decay, PowerEMA, average_run, post_hoc_ema
from slipstream.training import TrainingPlan
from slipstream.trajectory import Trajectory, create_run

CURVES = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "1-sqrt": lambda done: 1 - math.sqrt(done),
}


def steadily(rates):
    """The weights after each step of SGD whose gradient is the same everywhere."""
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    weights = nn.Parameter(torch.tensor([0.3, 0.1, -0.7], dtype=torch.float64))
    optimizer = torch.optim.SGD([weights], lr=1.0)
    points = [weights.detach().clone()]
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (slope @ weights).backward()
        optimizer.step()
        points.append(weights.detach().clone())
    return points


@pytest.mark.parametrize("kept", [range(41), [0, 20, 40], [0, 3, 17, 18, 31, 40], [0, 40]], ids=str)
@pytest.mark.parametrize("curve", [*CURVES, lambda done: (1 - done) ** 3])
def test_with_constant_gradients_it_is_the_real_decay(curve, kept):
    """Whatever the distances of the snapshots, also if none lies where the decay begins."""
    factor = CURVES.get(curve, curve)
    real = steadily([0.1] * 16 + [0.1 * factor((n + 0.5) / 24) for n in range(24)])[-1]
    constant = steadily([0.1] * 40)
    run = Trajectory.from_weights([{"w": constant[step]} for step in kept], steps=list(kept))
    found = average_run(run, Decay(16, curve))["w"]
    torch.testing.assert_close(found, real, rtol=1e-13, atol=1e-14)


def test_the_cosine_is_that_of_training_plans():
    rates = TrainingPlan(epochs=1, lr=0.1, schedule="cosine").rates(30)
    constant = steadily([0.1] * 30)
    run = Trajectory.from_weights([{"w": value} for value in constant])
    found = average_run(run, Decay(0, "cosine"))["w"]
    torch.testing.assert_close(found, steadily(rates)[-1], rtol=1e-13, atol=1e-14)


def test_a_decay_from_before_the_first_snapshot_begins_there():
    assert Decay(0, "linear").kernel([10, 20, 30]) == Decay(10, "linear").kernel([10, 20, 30])
    assert Decay(0).kernel([10]) == [1.0]


def test_power_averages_have_the_width_they_are_called_by():
    for width in (0.02, 0.05, 0.1, 0.25):
        kernel = np.array(PowerEMA(width).kernel(range(1, 20001)))
        times = np.arange(1, 20001) / 20000
        mean = kernel @ times
        assert math.sqrt(kernel @ (times - mean) ** 2) == pytest.approx(width, rel=1e-3)
        assert kernel.sum() == pytest.approx(1, abs=1e-12)


def test_a_snapshot_stands_for_the_steps_since_the_one_before():
    rule, power = PowerEMA(0.1), PowerEMA(0.1).exponent + 1
    kernel = rule.kernel([0, 10, 15, 40])
    expected = [(after / 40) ** power - (before / 40) ** power for before, after in
                pairwise([0, 0, 10, 15, 40])]  # fmt: skip
    assert kernel == pytest.approx(expected, abs=1e-15)
    assert rule.kernel([0]) == [1.0]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two widths kept every 25 steps beside a noisy training, and all of its weights."""
    folder, model = tmp_path_factory.mktemp("stored"), nn.Linear(6, 2).double()
    rules = PowerEMA(0.05), PowerEMA(0.1)
    averages = Averages(model, rules)
    writers = {rule: create_run(folder / str(rule), model=model) for rule in rules}
    generator, points = torch.Generator().manual_seed(0), []
    for step in range(1, 801):
        with torch.no_grad():
            for value in model.parameters():
                value += torch.randn(value.shape, generator=generator, dtype=value.dtype)
                value *= 0.98
        points.append(model.weight.detach().clone())
        averages.update(step=step)
        if step % 25 == 0:
            for rule, writer in writers.items():
                writer.append(step=step, weights=averages.weights(rule))
    for writer in writers.values():
        writer.close()
    return {rule: Trajectory.open(folder / str(rule)) for rule in rules}, torch.stack(points)


@pytest.mark.parametrize(
    ("width", "step", "bound"),
    [(0.05, None, 1e-6), (0.07, None, 0.003), (0.15, None, 0.01), (0.2, 500, 0.05)],
)
def test_any_width_is_made_of_two_stored_ones(stored, width, step, bound):
    kept, points = stored
    found = post_hoc_ema(kept, PowerEMA(width), step=step)
    last = step or 800
    kernel = torch.tensor(PowerEMA(width).kernel(range(1, last + 1)), dtype=torch.float64)
    exact = torch.tensordot(kernel, points[:last], 1)
    distance = (found.weights["weight"] - exact).norm() / (points[:last].std(0).norm())
    assert found.error < bound
    assert distance < max(3 * found.error, 1e-6)
    assert sum(sum(shares) for shares in found.shares.values()) == pytest.approx(1, abs=1e-9)


def test_what_two_widths_cannot_make_is_told_by_the_error(stored):
    assert post_hoc_ema(stored[0], PowerEMA(0.01)).error > 0.1


def test_nothing_stored_and_different_models_are_refused(stored):
    with pytest.raises(ValueError, match="stored holds no average from step 1 to 20"):
        post_hoc_ema(stored[0], PowerEMA(0.1), step=20)
    with pytest.raises(ValueError, match="stored holds no average from step 1 to 0"):
        post_hoc_ema({}, PowerEMA(0.1))
    other = Trajectory.from_weights([{"w": torch.ones(2)}], steps=[25])
    with pytest.raises(ValueError, match="Another stored average"):
        post_hoc_ema({**stored[0], PowerEMA(0.2): other}, PowerEMA(0.1))
