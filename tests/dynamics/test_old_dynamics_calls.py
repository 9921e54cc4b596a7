"""Calls as version 0.1 had them give what the present ones give, with a DeprecationWarning."""

from dataclasses import astuple

import pytest
import torch
from torch import nn

from slipstream.dynamics import (
    PredictionPlan,
    complexity_of_run,
    predict_training_time,
    tangent_kernel,
)
from slipstream.evaluation import Task, squared_loss
from slipstream.trajectory import Trajectory
from slipstream.weights import clone, weights_of

torch.manual_seed(0)
MODEL = nn.Linear(2, 1)
DATA = [(torch.randn(4, 2), torch.randn(4, 1)), (torch.randn(2, 2), torch.randn(2, 1))]
WEIGHTS = {"weight": torch.zeros(1, 2), "bias": torch.full((1,), 5.0)}
ONES = [(inputs[:1], targets[:1]) for inputs, targets in DATA]
RUN = Trajectory.from_weights([clone(weights_of(MODEL)), WEIGHTS, WEIGHTS])
TASK = Task(MODEL, DATA, squared_loss)


def test_the_kernel():
    with pytest.warns(DeprecationWarning, match="tangent_kernel takes a Task"):
        old = tangent_kernel(MODEL, weights=WEIGHTS, data=DATA, outputs="separate")
    assert torch.equal(old.blocks, tangent_kernel(TASK, weights=WEIGHTS, outputs="separate").blocks)


def test_a_prediction_which_had_no_momentum_then():
    how = {"lr": 0.1, "max_steps": 50, "probe_steps": 0}
    with pytest.warns(DeprecationWarning, match="predict_training_time takes a Task and plan"):
        old = predict_training_time(
            MODEL, squared_loss, weights=WEIGHTS, data=DATA, thresholds=[6.0], **how
        )
    plan = PredictionPlan(thresholds=[6.0], momentum=0.0, **how)
    new = predict_training_time(TASK, weights=WEIGHTS, plan=plan)
    assert torch.equal(old.losses, new.losses)
    assert [one.steps for one in old.arrivals] == [one.steps for one in new.arrivals]


def test_the_complexity_of_a_run():
    with pytest.warns(DeprecationWarning, match="complexity_of_run takes a Task"):
        old = complexity_of_run(MODEL, squared_loss, RUN, ONES, learning_rate=0.1)
    new = complexity_of_run(RUN, Task(MODEL, ONES, squared_loss), learning_rate=0.1)
    for before, now in zip(astuple(old), astuple(new), strict=True):
        assert torch.equal(before, now) if isinstance(now, torch.Tensor) else before == now
