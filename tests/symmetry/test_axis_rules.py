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
    "order of places": lambda x: x.cumsum(-1) + x.flip(-1).roll(1, -1) + x.sort(-1).values,
    "largest place": lambda x: x + x.max(-1, keepdim=True).values,
    "double": lambda x: x.double().to(x.dtype).type_as(x).contiguous().detach(),
    "dropout": lambda x: functional.dropout(x, 0.5, training=False),
    "the best of all": lambda x: x * functional.one_hot(x.argmax(1), UNITS).transpose(1, 2),
    "the two best": lambda x: (
        x * functional.one_hot(x.topk(2, 1).indices, UNITS).sum(1).transpose(1, 2)
    ),
    "put back": lambda x: torch.zeros_like(x).scatter(1, x.topk(2, 1).indices, 1.0) * x,
    "largest of clipped values": lambda x: x + x.relu().max(1, keepdim=True).values,
    "best of clipped values and others": lambda x: (
        x * functional.one_hot((x.relu() + x).argmax(1), UNITS).transpose(1, 2)
    ),
    "the best of those that are left": lambda x: x * _best(x.masked_fill(_best(x).bool(), -9.0)),
    "order undone": lambda x: x.sort(1).values.mean(1, keepdim=True) + x,
    "gathered": lambda x: x.gather(1, x.topk(2, 1).indices).sum(1, keepdim=True) + x,
    "median, and its unit": lambda x: (
        x.gather(1, x.nanmedian(1, keepdim=True).indices) + x.nanmedian(1, keepdim=True).values + x
    ),
    "gathered elsewhere": lambda x: x.relu().gather(1, x.argmax(1, keepdim=True)) + x,
    "a table of units": lambda x: (
        x + x.mean((0, 2))[x.argmax(1)][:, None] + x.mean((0, 2))[x.argmin(1).flatten()].mean()
    ),
    "places by number": lambda x: (
        x[:, :, torch.tensor([0, 0, 3])] + x.index_select(-1, torch.tensor([4, 2, 2]))
    ),
    "a lower triangle of places": lambda x: x @ x.new_ones(5, 5).tril(),
    "differences of places": lambda x: x.diff(dim=-1),
    "a grid": lambda x: x + torch.meshgrid(torch.arange(5.0), torch.ones(6), indexing="xy")[0],
    "one of several constants": lambda x: x * torch.tensor([2.0, 3.0])[1] + torch.eye(5)[0, :5],
    "only its shape": lambda x: x + torch.ones(x[:, 0].shape[0], 1, 1),
    "equal numbers for all units": lambda x: x + torch.zeros(UNITS, 1).cumsum(1) + x.new_ones(1),
    "written into zeros": lambda x: _written(x),
}
PINNED = {
    "order of units": lambda x: x.cumsum(1),
    "turned": lambda x: x.flip(1),
    "rolled": lambda x: x + x.roll(1, 1),
    "pool over units": lambda x: functional.avg_pool2d(x, (3, 1), stride=1, padding=(1, 0)),
    "weights by number": lambda x: x * torch.arange(UNITS)[:, None],
    "a constant": lambda x: x + torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None],
    "largest unit": lambda x: x * x.argmax(1, keepdim=True),
    "first of the units that are zero": lambda x: (
        x * functional.one_hot(x.relu().argmax(1), UNITS).transpose(1, 2)
    ),
    "first of the units that a mask makes zero": lambda x: (
        x * functional.one_hot(x.masked_fill(x < 0, 0.0).argmax(1), UNITS).transpose(1, 2)
    ),
    "first of the units that are not above": lambda x: (
        x * functional.one_hot((x * (x > 0)).argmax(1), UNITS).transpose(1, 2)
    ),
    "first of the units at a bound": lambda x: (
        x * functional.one_hot(x.clamp(-0.1, 0.1).max(1).indices, UNITS).transpose(1, 2)
    ),
    "units in the order of rounded values": lambda x: (
        x.gather(1, (10 * x.tanh().round()).topk(2, 1).indices).sum(1, keepdim=True) + x
    ),
    "looked up": lambda x: x[:, torch.tensor([0, 2, 1, 3, 4, 5])],
    "neighbours": lambda x: functional.pad(x[:, None], (0, 0, 1, 1), mode="circular")[:, 0, 1:-1],
    "number of the largest unit": lambda x: x * (1 + x.argmax(1, keepdim=True)),
    "one hot by another number": lambda x: (
        x * functional.one_hot(x.argmax(1).clamp(1), UNITS).transpose(1, 2)
    ),
    "one number singled out": lambda x: x * (x.argmax(1, keepdim=True) == 2),
    "number of the median": lambda x: x + x.nanmedian(1, keepdim=True).indices,
    "differences of units": lambda x: x - x.diff(dim=1, prepend=x[:, :1]),
    "a triangle of units": lambda x: torch.ones(UNITS, UNITS).tril() @ x,
    "units by number, and back": lambda x: torch.zeros_like(x).index_add(
        1, torch.tensor([1, 0, 2, 3, 4, 5]), x
    ),
    "spectrum": lambda x: torch.fft.rfft(x, UNITS * 2 - 2, dim=1).abs(),
}


