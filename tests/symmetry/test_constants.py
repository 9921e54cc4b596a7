"""Constants that are equal everywhere, or on long runs, leave the order free; others pin it."""

import pytest
import torch
from torch import nn

from slipstream.symmetry.capture import capture
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import weights_of

ROWS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0))


def largest_change(model, groups, x):
    """How far the output moves by permutations, in float64, with random weights throughout."""
    model = model.double()
    generator = torch.Generator().manual_seed(1)
    own = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator).double()
        for name, value in weights_of(model).items()
    }
    before = torch.func.functional_call(model, own, (x.double(),))
    moved = [Permutation.random(groups, seed=seed).apply(own) for seed in range(3)]
    after = [torch.func.functional_call(model, weights, (x.double(),)) for weights in moved]
    return max(float((new - before).abs().max() / before.abs().max()) for new in after)


class Offset(nn.Module):
    """Hidden units to which a buffer outside of the state dict is added, or by which it scales."""

    def __init__(self, values, *, scales=False):
        super().__init__()
        self.first, self.head, self.scales = nn.Linear(5, 8), nn.Linear(8, 3), scales
        self.register_buffer("offset", values, persistent=False)

    def forward(self, x):
        hidden = self.first(x)
        return self.head(hidden * self.offset if self.scales else hidden + self.offset)


def parts(*values):
    return torch.tensor(values).repeat_interleave(8 // len(values))


EQUAL = {
    "zeros": (lambda: Offset(torch.zeros(8)), [8]),
    "ones": (lambda: Offset(torch.ones(8)), [8]),
    "the same in all examples": (lambda: Offset(torch.ones(4, 8) * 0.3), [8]),
    "two parts": (lambda: Offset(parts(0.5, -2.0)), [4, 4]),
    "a factor for each part": (lambda: Offset(parts(0.5, -2.0), scales=True), [4, 4]),
    "four parts": (lambda: Offset(parts(0.5, -2.0, 0.5, 1.0)), [2, 2, 2, 2]),
    "one position is odd": (lambda: Offset(torch.tensor([0.0] * 3 + [1.0] + [0.0] * 4)), [3, 4]),
    "all differ": (lambda: Offset(torch.arange(8.0)), []),
    "not a number": (lambda: Offset(torch.full((8,), torch.nan)), []),
}


@pytest.mark.parametrize("name", EQUAL)
def test_runs_of_equal_positions_are_permutable(name):
    build, expected = EQUAL[name]
    model = build()
    groups = find_neuron_groups(model, ROWS, prove=False)
    assert list(groups.sizes().values()) == expected
    if name != "not a number":
        assert largest_change(model, groups, ROWS) < 1e-12


def test_an_offset_that_is_equal_everywhere_leaves_no_signs():
    assert find_neuron_groups(Offset(torch.ones(8), scales=True), ROWS).groups
    for model in (Offset(torch.ones(8)), Offset(torch.zeros(8))):
        assert not find_neuron_groups(model, ROWS).groups[0].signed


@pytest.mark.parametrize("only_in_training", [False, True])
def test_a_buffer_that_the_model_writes_to_is_no_constant(only_in_training):
    class Counting(Offset):
        def forward(self, x):
            if self.training or not only_in_training:
                self.offset[0] += 1
            return self.head(self.first(x) + self.offset)

    assert not find_neuron_groups(Counting(torch.zeros(8)), ROWS, prove=False).groups


def test_nothing_is_read_from_constants_without_values():
    with torch.device("meta"):
        model = Offset(torch.zeros(8))
    assert not capture(model, ROWS.to("meta")).runs
    assert not find_neuron_groups(model, ROWS.to("meta"), prove=False).groups


class FusedAttention(nn.Module):
    """Queries, keys and values in one weight, with biases for queries and values only: BEiT, EVA.

    With `positions`, a network computes from coordinates what is added to the scores: Swin-v2.
    """

    def __init__(self, *, positions=False):
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 36, bias=False), nn.Linear(12, 5)
        self.q_bias, self.v_bias = (nn.Parameter(torch.randn(12)) for _ in "qv")
        self.register_buffer("k_bias", torch.zeros(12), persistent=False)
        self.positions = None
        if positions:
            self.register_buffer("coordinates", torch.randn(49, 2), persistent=False)
            self.register_buffer("index", torch.randperm(49), persistent=False)
            self.positions = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 3))

    def forward(self, x):
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        fused = nn.functional.linear(x, self.qkv.weight, bias)
        q, k, v = fused.reshape(*x.shape[:2], 3, 3, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1)
        if self.positions is not None:
            table = self.positions(self.coordinates).view(-1, 3)[self.index].view(7, 7, -1)
            scores = scores + 16 * torch.sigmoid(table.permute(2, 0, 1)).unsqueeze(0)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(*x.shape[:2], 12))


@pytest.mark.parametrize("positions", [False, True])
def test_a_bias_of_zeros_for_keys_pins_no_heads(positions):
    model = FusedAttention(positions=positions)
    groups = find_neuron_groups(model, TOKENS)
    heads, *inside = [group for group in groups.groups if group.size != 10]
    assert (heads.size, [group.size for group in inside]) == (3, [4, 4])
    assert all(group.parents == (heads.name,) for group in inside)
    assert [g.size for g in groups.groups if g.size == 10] == [10] * positions
    assert not groups.dropped
    assert largest_change(model, groups, TOKENS) < 1e-12
