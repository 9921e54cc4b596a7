"""Disturbed weights: nothing is equal for all neurons, and nothing is too faint to be tested."""

import copy

import pytest
import torch
from torch import nn

from slipstream.symmetry.disturbance import (
    disturbed_statistics,
    disturbed_weights,
    raised_weights,
)
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.symmetry.untouched import Memory
from slipstream.weights import weights_of


class TalkingHeads(nn.Module):
    """Attention whose heads are mixed before and behind the softmax, and a layer scale: CaiT."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.before, self.behind = nn.Linear(heads, heads), nn.Linear(heads, heads)
        self.proj, self.scale = nn.Linear(width, width), nn.Parameter(torch.full((width,), 1e-5))
        for layer in (self.qkv, self.before, self.behind, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        fused = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = fused.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)
        mixed = self.behind(self.before(scores).softmax(-2)).permute(0, 3, 1, 2)
        return x + self.scale * self.proj((mixed @ v).transpose(1, 2).flatten(2))


def test_the_proof_reaches_all_layers_of_a_deep_network_with_faint_branches():
    torch.manual_seed(0)
    layers = [TalkingHeads() for _ in range(6)]
    model = nn.Sequential(nn.Linear(5, 8), *layers, nn.LayerNorm(8), nn.Linear(8, 3))
    groups = find_neuron_groups(model, torch.randn(2, 64, 5))
    assert groups.dropped == ()
    assert groups.caveats == ()
    assert len(groups) == 1 + 6 * 5  # a layer has three sets of heads, and features inside of two


def test_zeros_become_small_and_different_and_faint_gains_become_large():
    tensors = {
        "offset": torch.zeros(50),
        "layer scale": torch.full((50,), 1e-6),
        "gain": torch.ones(50),
        "matrix": torch.randn(6, 50) * 1e-3,
        "count": torch.zeros(50, dtype=torch.int64),
    }
    changed = disturbed_weights(tensors | raised_weights(tensors, tensors), tensors, seed=0)
    assert all(len(changed[name].unique()) == 50 for name in ("offset", "layer scale", "gain"))
    assert 0.001 < changed["offset"].abs().min() < changed["offset"].abs().max() < 0.02
    assert changed["offset"].min() < 0 < changed["offset"].max()
    assert changed["layer scale"].min() > 0.5
    assert changed["matrix"].norm(dim=1).mean() == pytest.approx(1, rel=0.2)
    assert changed["count"] is tensors["count"]


def normalised(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6)
    return nn.Sequential(*layers).to(dtype).eval()


def statistics(model, x):
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        return disturbed_statistics(model, Memory(model), own, x, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batch_norm_gets_statistics_near_those_of_its_input(dtype):
    model, x = normalised(dtype), torch.randn(16, 5)
    before = {name: value.clone() for name, value in weights_of(model).items()}
    found = statistics(model, x.to(dtype))
    assert set(found) == {f"{n}.running_{kind}" for n in (1, 4) for kind in ("mean", "var")}
    for name, value in weights_of(model).items():
        assert torch.equal(value, before[name])
    hidden = model.double()[0](x.to(dtype).double())
    factors = found["1.running_var"].double() / hidden.var(0)
    shifts = (found["1.running_mean"].double() - hidden.mean(0)) / hidden.std(0)
    assert 0.49 < factors.min() < 0.8 < 1.1 < factors.max() < 1.51
    assert -0.51 < shifts.min() < -0.1 < 0.1 < shifts.max() < 0.51
    assert len(factors.unique()) == len(shifts.unique()) == 8


def test_every_batch_norm_is_measured_behind_the_disturbed_ones_before_it():
    torch.manual_seed(0)
    layers = (nn.Linear(9, 9), nn.BatchNorm1d(9), nn.Softplus())
    model = nn.Sequential(*(copy.deepcopy(layer) for _ in range(30) for layer in layers)).eval()
    x = torch.randn(16, 9)
    model.load_state_dict(model.state_dict() | statistics(model, x))
    with torch.no_grad():
        for n, layer in enumerate(model):
            x = layer(x)
            if n % 3 == 1:
                assert 0.8 < x.std() < 1.3  # with the statistics of other inputs, it runs away


def test_statistics_that_float32_cannot_hold_are_measured_in_float64():
    model = normalised()
    found = statistics(model, torch.randn(16, 5) * 1e25)
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert found["1.running_var"].min() > 1e45
