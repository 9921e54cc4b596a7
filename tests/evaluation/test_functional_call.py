"""A model that is called with other weights is as before, however its modules are reached."""

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, evaluate, gradient
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


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")]
)
def test_a_wrapped_model_has_the_names_of_the_model_inside(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    wrapped = wrap(model)
    batches = [(torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))]
    other = {name: torch.randn_like(value) for name, value in weights_of(model).items()}
    plain, task = Task(model, batches), Task(wrapped, batches)
    assert task.evaluate(weights=other) == plain.evaluate(weights=other)
    assert evaluate(wrapped, plain.measured, data=batches, weights=other) == task.evaluate(
        weights=other
    )
    for found in (task.gradient(), gradient(wrapped, task.loss, data=batches)):
        torch.testing.assert_close(found, plain.gradient())
    torch.testing.assert_close(
        functional_call(wrapped, other, batches[0][0]),
        torch.func.functional_call(model, other, (batches[0][0],)),
    )
