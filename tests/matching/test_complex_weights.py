"""Complex weights count as their real and imaginary parts."""

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task
from slipstream.matching import match_activations, match_gradients, match_weights
from slipstream.matching.gradients import LowRank, inner_product
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer import TransferPlan, transfer_trajectory
from slipstream.weights import weights_of


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 6, dtype=torch.cfloat)
        self.second = nn.Linear(6, 2, dtype=torch.cfloat)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(torch.polar(hidden.abs().tanh(), hidden.angle())).abs()


@pytest.fixture
def task():
    torch.manual_seed(0)
    batch = torch.randn(12, 3, dtype=torch.cfloat), torch.randn(12, 2)
    return Task(Complex(), [batch], lambda m, b: (m(b[0]) - b[1]).square().mean())


def clone(task):
    return {name: value.detach().clone() for name, value in weights_of(task.model).items()}


def test_a_permutation_of_complex_neurons_is_found(task):
    own, groups = clone(task), find_neuron_groups(task.model, task.data[0][0])
    order = Permutation.random(groups, seed=1)
    moved = order.apply(own)
    for start in (None, "frank-wolfe"):
        found = match_weights(own, moved, groups=groups, start=start)
        square = sum(float(value.abs().square().sum()) for value in own.values())
        assert found.objective == pytest.approx(square)
        assert torch.equal(
            found.source_to_target.orders["first.weight:0"], order.orders["first.weight:0"]
        )
    for match in (match_activations, match_gradients):
        again = match(own, moved, task, groups=groups).source_to_target
        assert torch.equal(again.orders["first.weight:0"], order.orders["first.weight:0"])


def test_inner_products_are_those_of_the_parts():
    a, b = torch.tensor([1 + 2j]), torch.tensor([3 - 1j])
    assert inner_product(a, b) == 1  # 1 * 3 + 2 * (-1)
    outer = LowRank(torch.tensor([[1 + 2j]]), torch.tensor([[1j]]))
    assert inner_product(outer, outer) == 5


@pytest.mark.parametrize("method", ["fgmt", "fgmt-signed", "activations-signed"])
def test_a_transfer_moves_both_parts(task, method):
    own = clone(task)
    end = {name: value + (0.3 + 0.2j) for name, value in own.items()}
    start = clone(Task(Complex(), task.data, task.loss))
    path = Trajectory.line(own, end, stages=3)
    result = transfer_trajectory(path, start, task, plan=TransferPlan(method))
    for name, value in result.weights.items():
        moved = torch.view_as_real(value - start[name])
        assert moved.isfinite().all()
        assert all(part.abs().max() > 0.05 for part in moved.unbind(-1))
