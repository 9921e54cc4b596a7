"""Lines and barriers, against closed forms."""

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task
from slipstream.landscape import loss_along, loss_barrier

DATA = [torch.zeros(2)]


def model(size=1):
    return nn.Linear(size, 1, bias=False).double()


def at(*place):
    return {"weight": torch.tensor([place], dtype=torch.float64)}


def two_bowls(model, batch):
    return (model.weight.square() - 1).square().sum()


def square(model, batch):
    return model.weight.square().sum()


def test_a_quadratic_loss_along_three_weights():
    line = loss_along([at(0.0, 0), at(3.0, 0), at(3.0, 4)], Task(model(2), DATA, square), points=5)
    assert line.positions.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    expected = [(3 * t) ** 2 if t < 1 else 9 + (4 * (t - 1)) ** 2 for t in line.positions.tolist()]
    torch.testing.assert_close(line.losses, torch.tensor(expected, dtype=torch.float64))
    assert line.distances.tolist() == pytest.approx([0, 0.75, 1.5, 2.25, 3, 4, 5, 6, 7])


def test_the_barrier_between_two_bowls():
    found = loss_barrier(
        at(-1.0),
        at(1.0),
        Task(
            model(),
            DATA,
            two_bowls,
            metrics={"sign": lambda model, _: -model.weight.square().sum()},
        ),
        points=9,
    )
    assert [found.height, found.rise("loss"), found.drop("loss")] == [1, 1, 0]
    assert [found.rise("sign"), found.drop("sign")] == [1, 0]  # -w^2 rises from -1 to 0
    with pytest.raises(ValueError, match="metric must be one of loss, sign, got 'accuracy'"):
        found.rise("accuracy")
    told = found.to_json()
    assert (told["height"], told["rises"]["sign"], told["drops"]["sign"]) == (1, 1, 0)
    assert told["line"]["values"]["loss"] == found.line.losses.tolist()


def test_the_chord_is_the_measure_not_the_lower_end():
    tilted = loss_barrier(at(0.0), at(5.0), Task(model(), DATA, lambda m, _: m.weight.sum() + 1))
    assert tilted.height == pytest.approx(0.0, abs=1e-12)
    assert tilted.line.losses[-1] == pytest.approx(6.0)


def test_both_ends_are_exact_in_single_precision():
    ends = [{"weight": torch.randn(1, 1) * 1e4 + 0.1} for _ in range(2)]
    small = nn.Linear(1, 1, bias=False)
    line = loss_along(ends, Task(small, DATA, lambda m, _: m.weight.sum()), points=7)
    assert line.losses[[0, -1]].tolist() == [float(end["weight"]) for end in ends]


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="weights must be two or more to go between, got 1"):
        loss_along([at(1.0)], Task(model(), DATA, square))
    with pytest.raises(ValueError, match="points must be at least 2"):
        loss_along([at(1.0), at(2.0)], Task(model(), DATA, square), points=1)
    with pytest.raises(ValueError, match="start and end differ in the shape of 'weight'"):
        loss_barrier(at(1.0), at(1.0, 2.0), Task(model(), DATA, square))
    with pytest.raises(ValueError, match="trained holds a NaN"):
        loss_along({"new": at(1.0), "trained": at(torch.nan)}, Task(model(), DATA, square))
