"""What the figure of a predicted training time shows."""

import torch
from torch import nn

from slipstream.dynamics import PredictionPlan, predict_training_time
from slipstream.evaluation import Task, squared_loss
from slipstream.report.training_time import plot_training_time


def test_the_curve_its_arrivals_and_the_real_loss():
    data = [(torch.tensor([[1.0]]), torch.tensor([[2.0]]))]
    model = nn.Linear(1, 1, bias=False)
    found = predict_training_time(
        Task(model, data, squared_loss),
        weights={"weight": torch.zeros(1, 1)},
        plan=PredictionPlan(thresholds=[0.2, 0.1], lr=0.5, probe_steps=1, warm_up=1, momentum=0),
    )
    axes = plot_training_time(found).axes[0]
    curve, *_, real = (line for line in axes.lines if len(line.get_xdata()) != 2)
    assert list(curve.get_ydata()) == [2.0, 0.5, 0.125, 0.03125]
    assert [note.get_text() for note in axes.texts] == ["2 steps", "3 steps"]
    assert (real.get_xdata()[0], real.get_ydata()[0]) == (2, 0.125)
    assert axes.get_title(loc="left").startswith("reached; path error")
