"""One line for every operator family: hidden units go through it, and move on, or are pinned."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from slipstream.symmetry.tracing import find_neuron_groups

UNITS = 6
MOVES = {
    "in place": lambda x: x.clone().mul_(2).relu_().clamp_(max=3),
    "write a piece": lambda x: torch.zeros_like(x).copy_(x),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "softmax over units": lambda x: x.softmax(1),
    "softmax over places": lambda x: x.log_softmax(-1),
    "maximum": lambda x: torch.maximum(x, x * 0.3) + torch.minimum(x, x**2),
    "scalar of all units": lambda x: x / (x.norm(dim=1, keepdim=True) + 1),
    "normalize": lambda x: functional.normalize(x, dim=1),
    "variance over units": lambda x: x - x.var(1, keepdim=True),
    "statistics of the batch": lambda x: functional.batch_norm(x, None, None, training=True),
    "permute": lambda x: x.permute(2, 1, 0).transpose(0, 2).movedim(1, 0).movedim(0, 1),
    "movedim": lambda x: x.movedim((0, 1, 2), (1, 2, 0)).movedim((0, 1, 2), (2, 0, 1)),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1).unsqueeze(-1)[..., 0],
    "view": lambda x: x.reshape(x.shape[0], 2, 3, 5).flatten(1, 2),
    "flatten": lambda x: x.flatten(1).unflatten(1, (UNITS, 5)),
    "expand": lambda x: x[:, None].expand(-1, 4, -1, -1).mean(1),
    "repeat": lambda x: x.repeat(1, 1, 2),
    "stack": lambda x: torch.stack([x, x.tanh()]).amax(0),
    "cat with itself": lambda x: torch.cat([x, x], 1).chunk(2, 1)[1],
    "slice of places": lambda x: x[:, :, 1:4] + x[..., ::2],
    "pool": lambda x: functional.max_pool1d(x, 2) + functional.adaptive_avg_pool1d(x, 2),
    "pad places": lambda x: functional.pad(x, (1, 2), mode="reflect"),
    "interpolate": lambda x: functional.interpolate(x, scale_factor=2, mode="linear"),
    "mean by einsum": lambda x: torch.einsum("bup,bvp->bu", x, x.relu())[..., None] + x,
    "gram": lambda x: (x @ x.transpose(1, 2)).softmax(-1) @ x,
    "order of places": lambda x: (
        x.cumsum(-1) + x.flip(-1) + x.sort(-1).values.roll(1, -1)
        if False
        else x.cumsum(-1) + x.flip(-1).roll(1, -1)
    ),
    "largest place": lambda x: x + x.max(-1, keepdim=True).values,
    "double": lambda x: x.double().to(x.dtype).type_as(x).contiguous().detach(),
    "dropout": lambda x: functional.dropout(x, 0.5, training=False),
}
PINNED = {
    "order of units": lambda x: x.cumsum(1),
    "turned": lambda x: x.flip(1),
    "rolled": lambda x: x + x.roll(1, 1),
    "every second": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "pool over units": lambda x: functional.avg_pool2d(x, (3, 1), stride=1, padding=(1, 0)),
    "weights by number": lambda x: x * torch.arange(UNITS)[:, None],
    "a constant": lambda x: x + torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None],
    "largest unit": lambda x: x * x.argmax(1, keepdim=True),
    "sorted": lambda x: x.sort(1).values,
    "looked up": lambda x: x[:, torch.tensor([0, 2, 1, 3, 4, 5])],
    "neighbours": lambda x: functional.pad(x[:, None], (0, 0, 1, 1), mode="circular")[:, 0, 1:-1],
    "spectrum": lambda x: torch.fft.rfft(x, UNITS * 2 - 2, dim=1).abs(),
}


class Through(nn.Module):
    """Units, a function of them, and a head; every number of units and places is its own."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.units = nn.Conv1d(2, UNITS, 1)
        shape = function(torch.randn(3, UNITS, 5)).shape
        self.head = nn.Linear(shape[1], 4)

    def forward(self, x):
        return self.head(self.function(self.units(x)).transpose(1, 2))


@pytest.mark.parametrize("name", MOVES)
def test_units_move_through(name):
    groups = find_neuron_groups(Through(MOVES[name]), torch.randn(3, 2, 5))
    assert not groups.dropped, str(groups)
    expected = {"view": [2, 3]}.get(name, [UNITS])
    assert list(groups.sizes().values()) == expected, str(groups)
    assert groups.blocks_on("head.weight", 1)


