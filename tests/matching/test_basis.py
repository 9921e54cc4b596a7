"""Matching by rotations: a rotated copy of a network is recovered."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, weights_in
from slipstream.matching import BasisPlan, match_basis
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.rotation import GroupRotation
from slipstream.symmetry.rotation_proof import find_rotatable_groups
from slipstream.weights import weights_of
from small_transformer import inputs, transformer


def data():
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(n, 7, 5, generator=generator).double(), torch.arange(n) % 4)
        for n in (40, 24, 31)
    ]


def hidden_copy(model, found):
    """The same function in another basis, with heads and hidden units in another order."""
    own = weights_of(model)
    other = {name: 0.5 + value.flip(0) for name, value in found.norm_values(own).items()}
    drawn = Permutation.random(found.groups, seed=4)
    rotation = GroupRotation.random(found, seed=3, norms=other)
    identity = Permutation.identity(found.groups).orders
    orders = {n: identity[n] if n in found.names else drawn.orders[n] for n in identity}
    return replace(rotation, permutation=Permutation(found.groups, orders)).apply(own)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("method", ["weights", "activations"])
def test_a_rotated_copy_is_recovered(norm, method):
    model = transformer(norm)
    found = find_rotatable_groups(model, inputs())
    target = hidden_copy(model, found)
    task = Task(model, data())
    matching = match_basis(weights_of(model), target, task, rotatable=found, plan=BasisPlan(method))
    moved = matching.source_to_target.apply(weights_of(model))
    for name, value in target.items():
        torch.testing.assert_close(moved[name], value, rtol=0, atol=1e-6, msg=name)
    assert matching.converged
    assert matching.gain > 0


def test_learning_lowers_the_loss_between_and_stays_orthogonal():
    model = transformer(nn.LayerNorm)
    found = find_rotatable_groups(model, inputs())
    own = weights_of(model)
    target = {n: v + 0.3 * torch.randn_like(v) for n, v in hidden_copy(model, found).items()}
    task = Task(model, data())
    plan = BasisPlan(learn_steps=60, lr=0.02)
    before = match_basis(own, target, task, rotatable=found)
    after = match_basis(own, target, task, rotatable=found, plan=plan)
    matrix = after.source_to_target.matrices["embed.weight:0"]
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(6).double())
    torch.testing.assert_close(matrix.sum(1), torch.ones(6).double())
    assert len(after.losses) == 60

    def middle(matching):
        moved = matching.source_to_target.apply(own)
        weights = {n: (moved[n] + value) / 2 for n, value in target.items()}
        with weights_in(model, weights):
            return task.evaluate()["loss"]

    assert middle(after) < middle(before)
    assert all(torch.equal(value, own[n]) for n, value in weights_of(model).items())


def test_mistakes_are_named():
    model = transformer(nn.LayerNorm)
    found = find_rotatable_groups(model, inputs())
    own = weights_of(model)
    with pytest.raises(ValueError, match="A task with data is needed"):
        match_basis(own, own, rotatable=found)
    none = replace(found, rotatable=())
    with pytest.raises(
        ValueError, match=r"No neuron group may be rotated\. query.weight:0/groups: a"
    ):
        match_basis(own, own, rotatable=none, plan=BasisPlan("weights"))
    with pytest.raises(ValueError, match="holds no batch"):
        match_basis(
            own, own, Task(model, []), rotatable=found, plan=BasisPlan("weights", learn_steps=1)
        )
    with pytest.raises(ValueError, match="method must be weights or activations, got 'gradients'"):
        BasisPlan("gradients")
    with pytest.raises(ValueError, match="lr must be above 0"):
        BasisPlan(lr=0)
