"""Which neurons may change their sign, and in which tensors."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from slipstream.symmetry.tracing import find_neuron_groups


def signed_places(groups, name):
    """Where the neurons of a group bring their sign along."""
    return {f"{b.tensor}:{b.axis}[{b.offset}]" for b in groups.blocks_of(name) if name in b.signs}


def plain_places(groups, name):
    return {
        f"{b.tensor}:{b.axis}[{b.offset}]" for b in groups.blocks_of(name) if name not in b.signs
    }


class Block(nn.Module):
    """A pre-norm transformer with RMSNorm and a gated MLP, its gate and its value fused."""

    def __init__(self):
        super().__init__()
        self.table, self.before, self.after = nn.Embedding(7, 6), nn.RMSNorm(6), nn.RMSNorm(6)
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6, bias=name == "v") for name in "qkvo")
        self.gated, self.down, self.head = nn.Linear(6, 18), nn.Linear(9, 6), nn.Linear(6, 5)

    def forward(self, tokens):
        x = self.table(tokens)
        q, k, v = (
            layer(self.before(x)).unflatten(-1, (2, 3)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(heads.transpose(1, 2).flatten(2))
        gate, value = self.gated(self.after(x)).chunk(2, -1)
        x = x + self.down(functional.silu(gate) * value)
        return self.head(x)


def test_a_transformer_with_rms_norm():
    groups = find_neuron_groups(Block(), torch.randint(7, (3, 4)))
    assert not groups.dropped
    stream, heads, qk, vo, units = groups.sizes()
    assert signed_places(groups, stream) == {
        *("table.weight:1[0]", "q.weight:1[0]", "k.weight:1[0]", "v.weight:1[0]"),
        *("o.weight:0[0]", "gated.weight:1[0]", "down.weight:0[0]", "down.bias:0[0]"),
        "head.weight:1[0]",
    }
    assert plain_places(groups, stream) == {"before.weight:0[0]", "after.weight:0[0]"}
    assert signed_places(groups, heads) == set()
    assert signed_places(groups, qk) == {"q.weight:0[0]", "k.weight:0[0]"}
    assert signed_places(groups, vo) == {"v.weight:0[0]", "v.bias:0[0]", "o.weight:1[0]"}
    assert signed_places(groups, units) == {
        *("gated.weight:0[9]", "gated.bias:0[9]", "down.weight:1[0]")
    }
    assert plain_places(groups, units) == {"gated.weight:0[0]", "gated.bias:0[0]"}


ODD = {"tanh": nn.Tanh(), "nothing": nn.Identity(), "softsign": nn.Softsign()}
OTHER = {"relu": nn.ReLU(), "gelu": nn.GELU(), "layer_norm": nn.LayerNorm(5), "max": nn.Hardtanh()}


@pytest.mark.parametrize("name", [*ODD, *OTHER])
def test_odd_functions_keep_signs_and_others_refuse_them(name):
    model = nn.Sequential(nn.Linear(4, 5), (ODD | OTHER)[name], nn.Linear(5, 3))
    groups = find_neuron_groups(model, torch.randn(6, 4))
    assert not groups.dropped
    assert groups["0.weight:0"].signed == (name in ODD)


def test_signs_are_not_looked_for_where_they_are_not_wanted():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    whole = find_neuron_groups(model, torch.randn(6, 4))
    assert find_neuron_groups(model, torch.randn(6, 4), signs=False) == whole.without_signs()
