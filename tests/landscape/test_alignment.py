"""Barriers before and after matching."""

import pytest
import torch

from cases import CASES
from slipstream.evaluation import Task
from slipstream.landscape import AlignmentPlan, align_then_barrier, loss_barrier
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import clone, weights_of


def setting(name="mlp"):
    case = CASES[name]
    model = case.model(seed=3).double()
    groups = find_neuron_groups(case.model(seed=3), case.inputs())
    data = [(x.double(), y) for x, y in case.batches()]
    return model, clone(weights_of(model)), groups, data


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_a_permuted_network_has_a_barrier_that_matching_removes(name, method):
    model, target, groups, data = setting(name)
    hidden = Permutation.random(groups, seed=1)
    found = align_then_barrier(
        hidden.apply(target),
        target,
        Task(model, iter(data)),
        groups=groups,
        plan=AlignmentPlan(method=method, points=7),
    )
    alone = loss_barrier(
        hidden.apply(target),
        target,
        Task(model, data),
        points=7,
    )
    torch.testing.assert_close(found.before.line.losses, alone.line.losses)
    torch.testing.assert_close(found.before.line.distances, alone.line.distances)
    assert found.before.line.losses.std() > 1e-4
    level = found.after.line.losses
    torch.testing.assert_close(level, level[:1].expand(7))
    assert found.after.height == pytest.approx(0.0, abs=1e-9)
    assert found.after.drop("accuracy") == pytest.approx(0.0)
    assert found.after.line.distances[-1] == pytest.approx(0.0)
    assert all(torch.equal(found.weights[n], target[n]) for n in target)
    assert found.to_json()["after"]["height"] == found.after.height


def test_bad_input_is_told():
    model, target, groups, data = setting()
    with pytest.raises(ValueError, match="method must be weights or activations, got 'both'"):
        AlignmentPlan(method="both")
    with pytest.raises(ValueError, match="target lacks the tensor"):
        align_then_barrier(target, {}, Task(model, data), groups=groups)
