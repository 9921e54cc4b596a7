"""Barriers before and after matching."""

from dataclasses import replace

import pytest
import torch

from cases import CASES
from slipstream.evaluation import Task
from slipstream.landscape import AlignmentPlan, align_then_barrier, loss_barrier
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.rotation import GroupRotation
from slipstream.symmetry.rotation_proof import find_rotatable_groups
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import clone, weights_of
from small_transformer import inputs, transformer


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


def test_a_rotated_network_has_a_barrier_that_matching_removes():
    model, x = transformer(), inputs(9)
    groups = find_neuron_groups(model, x)
    target = clone(weights_of(model))
    found = find_rotatable_groups(model, x, groups=groups)
    hidden = GroupRotation.random(found, seed=1, norms=found.norm_values(target))
    task = Task(model, [(x, model(x).argmax(-1))])
    plan = AlignmentPlan("rotations", points=5)
    both = align_then_barrier(hidden.apply(target), target, task, groups=groups, plan=plan)
    assert both.before.height > 1e-4
    assert both.after.height == pytest.approx(0.0, abs=1e-9)
    assert both.to_json()["moved"] > 0.5
    assert both.to_json()["rotations"]["rotatable"][0]["keeps_mean"]
    plan = AlignmentPlan("rotations", points=5, learn_steps=2)
    with pytest.raises(ValueError, match="learn_steps trains on task"):
        align_then_barrier(target, target, task, groups=groups, plan=plan)
    task = replace(task, calibration=task.data)
    learned = align_then_barrier(hidden.apply(target), target, task, groups=groups, plan=plan)
    assert len(learned.matching.losses) == 2


def test_bad_input_is_told():
    with pytest.raises(ValueError, match='learn_steps needs method="rotations"'):
        AlignmentPlan(learn_steps=2)
    with pytest.raises(ValueError, match="rotations have one start"):
        AlignmentPlan("rotations", restarts=2)
    model, target, groups, data = setting()
    with pytest.raises(ValueError, match="must be weights, activations or rotations, got 'both'"):
        AlignmentPlan(method="both")
    with pytest.raises(ValueError, match="target lacks the tensor"):
        align_then_barrier(target, {}, Task(model, data), groups=groups)
