"""Weights over the same memory are one tensor: its neurons move everywhere, or stay."""

import pytest
import torch
from torch import nn

from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import load_weights_, weights_of

INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Sharing(nn.Module):
    """The second weight is a view of the first; each is followed by units of its own."""

    def __init__(self, view, kind=nn.Parameter):
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 6).double() * 0.3)
        self.second = kind(view(self.first.data))
        rows, columns = self.second.shape
        self.between, self.head, self.other = (
            nn.Linear(*sizes, dtype=torch.float64) for sizes in ((8, columns), (rows, 2), (8, 2))
        )

    def forward(self, x):
        units = (x.double() @ self.first.T).relu()
        return self.head((self.between(units) @ self.second.T).relu()), self.other(units)


VIEWS = {
    "same": lambda w: w,
    "transposed": lambda w: w.T,
    "rows": lambda w: w[2:5],
    "columns": lambda w: w[:, 1:4],
    "one row as a matrix": lambda w: w[3].view(2, 3),
    "reshaped": lambda w: w.view(4, 12),
    "every second row": lambda w: w[::2],
    "overlapping windows": lambda w: w.as_strided((4, 5), (3, 1)),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("kind", [nn.Parameter, lambda view: view], ids=["parameter", "attribute"])
def test_a_permutation_that_is_loaded_keeps_the_function(name, kind):
    model = Sharing(VIEWS[name], kind)
    groups = find_neuron_groups(model, INPUTS)
    before = model(INPUTS)
    for seed in range(3):
        load_weights_(model, Permutation.random(groups, seed=seed).apply(weights_of(model)))
        torch.testing.assert_close(model(INPUTS), before)


@pytest.mark.parametrize(
    ("name", "sizes"), [("transposed", [8]), ("rows", [3, 3, 2]), ("columns", [8])]
)
def test_what_can_move_together_does(name, sizes):
    model = Sharing(VIEWS[name])
    found = sorted(find_neuron_groups(model, INPUTS).sizes().values(), reverse=True)
    assert found == sizes


def test_views_that_have_nothing_in_common_are_not_tied():
    whole = torch.randn(8, 10)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(4, 8))
    model[0].weight, model[2].weight = nn.Parameter(whole[:, :6]), nn.Parameter(whole[:, 6:])
    model.insert(2, nn.Linear(8, 4))
    assert sorted(find_neuron_groups(model, INPUTS).sizes().values()) == [4, 8]


KEPT = {}  # such as `start = weights_of(model)` in a notebook


def test_weights_that_a_global_variable_keeps_pin_nothing():
    model = Sharing(VIEWS["rows"])
    expected = find_neuron_groups(model, INPUTS).sizes()
    KEPT.update(weights_of(model))
    assert find_neuron_groups(model, INPUTS).sizes() == expected
