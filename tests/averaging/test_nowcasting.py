"""Jumps of a training: predicted exactly, taken only if they help, else without a trace."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from slipstream.averaging import Nowcaster, NowcastPlan, trend_kernel
from slipstream.evaluation import Task

PLAN = NowcastPlan(snapshots=4, gap=2, every=8, ahead=(0, 6, 12))


@pytest.mark.parametrize("steps", [[0, 10, 20, 30, 40], [0, 1, 7, 30, 31, 64]], ids=str)
def test_a_trend_is_the_line_of_least_squares_at_any_distances(steps):
    kernel = np.array(trend_kernel(steps, 90))
    values = np.random.default_rng(0).normal(size=len(steps))
    fitted = np.polynomial.Polynomial.fit(steps, values, 1)
    assert kernel @ values == pytest.approx(fitted(90), rel=1e-9)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)


def valley(model, batch):
    """A long valley along the first weight, whose end is at 1."""
    return (batch * 0.001 * (model.weight[0, 0] - 1) ** 2 + 10 * model.weight[0, 1] ** 2).mean()


def small(loss=valley):
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[0.0, 0.3]])
    return Task(model, [torch.ones(2)], loss, validation=[torch.ones(3)])


def train(task, steps, *, nowcaster=None, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(task.model.parameters(), lr=0.01, momentum=0.5)
    if nowcaster:
        nowcaster.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(task.model, task.data[0]).backward()
        optimizer.step()
    return optimizer


def test_a_jump_goes_along_the_trend_and_helps():
    task = small()
    plain = small()
    train(plain, 64)
    nowcaster = Nowcaster(task, NowcastPlan(snapshots=4, gap=2, every=16, ahead=(0, 50, 500)))
    optimizer = train(task, 64, nowcaster=nowcaster)
    nowcaster.detach()
    assert [jump.step for jump in nowcaster.jumps] == [16, 32, 48, 64]
    assert {50, 500} & {jump.ahead for jump in nowcaster.jumps}
    assert all(min(jump.losses) < jump.before for jump in nowcaster.jumps if jump.ahead is not None)
    assert task.model.weight[0, 0] > 3 * plain.model.weight[0, 0]
    train(task, 16, optimizer=optimizer)
    assert len(nowcaster.jumps) == 4


def test_the_weights_after_a_jump_are_those_of_the_trend_bit_for_bit():
    task = small()
    nowcaster = Nowcaster(task, PLAN)
    points, optimizer = {}, torch.optim.SGD(task.model.parameters(), lr=0.01)
    for step in range(1, 9):
        train(task, 1, optimizer=optimizer)
        points[step] = task.model.weight.detach().double()
        nowcaster.update()
    steps = [2, 4, 6, 8]
    (jump,) = nowcaster.jumps
    kernel = trend_kernel(steps, 8 + jump.ahead)
    expected = sum(share * points[step] for share, step in zip(kernel, steps, strict=True))
    torch.testing.assert_close(task.model.weight.double(), expected, rtol=1e-7, atol=1e-9)


class Noisy(nn.Module):
    """Has all that a check could disturb: statistics, dropout, momentum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)
        )

    def forward(self, x):
        return self.layers(x)


