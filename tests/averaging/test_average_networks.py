"""The average of networks that compute the same in different bases."""

import pytest
import torch

from slipstream.averaging import average_networks
from slipstream.evaluation import Task
from slipstream.matching import BasisPlan
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.rotation import GroupRotation
from slipstream.symmetry.rotation_proof import find_rotatable_groups
from slipstream.testbed.networks import mlp
from slipstream.weights import clone, weights_of
from small_transformer import inputs, transformer


def test_the_average_of_rotated_copies_is_the_network():
    model, x = transformer(), inputs(30)
    own = clone(weights_of(model))
    found = find_rotatable_groups(model, x)
    gains = {name: 0.5 + value.flip(0) for name, value in found.norm_values(own).items()}
    copies = [GroupRotation.random(found, seed=s, norms=gains).apply(own) for s in (1, 2)]
    task = Task(model, [(x, model(x).argmax(-1))])
    mean = average_networks([own, *copies], task, rotatable=found)
    for name, value in own.items():
        torch.testing.assert_close(mean.weights[name], value, rtol=0, atol=1e-6, msg=name)
    assert [matching.gain > 0 for matching in mean.matchings] == [True, True]


def test_one_network_has_no_average():
    model = transformer()
    with pytest.raises(ValueError, match="networks must be at least two, got 1"):
        average_networks([weights_of(model)], rotatable=find_rotatable_groups(model, inputs()))


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_neurons_that_none_may_rotate_are_permuted(method):
    torch.manual_seed(0)
    model, x = mlp(inputs=6, width=8, classes=3), torch.randn(40, 6)
    own = clone(weights_of(model))
    found = find_rotatable_groups(model, x)
    assert not found.rotatable
    hidden = Permutation.random(found.groups, seed=1).apply(own)
    task = Task(model, [(x, torch.zeros(40, dtype=torch.int64))])
    mean = average_networks([own, hidden], task, rotatable=found, plan=BasisPlan(method))
    for name, value in own.items():
        torch.testing.assert_close(mean.weights[name], value)
    with pytest.raises(ValueError, match="No neuron group may be rotated"):
        average_networks([own, hidden], task, rotatable=found, plan=BasisPlan(learn_steps=1))
    with pytest.raises(ValueError, match="A task with data is needed"):
        average_networks([own, hidden], rotatable=found)