def _best(x):
    """One where the largest unit is."""
    return functional.one_hot(x.argmax(1), UNITS).transpose(1, 2)


def _written(x):
    result = torch.zeros_like(x)
    result[:, :, :3] = x[:, :, 2:]
    return result


def _running(x):
    """Each unit is written to the place behind its own."""
    result = torch.zeros_like(x)
    result[:, 1:] = x[:, :-1]
    return result + x


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
    "every second": (lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1), [3]),
    "nothing left over": (lambda x: torch.cat([x[:, :6] * 2, x[:, 6:] * 3], 1), [6]),
    "every fourth": (lambda x: x[:, ::4], []),
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


def test_units_that_are_written_behind_each_other_stay():
    groups = find_neuron_groups(Through(_running), torch.randn(3, 2, 5))
    assert (len(groups), groups.dropped) == (0, ())


def test_zeros_that_two_layers_share_do_not_tie_them():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x):
            shared = torch.zeros(1, 1).expand(1, 6)
            return self.head(self.first(x) + shared) + (self.second(x) + shared).amax(-1)[..., None]

    assert find_neuron_groups(Apart(), torch.randn(3, 5)).sizes() == {
        "first.weight:0": 6,
        "second.weight:0": 6,
    }


class Fused(nn.Module):
    """Queries, keys and values in one projection, taken out by `split`."""

    def __init__(self, split):
        super().__init__()
        self.split, self.qkv, self.out = split, nn.Linear(5, 3 * 2 * 4), nn.Linear(8, 2)

    def forward(self, x):
        query, key, value = self.split(self.qkv(x))  # each (batch, heads, places, features)
        mixed = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


def _heads(x):
    return x.unflatten(-1, (2, 4)).transpose(1, 2)


FUSED = {
    "chunk, then heads": lambda x: [_heads(part) for part in x.chunk(3, -1)],
    "view, permute, unbind": lambda x: x.view(2, 6, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0),
    "view, permute, index": lambda x: [
        x.view(2, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)[number] for number in (0, -2, 2)
    ],
    "all heads, then slices": lambda x: [
        x.view(2, 6, 6, 4).transpose(1, 2)[:, 2 * n : 2 * n + 2] for n in range(3)
    ],
    "all heads, then split": lambda x: x.view(2, 6, 6, 4).transpose(1, 2).split(2, 1),
    "by turns": lambda x: [
        _heads(part) for part in x.unflatten(-1, (3, 8))[None].transpose(0, -2).squeeze(-2)
    ],
}