@pytest.mark.parametrize("name", PINNED)
def test_units_are_pinned(name):
    groups = find_neuron_groups(Through(PINNED[name]), torch.randn(3, 2, 5))
    assert (len(groups), groups.dropped) == (0, ()), str(groups)
    assert any("units.weight:0" in pin.tensors for pin in groups.pins)


PIECES = {
    "select": (lambda x: x[:, 2], [2, 3]),
    "slice": (lambda x: x[:, 1:4] * 2, [3, 2]),
    "split": (
        lambda x: x.split([2, 4], 1)[0] + x.split([2, 4], 1)[1].mean(1, keepdim=True),
        [2, 4],
    ),
    "halves are tied": (lambda x: functional.glu(x, 1), [3]),
    "pad units": (lambda x: functional.pad(x, (0, 0, 1, 2)), [6, 2]),
    "concatenation": (lambda x: torch.cat([x, x.mean(1, keepdim=True)], 1), [6]),
    "write into a piece": (lambda x: _halve_first_two(x.clone()), [2, 4]),
    "repeat inside": (lambda x: x.repeat_interleave(2, 1), [6, 2]),
}


def _halve_first_two(x):
    x[:, :2] *= 0.5
    return x


@pytest.mark.parametrize("name", PIECES)
def test_pieces_move_on_their_own(name):
    function, expected = PIECES[name]

    def with_places(x):
        result = function(x)
        return result if result.dim() == 3 else result[:, None]

    groups = find_neuron_groups(Through(with_places), torch.randn(3, 2, 5))
    assert not groups.dropped, str(groups)
    assert list(groups.sizes().values()) == expected, str(groups)


def test_groups_of_channels_that_do_not_divide_each_other_are_pinned():
    model = nn.Sequential(
        nn.Conv1d(2, 12, 1),
        nn.GroupNorm(3, 12),
        nn.Conv1d(12, 12, 1, groups=2),
        nn.Conv1d(12, 3, 1),
    )
    groups = find_neuron_groups(model, torch.randn(3, 2, 5))
    assert not groups.dropped
    assert all(block.tensor not in {"0.weight", "1.weight"} for block in groups.blocks)


def test_pixel_shuffle_keeps_the_channels_that_stay_channels():
    model = nn.Sequential(nn.Conv2d(2, 12, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(3, 2, 1))
    groups = find_neuron_groups(model, torch.randn(3, 2, 4, 4))
    assert groups.sizes() == {"0.weight:0": 3}
    assert groups.blocks_on("0.weight")[0].factors == ("0.weight:0", 4)


class SharedHeads(nn.Module):
    """Two heads of keys and values for four of queries."""

    def __init__(self):
        super().__init__()
        self.query, self.output = nn.Linear(5, 4 * 3), nn.Linear(4 * 7, 2)
        self.key, self.value = nn.Linear(5, 2 * 3), nn.Linear(5, 2 * 7)

    def forward(self, x):
        def heads(layer, size):
            return layer(x).unflatten(-1, (-1, size)).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            heads(self.query, 3), heads(self.key, 3), heads(self.value, 7), enable_gqa=True
        )
        return self.output(mixed.transpose(1, 2).flatten(2))


def test_attention_with_shared_keys():
    groups = find_neuron_groups(SharedHeads(), torch.randn(2, 4, 5))
    heads = "query.weight:0/groups"
    assert [(group.size, group.parents) for group in groups.groups] == [
        (2, ()),  # heads of keys and values
        (2, (heads,)),  # queries of such a head
        (3, (heads,)),  # what queries and keys compare
        (7, (heads,)),  # what values carry
    ]


class Odd(nn.Module):
    """Empty tensors, a rank that its rule does not expect, and a switch of autograd."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        with torch.no_grad():
            nothing = x[:0]
        hidden = torch.cat([self.first(x), self.first(nothing)])
        return self.second(hidden) + torch.arange(3).sum()


def test_odd_uses_of_operators_pin_and_do_not_crash():
    groups = find_neuron_groups(Odd(), torch.randn(3, 5))
    assert (len(groups), groups.dropped) == (0, ())
    assert {"a tensor is empty"} == {pin.reason for pin in groups.pins if "first" in str(pin)} - {
        "the order of the model's inputs is given"
    }
