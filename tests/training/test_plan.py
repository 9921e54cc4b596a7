import json
import math
from dataclasses import asdict

import pytest
import torch
from torch import nn

from slipstream.training import Loop, TrainingPlan


def test_the_rate_warms_up_and_falls_to_nothing():
    plan = TrainingPlan.cosine(epochs=20, lr=2.0, warm_up=0.25)
    assert plan.rate(0) == 0
    assert plan.rate(2.5) == pytest.approx(1)
    assert plan.rate(5) == pytest.approx(2)
    assert plan.rate(12.5) == pytest.approx(1.0)
    assert plan.rate(20) == pytest.approx(0)


def test_a_constant_rate_stays_after_the_warm_up():
    plan = TrainingPlan(epochs=4, lr=0.4, warm_up=0.5)
    assert [plan.rate(epoch) for epoch in (0, 1, 2, 3, 4)] == pytest.approx([0, 0.2, 0.4, 0.4, 0.4])
    assert TrainingPlan(epochs=3, lr=0.3).rates(6) == [0.3] * 6


def test_each_step_has_the_rate_of_its_middle():
    plan = TrainingPlan(epochs=3, lr=0.2, schedule="cosine")
    expected = [0.1 * (1 + math.cos(math.pi * (step + 0.5) / 12)) for step in range(12)]
    assert plan.rates(12) == pytest.approx(expected)


@pytest.mark.parametrize("warm_up", [0.0, 0.3])
def test_rates_are_those_of_the_loop_to_the_bit(warm_up):
    plan = TrainingPlan(epochs=3, lr=0.2, schedule="cosine", warm_up=warm_up)
    loop, rates = Loop(nn.Linear(1, 1), plan), []
    loop.run(
        lambda batch: loop.module(batch).mean(),
        data=[torch.ones(1, 1)] * 7,
        progress=lambda *_: rates.append(loop.optimizer.param_groups[0]["lr"]),
    )
    assert plan.rates(21) == rates


def test_a_plan_survives_as_plain_data():
    for plan in (TrainingPlan(), TrainingPlan.cosine(7, "adamw", 0.3, warm_up=0.2, seed=4)):
        recorded = json.loads(json.dumps(asdict(plan)))
        assert TrainingPlan.from_dict(recorded) == plan


def test_a_run_of_0_1_reports_the_rates_it_was_trained_with():
    recorded = {
        "epochs": 2, "optimizer": "sgd", "lr": 0.2, "momentum": 0.0, "weight_decay": 0.0,
        "schedule": "cosine", "keep": "every:1",
    }  # fmt: skip
    rates = TrainingPlan.from_dict(recorded).rates(4)  # those of LambdaLR, from each step's start
    assert rates == [0.2 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    constant = TrainingPlan.from_dict(recorded | {"schedule": "constant"})
    assert constant.rates(4) == [0.2] * 4
    assert constant.epochs == 2


def test_a_recipe_of_0_1_had_a_warm_up_and_a_cosine():
    recorded = {
        "epochs": 9, "optimizer": "adamw", "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4,
        "warm_up": 0.05, "seed": 3,
    }  # fmt: skip
    assert TrainingPlan.from_dict(recorded) == TrainingPlan.cosine(9, "adamw", 0.2, seed=3)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_optimizer_is_what_the_plan_says(name):
    optimizer = TrainingPlan(optimizer=name, lr=0.3, weight_decay=0.2).build([nn.Parameter()])
    assert type(optimizer).__name__.lower() == name
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"optimizer": "lion"}, "optimizer must be sgd, adam or adamw, got 'lion'"),
        ({"schedule": "linear"}, "schedule must be constant or cosine, got 'linear'"),
        ({"warm_up": 1.0}, "warm_up must be at least 0 and below 1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_plans_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingPlan(**options)