def test_a_refused_jump_leaves_no_trace():
    """Weights, buffers, the optimiser and the random numbers: bit for bit as without it."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(6, 3, generator=generator) for _ in range(4)]

    def loss(model, batch):
        torch.rand(1)  # a check must not shift what training draws
        return (model(batch) - 1).square().mean()

    def away(window, step):
        return {name: value + 100 for name, value in window[-1].weights.items()}

    ends = []
    for nowcasting in (False, True):
        model = Noisy()
        task = Task(model, batches, loss, validation=batches[:2])
        nowcaster = Nowcaster(task, PLAN, predict=away)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        torch.manual_seed(5)
        for number in range(20):
            optimizer.zero_grad()
            loss(model.train(), batches[number % 4]).backward()
            optimizer.step()
            if nowcasting:
                nowcaster.update()
        state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        ends.append((*state, torch.rand(3), model.training))
    assert [jump.ahead for jump in nowcaster.jumps] == [None, None]
    (weights, moments, drawn, mode), (others, other_moments, other_drawn, other_mode) = ends
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    for number, values in moments["state"].items():
        found = other_moments["state"][number]
        assert all(torch.equal(value, found[name]) for name, value in values.items())
    assert torch.equal(drawn, other_drawn)
    assert mode == other_mode


def test_an_exception_in_a_check_leaves_the_trained_weights():
    calls = []

    def breaking(model, batch):
        calls.append(model.weight.detach().clone())
        if len(calls) == 7:  # five of the trained weights, two of predicted ones
            raise KeyboardInterrupt
        return valley(model, batch)

    task = small(loss=breaking)
    nowcaster = Nowcaster(task, PLAN)
    for step in range(1, 9):
        task.model.weight.data.add_(0.1)
        try:
            nowcaster.update(step=step)
        except KeyboardInterrupt:
            break
    assert step == 8
    assert not torch.equal(calls[6], calls[0])
    assert torch.equal(task.model.weight, calls[0])


def test_the_window_is_taken_along():
    """A jump is no part of the trend."""
    task, seen = small(), []

    def predict(window, step):
        seen.append([snapshot.weights["weight"][0, 0].item() for snapshot in window])
        return {"weight": torch.tensor([[1.0, 0.3]])}

    nowcaster = Nowcaster(
        task, NowcastPlan(snapshots=4, gap=2, every=4, ahead=(1,)), predict=predict
    )
    for _ in range(12):
        nowcaster.update()
    assert [jump.ahead for jump in nowcaster.jumps] == [1, None]
    assert seen == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_nan_is_never_taken():
    task = small()
    nowcaster = Nowcaster(task, PLAN, predict=lambda *_: {"weight": torch.full((1, 2), torch.nan)})
    for _ in range(8):
        nowcaster.update()
    assert nowcaster.jumps[0].ahead is None
    assert torch.equal(task.model.weight, torch.tensor([[0.0, 0.3]]))


def test_snapshots_at_unequal_distances():
    """As from a framework that counts several steps at once."""
    task, seen = small(), []

    def predict(window, step):
        seen.append((window.steps, step))
        return window[-1].weights

    nowcaster = Nowcaster(task, PLAN, predict=predict)
    for step in (1, 3, 4, 9, 17):
        nowcaster.update(step=step)
    assert [steps for steps, _ in seen] == [[3, 4, 9, 17]] * 3
    assert [step for _, step in seen] == [17, 23, 29]


def test_held_out_data_that_change_are_refused():
    class Drawn:
        def __iter__(self):
            yield torch.rand(3)

    task = small()
    nowcaster = Nowcaster(Task(task.model, task.data, valley, validation=Drawn()), PLAN)
    for _ in range(7):
        nowcaster.update()
    with pytest.raises(ValueError, match="the data: two passes gave different batches"):
        nowcaster.update()


def test_a_resumed_nowcaster_jumps_as_the_whole_one(tmp_path):
    whole, ends = small(), []
    nowcaster = Nowcaster(whole, PLAN)
    train(whole, 24, nowcaster=nowcaster)
    ends.append(whole.model.weight.detach().clone())
    task = small()
    first = Nowcaster(task, PLAN)
    optimizer = train(task, 11, nowcaster=first)
    first.detach()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Nowcaster(task, PLAN)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(task, 13, nowcaster=second, optimizer=optimizer)
    assert torch.equal(task.model.weight, ends[0])
    assert [j.losses for j in second.jumps] == [j.losses for j in nowcaster.jumps]
    other = Nowcaster(task, NowcastPlan())
    with pytest.raises(ValueError, match="state is of the plan"):
        other.load_state_dict(second.state_dict())
    assert other.step == 0


def test_a_generator_of_held_out_batches_is_read_once():
    task = small()
    held = (batch for batch in [torch.ones(3)])
    nowcaster = Nowcaster(Task(task.model, task.data, valley, validation=held), PLAN)
    for _ in range(16):
        nowcaster.update()
    assert len(nowcaster.jumps) == 2


def test_weights_that_are_nan_are_left_as_they_are():
    """A training that has diverged is none that is not deterministic."""
    task = small()
    task.model.weight.data.fill_(torch.nan)
    nowcaster = Nowcaster(task, PLAN, predict=lambda *_: {"weight": torch.ones(1, 2)})
    for _ in range(8):
        nowcaster.update()
    assert nowcaster.jumps[0].ahead is None
    assert task.model.weight.isnan().all()


def test_a_training_that_begins_again_begins_a_new_window():
    task, seen = small(), []

    def predict(window, step):
        seen.append(window.steps)
        return window[-1].weights

    plan = NowcastPlan(snapshots=4, gap=2, every=4, ahead=(0,))
    nowcaster = Nowcaster(task, plan, predict=predict)
    for step in (*range(1, 7), *range(1, 9)):
        nowcaster.update(step=step)
    assert seen == [[2, 4, 6, 8]]


def test_frozen_parameters_stay():
    task = small()
    task.model.bias = nn.Parameter(torch.zeros(1), requires_grad=False)
    nowcaster = Nowcaster(task, PLAN, predict=lambda *_: {"weight": torch.eye(2)[:1]})
    train(task, 8, nowcaster=nowcaster)
    assert nowcaster.jumps[0].ahead is not None
    assert torch.equal(task.model.bias, torch.zeros(1))


def test_a_nowcaster_follows_the_model_of_its_task():
    task = small()
    nowcaster = Nowcaster(task)
    assert nowcaster.follows(nn.Sequential(task.model, nn.Linear(1, 1)))
    assert not nowcaster.follows(copy.deepcopy(task.model))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NowcastPlan(snapshots=1), "snapshots must be at least 2, got 1"),
        (lambda: NowcastPlan(gap=0), "gap and every must be at least 1 step, got 0 and 50"),
        (lambda: NowcastPlan(ahead=()), "ahead must hold numbers of steps"),
        (lambda: NowcastPlan(ahead=(-1,)), r"none negative, got \(-1,\)"),
        (lambda: trend_kernel([5, 5], 9), r"at least 2 different steps, got \[5, 5\]"),
        (lambda: Nowcaster(Task(nn.Linear(1, 1), [], valley)), "The task has no validation data"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_nowcaster_is_attached_once():
    task = small()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    nowcaster = Nowcaster(task).attach(optimizer)
    with pytest.raises(RuntimeError, match="attached to an optimizer already"):
        nowcaster.attach(optimizer)
