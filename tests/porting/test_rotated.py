"""Porting by rotations: a fine-tune reaches a base that computes the same in another basis."""

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task
from slipstream.porting import FineTune, PortPlan, port_fine_tune
from slipstream.symmetry.rotation import GroupRotation
from slipstream.symmetry.rotation_proof import find_rotatable_groups
from slipstream.weights import clone, weights_of
from small_transformer import inputs, transformer


@pytest.fixture(scope="module")
def rotated():
    model = transformer(dtype=torch.float32)
    base = clone(weights_of(model))
    noise = torch.Generator().manual_seed(7)
    tuned = {n: v + 0.1 * torch.randn(v.shape, generator=noise) for n, v in base.items()}
    found = find_rotatable_groups(model, inputs(dtype=torch.float32))
    gains = {name: 0.5 + value.flip(0) for name, value in found.norm_values(base).items()}
    hidden = GroupRotation.random(found, seed=3, norms=gains)
    data = [(inputs(40, torch.float32), torch.arange(40) % 4)]
    return Task(model, data), base, tuned, hidden


def test_a_rotated_base_gets_the_fine_tune_in_its_basis(rotated):
    task, base, tuned, hidden = rotated
    given = FineTune(base, tuned, hidden.apply(base))
    ported = port_fine_tune(given, task, plan=PortPlan("rotation"))
    for name, value in hidden.apply(tuned).items():
        torch.testing.assert_close(ported.weights[name], value, rtol=0, atol=1e-3, msg=name)
    assert all(0.8 < layer.matched < 1.0001 for layer in ported.layers)
    assert [layer.kept for layer in ported.layers] == pytest.approx([1] * 11)
    assert "the gains of 3 normalisations were folded" in ported.warnings[-1]
    before = clone(weights_of(task.model))
    assert all(torch.equal(value, before[n]) for n, value in base.items())


def test_what_is_excluded_stays_and_steps_can_follow(rotated):
    task, base, tuned, hidden = rotated
    given = FineTune(base, tuned, hidden.apply(base))
    plan = PortPlan("rotation+few-shot", exclude=("head.*",), stages=1, rates=(1e-6,))
    ported = port_fine_tune(given, task, plan=plan)
    assert torch.equal(ported.weights["head.weight"], given.to_base["head.weight"])
    expected = hidden.apply(tuned)["wide.weight"]
    torch.testing.assert_close(ported.weights["wide.weight"], expected, rtol=0, atol=1e-3)


def test_a_network_without_rotations_is_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    own = clone(weights_of(model))
    task = Task(model, [(torch.randn(8, 4), torch.arange(8) % 2)])
    with pytest.raises(ValueError, match=r"No neuron group may be rotated\. 0\.weight:0"):
        port_fine_tune(FineTune(own, own, own), task, plan=PortPlan("rotation"))
