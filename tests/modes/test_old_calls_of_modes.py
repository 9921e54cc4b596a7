"""Calls as of 0.1: they warn, and give the same."""

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, evaluate
from slipstream.modes import OnlineModes, OnlinePlan, fit_modes, mode_plane
from slipstream.trajectory import Trajectory
from slipstream.weights import weights_of


def test_the_plane_of_two_modes_is_measured_as_before():
    times = torch.linspace(0, 1, 5)
    run = [{"weight": torch.stack([t, 1 - t, t * t])[None]} for t in times]
    modes = fit_modes(Trajectory.from_weights(run), modes=2)
    model, data = nn.Linear(3, 1, bias=False), [torch.eye(3), torch.ones(1, 3)]

    def loss(model, batch):
        return model(batch).square().mean()

    def of_weights(weights):
        return evaluate(model, {"loss": loss}, weights=weights, data=data)["loss"]

    with pytest.warns(DeprecationWarning, match="mode_plane takes a Task now"):
        first = mode_plane(modes, of_weights, points=3)
    second = mode_plane(modes, Task(model, data, loss), points=3)
    assert torch.equal(first.losses, second.losses)


def test_online_modes_take_their_options_as_before():
    model = nn.Linear(3, 1)
    with pytest.warns(DeprecationWarning, match="OnlineModes takes plan now, instead of modes"):
        first = OnlineModes(model, modes=1, warm_up=3, trial=2)
    second = OnlineModes(model, OnlinePlan(1, 3, 2))
    for _ in range(6):
        with torch.no_grad():
            model.weight.add_(0.1)
        first.update()
        second.update()
    assert torch.equal(first.weights()["weight"], second.weights()["weight"])
    assert weights_of(model)["weight"].shape == first.weights()["weight"].shape
