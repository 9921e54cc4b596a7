"""A model that is called with other weights is as before, however its modules are reached."""

import pytest
import torch
from torch import nn

from slipstream.evaluation.swapped_weights import functional_call
from slipstream.weights import weights_of


def shared():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


def tied():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize("make", [shared, tied, lambda: nn.Sequential(nn.Linear(3, 3))])
def test_every_way_to_a_tensor_sees_the_other_one_and_all_is_restored(make):
    torch.manual_seed(0)
    model, other, x = make(), make(), torch.randn(4, 3)
    before = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    for _ in range(3):
        found = functional_call(model, weights_of(other), (x,))
        torch.testing.assert_close(found, other(x))
        assert {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)} == before


def test_any_name_of_a_tied_tensor_will_do():
    model, x = tied(), torch.ones(1, 3)
    found = functional_call(model, {"1.weight": torch.eye(3) * 2}, (x,))
    assert found.tolist() == [[4.0, 4.0, 4.0]]
