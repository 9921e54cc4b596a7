"""What an example cannot test is not called proven, and what is right is not given up."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from slipstream.symmetry.neuron_groups import Block, NeuronGroup, NeuronGroups
from slipstream.symmetry.perturbed_model import PerturbedModel
from slipstream.symmetry.proof import check
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.symmetry.untouched import left_as_it_was
from slipstream.weights import weights_of

ROWS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))


def one_group(model, size, *blocks):
    shapes = {name: tuple(value.shape) for name, value in weights_of(model).items()}
    listed = tuple(Block(tensor, axis, 0, ("units",)) for tensor, axis in blocks)
    return NeuronGroups((NeuronGroup("units", size),), listed, shapes)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(5, 6) for _ in range(3))

    def forward(self, x, memory=None):
        memory = x if memory is None else memory
        scores = self.query(x) @ self.key(memory).transpose(1, 2)
        return scores.softmax(-1) @ self.value(memory)


class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNN(5, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


QUERIES = (("query.weight", 0), ("query.bias", 0))
UNITS = (("cell.weight_ih_l0", 0), ("cell.bias_ih_l0", 0), ("cell.bias_hh_l0", 0))
UNITS += (("cell.weight_hh_l0", 0), ("head.weight", 1))
BLIND = {
    "one token": (Attention, QUERIES, TOKENS[:, :1]),
    "one token of memory": (Attention, QUERIES, (TOKENS, TOKENS[:, :1])),
    "one step": (Step, UNITS, TOKENS[:, :1]),
}
SEEING = {
    "one token": TOKENS,
    "one token of memory": (TOKENS, TOKENS),
    "one step": TOKENS,
}


@pytest.mark.parametrize("name", BLIND)
def test_a_wrong_group_that_the_example_cannot_see_is_not_kept(name):
    build, blocks, blind = BLIND[name]
    model = build()
    wrong = one_group(model, 6, *blocks)
    dropped = check(model, wrong, blind).dropped
    assert "could not be tested" in dropped[0].reason
    assert "a permutation moved the output" in check(model, wrong, SEEING[name]).dropped[0].reason


@pytest.mark.parametrize("name", BLIND)
def test_a_group_that_follows_from_the_operators_is_kept_with_a_note(name):
    build, _, blind = BLIND[name]
    groups = find_neuron_groups(build(), blind)
    seen = find_neuron_groups(build(), SEEING[name])
    if name == "one step":
        assert groups.sizes() == seen.sizes() == {"cell.weight_ih_l0:0": 6}
        assert groups.caveats[-1].startswith("not tested: cell.weight_hh_l0:0, cell.weight_hh_l0:1")
    else:
        assert groups.dropped
        assert set(groups.sizes()) < set(seen.sizes())
    assert not [caveat for caveat in seen.caveats if "weight" in caveat]


def test_queries_and_keys_inside_a_fused_weight_are_looked_at_alone():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(5, 6)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x):
            hidden = self.embed(x)
            return self.attention(hidden, hidden, hidden)[0]

    groups = find_neuron_groups(Fused(), TOKENS[:, :1])
    assert groups.caveats[-1].startswith("not tested: attention.in_proj_weight:0")
    assert not [c for c in find_neuron_groups(Fused(), TOKENS).caveats if "in_proj_weight" in c]


class Through(nn.Module):
    """Hidden units, a head, and what is done to its output."""

    def __init__(self, finish, dtype=torch.float32):
        super().__init__()
        self.first, self.head = nn.Linear(5, 8, dtype=dtype), nn.Linear(8, 3, dtype=dtype)
        self.finish = finish

    def forward(self, x):
        hidden = self.first(x.to(self.first.weight.dtype))
        return self.finish(self.head(hidden * hidden.abs()))


def _one_masked(x):
    return x.masked_fill(torch.tensor([False, True, False]), float("-inf"))


RIGHT = {
    "complex weights": lambda: Through(torch.view_as_real, torch.complex64),
    "complex output": lambda: Through(lambda x: x, torch.complex64),
    "one masked logit": lambda: Through(_one_masked),
    "masked positions": lambda: Through(lambda x: x.masked_fill(x > 0.1, float("nan"))),
    "a large offset": lambda: Through(lambda x: x + 1e7),
    "an offset of each class": lambda: Through(lambda x: x + torch.tensor([0.0, -1e9, 1e6])),
    "a large offset of one number": lambda: Through(lambda x: x.sum() + 1e6),
    "another output that is constant": lambda: Through(lambda x: (x, torch.full((3,), 1e9))),
    "a boolean output": lambda: Through(lambda x: (x, x > 0, x.argmax(-1))),
    "sparse": lambda: Through(lambda x: x.to_sparse()),
    "faint": lambda: Through(lambda x: x * 1e-12),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_group_is_kept_whatever_the_output(name):
    model = RIGHT[name]()
    groups = find_neuron_groups(model, ROWS)
    assert groups.sizes()["first.weight:0"] == 8
    assert not groups.dropped
    wrong = replace(groups, blocks=tuple(b for b in groups.blocks if b.tensor != "first.bias"))
    assert "first.weight:0" not in check(model, wrong, ROWS).sizes()


class Faint(nn.Module):
    """Branches that hardly change the stream: a small layer scale, matrices close to zero."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.attention = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in "ab")
        self.scales = nn.ParameterList(nn.Parameter(torch.full((8,), 1e-6)) for _ in "ab")
        for name, value in self.named_parameters():
            if "attention" in name and value.dim() > 1:
                nn.init.normal_(value, std=0.002)

    def forward(self, x):
        x = self.embed(x)
        for attention, scale in zip(self.attention, self.scales, strict=True):
            x = x + scale * attention(x, x, x)[0]
        return self.head(x)