@pytest.mark.parametrize("name", FUSED)
def test_what_a_fused_projection_holds_moves_on_its_own(name):
    groups = find_neuron_groups(Fused(FUSED[name]), torch.randn(2, 6, 5))
    assert not groups.dropped
    heads, *inside = groups.groups
    assert (heads.size, [(g.size, g.parents) for g in inside]) == (2, [(4, (heads.name,))] * 2)


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("given", [False, True], ids=["from zeros", "from a state"])
def test_recurrent_units_move_by_layer_and_direction(layer, given):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = getattr(nn, layer)(5, 7, num_layers=2, bidirectional=True)
            self.start, self.last, self.head = nn.Linear(2, 7), nn.Linear(7, 3), nn.Linear(14, 3)

        def forward(self, x):
            state = self.start(x[:1, :, :2]).tanh().expand(4, -1, -1) if given else None
            state = (state, state * 0.5) if given and layer == "LSTM" else state
            outputs, ends = self.layer(x, state)
            last = (ends[0] if layer == "LSTM" else ends)[-1]
            return self.head(outputs).mean(0) + self.last(last)

    groups = find_neuron_groups(Recurrent(), torch.randn(6, 2, 5))
    assert not groups.dropped, str(groups)
    assert list(groups.sizes().values()) == ([7] if given else [7] * 4)
    (rows,) = groups.blocks_on("layer.weight_hh_l0", 0)
    gates = {"LSTM": (4,), "GRU": (3,), "RNN": ()}[layer]
    assert rows.factors == (*gates, groups.groups[0].name)
    assert groups.blocks_on("last.weight", 1)[0].factors[0] in {
        block.factors[-1] for block in groups.blocks_on("layer.weight_hh_l1_reverse")
    }


class Experts(nn.Module):
    """Stacked experts, the best of which answers."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(5, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 6, 5)), nn.Parameter(torch.randn(3, 2, 6))

    def forward(self, x):
        chosen = functional.one_hot(self.router(x).argmax(-1), 3)
        hidden = torch.einsum("bi,ehi->beh", x, self.up).relu()
        return (torch.einsum("beh,eoh->beo", hidden, self.down) * chosen[..., None]).sum(1)


def test_each_of_the_stacked_experts_has_its_own_order():
    groups = find_neuron_groups(Experts(), torch.randn(4, 5))
    assert [(group.size, group.parents) for group in groups.groups] == [
        (3, ()),
        (6, (groups.groups[0].name,)),
    ]


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
    """Empty tensors, a view of nothing, and a switch of autograd."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(5, 6)

    def forward(self, x):
        with torch.no_grad():
            nothing = x[:0]
        hidden = torch.cat([self.first(x), self.first(nothing)])
        return self.second(hidden) + self.third(nothing).reshape(0, 3, 2).sum() + torch.arange(2)


def test_empty_tensors_tie_nothing_and_do_not_crash():
    groups = find_neuron_groups(Odd(), torch.randn(3, 5))
    assert groups.sizes() == {"first.weight:0": 4}
    assert any(
        p.reason == "an axis is empty" and "third.weight:0" in p.tensors for p in groups.pins
    )


class Remembering(nn.Module):
    """Keeps what it computed when it ran for the first time, as relative positions are kept."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.table = nn.Linear(5, 4), nn.Linear(4, 2), None

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(5.0)
        return self.second(self.first(x + self.table).relu())


def test_what_a_model_keeps_of_its_tracing_is_not_used_again():
    model = Remembering()
    assert find_neuron_groups(model, torch.randn(3, 5)).sizes() == {"first.weight:0": 4}
    assert model.table is None


def test_a_weight_and_its_length_move_together():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 6, 3))
    groups = find_neuron_groups(
        nn.Sequential(layer, nn.ReLU(), nn.Conv1d(6, 3, 1)), torch.randn(2, 2, 5)
    )
    assert list(groups.sizes().values()) == [6]
    assert len(groups.blocks) == 4