def test_what_is_faint_is_raised_before_it_is_measured():
    groups = find_neuron_groups(Faint(), TOKENS)
    assert (groups.dropped, groups.caveats) == ((), ())
    assert sorted(groups.sizes().values()) == [2, 2, 4, 4, 4, 4, 8]


@pytest.mark.parametrize("trained", [False, True])
def test_the_statistics_of_batchnorm_are_of_the_raised_weights(trained):
    """With those of faint kernels, rounding in a deep MobileNet hides whether a group is right."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 4, 4)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 2))
    nn.init.normal_(model[0].weight, std=0.01)
    if trained:
        model(images)
    groups = find_neuron_groups(model.eval(), images, prove=False)
    with left_as_it_was(model) as memory:
        perturbed = PerturbedModel.prepare(
            model, memory, groups, images, seed=0, training=False
        ).tensors
    seen = functional.conv2d(images.double(), perturbed["0.weight"]).var((0, 2, 3))
    assert ((perturbed["1.running_var"] / seen - 1).abs() < 0.5).all()  # disturbed by U(.5, 1.5)


class Codes(nn.Module):
    """A group that a single tensor lists: the order of its rows is of no consequence."""

    def __init__(self, kind):
        super().__init__()
        self.head = nn.Linear(5, 3)
        if kind == "buffer":
            self.register_buffer("codes", torch.randn(7, 3))
        else:
            self.codes = nn.Parameter(torch.randn(7, 3))

    def forward(self, x):
        return (self.head(x)[:, None] * self.codes).relu().sum(1)


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_a_group_on_a_single_tensor(kind):
    groups = find_neuron_groups(Codes(kind), ROWS)
    assert groups.sizes() == {"codes:0": 7}
    assert not groups.dropped


def test_not_a_number_everywhere_tests_nothing():
    groups = find_neuron_groups(Through(lambda x: x * float("nan")), ROWS)
    assert not len(groups)
    assert "not finite" in groups.dropped[0].reason


def test_an_output_that_a_permutation_makes_infinite_is_a_fault():
    class Divided(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mask = nn.Linear(5, 4), nn.Parameter(torch.tensor([0.0, 1, 1, 1]))

        def forward(self, x):
            return (self.first(x) / (self.mask.round() + 1e-300)).sum(-1)

    model = Divided()
    wrong = one_group(model, 4, ("first.weight", 0), ("first.bias", 0))
    assert not len(check(model, wrong, ROWS))
