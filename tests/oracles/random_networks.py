"""Random networks: graphs of layers, views, joins and tied weights, with several outputs.

A network keeps a pool of values; every step takes some of them and adds one. Which steps there are
is drawn once, from a seed, so that a network that fails can be built again.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import weights_of

FEATURES = 5  # of an input
ACTIVATIONS = [torch.relu, torch.tanh, functional.gelu, torch.sigmoid, torch.abs, functional.silu]
ACTIVATIONS += [lambda x: x * x, lambda x: x.clamp(-1, 1), lambda x: functional.leaky_relu(x, 0.3)]


@dataclass
class Value:
    """Where a value of the pool is, and its shape behind the batch: (T, width) or (width,)."""

    index: int
    width: int
    tokens: bool


Step = tuple[Callable[..., Tensor], tuple[int, ...]]


class RandomNetwork(nn.Module):
    """A network of `size` random steps."""

    def __init__(self, seed: int, size: int) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        torch.manual_seed(seed)
        self.parts = nn.ModuleList()
        self.weights = nn.ParameterList()
        self.steps: list[Step] = []
        self.values = [Value(0, FEATURES, tokens=True)]
        self.linears: list[nn.Linear] = []
        self.add_linear(self.values[0])
        for _ in range(size):
            value = self.draw.choice(self.values[1:][-5:])
            self.draw.choice(STEPS)(self, value)
        self.heads = [self.add_head() for _ in range(self.draw.randint(1, 3))]
        self.training_head = self.add_head() if self.draw.random() < 0.3 else None
        self.wrap = self.draw.choice(["tuple", "dict", "nested"])

    def forward(self, x: Tensor) -> Any:
        pool = [x]
        for function, taken in self.steps:
            pool.append(function(self, *(pool[index] for index in taken)))
        heads = [*self.heads]
        if self.training and self.training_head is not None:
            heads.append(self.training_head)
        outputs = [pool[index] for index in heads]
        if self.wrap == "dict":
            return {"logits": outputs[0], **{f"other{n}": v for n, v in enumerate(outputs[1:])}}
        return tuple(outputs) if self.wrap == "tuple" else [outputs[0], {"rest": outputs[1:]}]

    # How steps are added

    def add(
        self, function: Callable[..., Tensor], *taken: Value, width: int, tokens: bool
    ) -> Value:
        """Note a step and the value that it makes."""
        self.steps.append((function, tuple(value.index for value in taken)))
        self.values.append(Value(len(self.steps), width, tokens))
        return self.values[-1]

    def part(self, module: nn.Module) -> Callable[..., Tensor]:
        """Keep a module, and return a function that calls it."""
        number = len(self.parts)
        self.parts.append(module)
        return lambda net, *inputs: net.parts[number](*inputs)

    def weight(self, *sizes: int) -> int:
        """Keep a parameter, and return its number."""
        self.weights.append(nn.Parameter(torch.randn(*sizes) * 0.5))
        return len(self.weights) - 1

    def width(self) -> int:
        """A width that can often be divided."""
        return self.draw.choice([3, 4, 6, 8, 8, 12])

    def add_linear(self, value: Value, width: int | None = None) -> Value:
        """A linear layer to a new width."""
        layer = nn.Linear(value.width, width or self.width(), bias=self.draw.random() < 0.7)
        self.linears.append(layer)
        return self.add(self.part(layer), value, width=layer.out_features, tokens=value.tokens)

    def add_head(self) -> int:
        """An output: a linear layer on some value."""
        return self.add_linear(self.draw.choice(self.values[1:][-6:]), 2).index

    def like(self, value: Value) -> Value:
        """Another value of the same shape, made if there is none."""
        same = [v for v in self.values[1:] if (v.width, v.tokens) == (value.width, value.tokens)]
        if len(same) > 1 and self.draw.random() < 0.7:
            return self.draw.choice(same)
        others = [v for v in self.values if v.tokens == value.tokens]
        return self.add_linear(self.draw.choice(others), value.width)


def _same(net: RandomNetwork, value: Value, function: Callable[..., Tensor], *more: Value) -> None:
    net.add(function, value, *more, width=value.width, tokens=value.tokens)


def linear(net: RandomNetwork, value: Value) -> None:
    net.add_linear(value)


def activation(net: RandomNetwork, value: Value) -> None:
    function = net.draw.choice(ACTIVATIONS)
    _same(net, value, lambda _, x: function(x))


def in_place(net: RandomNetwork, value: Value) -> None:
    size = net.draw.randint(1, value.width)
    functions = [
        lambda _, x: x.clone().mul_(0.5).relu_(),
        lambda _, x: x.clone().masked_fill_(x > 0.5, 0.0),
        lambda _, x: torch.zeros_like(x).copy_(x).add_(1.0),
        lambda _, x: _written(x, size),
    ]
    _same(net, value, net.draw.choice(functions))


def _written(x: Tensor, size: int) -> Tensor:
    result = x.clone()
    result[..., :size] *= 0.5
    return result


def normalisation(net: RandomNetwork, value: Value) -> None:
    kind = net.draw.choice(["layer", "rms", "softmax", "unit", "channels"])
    if kind == "softmax":
        _same(net, value, lambda _, x: x.softmax(-1))
    elif kind == "unit":
        _same(net, value, lambda _, x: functional.normalize(x, dim=-1))
    elif kind == "channels" and not value.tokens:
        _same(net, value, net.part(nn.BatchNorm1d(value.width)))
    else:
        layer = nn.RMSNorm(value.width) if kind == "rms" else nn.LayerNorm(value.width)
        _same(net, value, net.part(layer))


def join(net: RandomNetwork, value: Value) -> None:
    other = net.like(value)
    functions = [
        lambda _, x, y: x + y,
        lambda _, x, y: x * y,
        lambda _, x, y: x - 0.5 * y,
        lambda _, x, y: torch.maximum(x, y),
        lambda _, x, y: torch.where(x > 0, x, y),
        lambda _, x, y: torch.stack([x, y]).mean(0),
        lambda _, x, y: torch.lerp(x, y, 0.3),
    ]
    _same(net, value, net.draw.choice(functions), other)


def concatenation(net: RandomNetwork, value: Value) -> None:
    others = [v for v in net.values[1:] if v.tokens == value.tokens and v.width + value.width < 40]
    other = net.draw.choice(others) if others else net.like(value)
    net.add(
        lambda _, x, y: torch.cat([x, y], -1),
        value,
        other,
        width=value.width + other.width,
        tokens=value.tokens,
    )


def piece(net: RandomNetwork, value: Value) -> None:
    start = net.draw.randint(0, value.width - 1)
    stop = net.draw.randint(start + 1, value.width)
    width = stop - start
    net.add(lambda _, x: x[..., start:stop], value, width=width, tokens=value.tokens)


def halves(net: RandomNetwork, value: Value) -> None:
    if value.width % 2:
        return
    half = value.width // 2
    functions = [
        lambda _, x: functional.glu(x, -1),
        lambda _, x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1].sigmoid(),
        lambda _, x: x[..., ::2] + x[..., 1::2],
        lambda _, x: x.unflatten(-1, (2, half)).sum(-2),
        lambda _, x: x.unflatten(-1, (half, 2)).amax(-1),
    ]
    net.add(net.draw.choice(functions), value, width=half, tokens=value.tokens)


def order(net: RandomNetwork, value: Value) -> None:
    functions = [
        lambda _, x: x.cumsum(-1),
        lambda _, x: x.flip(-1) + x,
        lambda _, x: x.roll(1, -1),
        lambda _, x: x.sort(-1).values,
        lambda _, x: x + torch.arange(x.shape[-1]).to(x),
        lambda _, x: x * functional.one_hot(x.argmax(-1), x.shape[-1]).to(x),
    ]
    _same(net, value, net.draw.choice(functions))


def own_weights(net: RandomNetwork, value: Value) -> None:
    if net.draw.random() < 0.5:
        first, second = net.weight(value.width), net.weight(value.width)
        _same(net, value, lambda n, x: x * n.weights[first] + n.weights[second])
        return
    experts, hidden = net.draw.choice([2, 3]), net.width()
    up, down = net.weight(experts, hidden, value.width), net.weight(experts, value.width, hidden)
    router = net.weight(experts, value.width)

    def mixture(n: RandomNetwork, x: Tensor) -> Tensor:
        shares = (x @ n.weights[router].T).softmax(-1)
        inner = torch.einsum("...i,ehi->...eh", x, n.weights[up]).relu()
        return torch.einsum("...eh,eih,...e->...i", inner, n.weights[down], shares)

    _same(net, value, mixture)


def tied(net: RandomNetwork, value: Value) -> None:
    """The weight of an earlier layer once more: as it is, or transposed."""
    usable = [
        (number, turned)
        for number, layer in enumerate(net.linears)
        for turned in (False, True)
        if (layer.out_features if turned else layer.in_features) == value.width
    ]
    if not usable:
        return
    number, turned = net.draw.choice(usable)
    layer = net.linears[number]
    width = layer.in_features if turned else layer.out_features
    where = next(n for n, part in enumerate(net.parts) if part is layer)
    if net.draw.random() < 0.3:  # over the same memory
        view = layer.weight.data.T if turned else layer.weight.data
        other = nn.Linear(value.width, width, bias=False)
        other.weight = nn.Parameter(view)
        net.add(net.part(other), value, width=width, tokens=value.tokens)
        return

    def again(n: RandomNetwork, x: Tensor) -> Tensor:
        weight = n.parts[where].weight
        return functional.linear(x, weight.T if turned else weight)

    net.add(again, value, width=width, tokens=value.tokens)


def attention(net: RandomNetwork, value: Value) -> None:
    if not value.tokens:
        return
    heads, size = net.draw.choice([1, 2, 3]), net.draw.choice([2, 4])
    memory = net.draw.choice([v for v in net.values[1:] if v.tokens])
    fused, causal = net.draw.random() < 0.5, net.draw.random() < 0.3
    kernel = net.draw.random() < 0.5
    if fused:
        memory, layer = value, nn.Linear(value.width, 3 * heads * size)
        project = net.part(layer)
    else:
        parts = [net.part(nn.Linear(v.width, heads * size)) for v in (value, memory, memory)]
    output = net.part(nn.Linear(heads * size, value.width))

    def attend(n: RandomNetwork, x: Tensor, y: Tensor) -> Tensor:
        if fused:
            q, k, v = project(n, x).unflatten(-1, (3, heads, size)).permute(2, 0, 3, 1, 4)
        else:
            given = zip(parts, (x, y, y), strict=True)
            q, k, v = (p(n, i).unflatten(-1, (heads, size)).transpose(1, 2) for p, i in given)
        if kernel:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        else:
            mixed = (q @ k.transpose(-1, -2) / size**0.5).softmax(-1) @ v
        return output(n, mixed.transpose(1, 2).flatten(2))

    _same(net, value, attend, memory)


def recurrence(net: RandomNetwork, value: Value) -> None:
    units = net.width()
    if value.tokens:
        kind = net.draw.choice([nn.LSTM, nn.GRU, nn.RNN])
        both, layers = net.draw.random() < 0.3, net.draw.choice([1, 1, 2])
        layer = net.part(kind(value.width, units, layers, batch_first=True, bidirectional=both))
        net.add(lambda n, x: layer(n, x)[0], value, width=units * (1 + both), tokens=True)
    else:
        cell = net.part(net.draw.choice([nn.GRUCell, nn.RNNCell])(value.width, units))
        net.add(lambda n, x: cell(n, x, cell(n, x)), value, width=units, tokens=False)


def convolution(net: RandomNetwork, value: Value) -> None:
    if not value.tokens:
        return
    groups = net.draw.choice([g for g in (1, 1, 2, value.width) if value.width % g == 0])
    width = groups * net.draw.choice([1, 2, 3])
    layer = net.part(nn.Conv1d(value.width, width, 3, padding=1, groups=groups))
    norm = net.part(net.draw.choice([nn.BatchNorm1d(width), nn.GroupNorm(groups, width)]))
    function = net.draw.choice([nn.Identity(), nn.ReLU(), nn.MaxPool1d(3, 1, 1)])
    net.add(
        lambda n, x: function(norm(n, layer(n, x.transpose(1, 2)))).transpose(1, 2),
        value,
        width=width,
        tokens=True,
    )


def over_tokens(net: RandomNetwork, value: Value) -> None:
    """From tokens to one row, or back."""
    if value.tokens:
        functions = [
            lambda _, x: x.mean(1),
            lambda _, x: x.amax(1),
            lambda _, x: x[:, 0],
            lambda _, x: x.std(1),
        ]
        net.add(net.draw.choice(functions), value, width=value.width, tokens=False)
        return
    others = [v for v in net.values[1:] if v.tokens and v.width == value.width]
    other = net.draw.choice(others) if others else net.add_linear(net.values[0], value.width)
    functions = [lambda _, x, y: x[:, None] + y, lambda _, x, y: torch.sigmoid(x)[:, None] * y]
    net.add(net.draw.choice(functions), value, other, width=value.width, tokens=True)


def mixed_views(net: RandomNetwork, value: Value) -> None:
    """Heads are made, treated alone, and put together again."""
    parts = [count for count in (2, 3, 4) if value.width % count == 0]
    if not parts:
        return
    count = net.draw.choice(parts)
    functions = [
        lambda _, x: x.unflatten(-1, (count, -1)).softmax(-1).flatten(-2),
        lambda _, x: x.unflatten(-1, (count, -1)).softmax(-2).flatten(-2),
        lambda _, x: x.unflatten(-1, (count, -1)).transpose(-1, -2).flatten(-2),
        lambda _, x: (
            x.reshape(*x.shape[:-1], count, -1).sub(x.mean(-1, keepdim=True)[..., None]).flatten(-2)
        ),
        lambda _, x: x.repeat_interleave(count, -1).unflatten(-1, (-1, count)).sum(-1),
    ]
    _same(net, value, net.draw.choice(functions))


def chance(net: RandomNetwork, value: Value) -> None:
    _same(net, value, net.part(nn.Dropout(0.3)))


def bilinear(net: RandomNetwork, value: Value) -> None:
    other, width = net.like(value), net.width()
    layer = net.part(nn.Bilinear(value.width, other.width, width))
    net.add(layer, value, other, width=width, tokens=value.tokens)


STEPS: list[Callable[[RandomNetwork, Value], None]] = [
    linear,
    linear,
    linear,
    activation,
    activation,
    in_place,
    normalisation,
    join,
    join,
    concatenation,
    piece,
    halves,
    order,
    own_weights,
    tied,
    tied,
    attention,
    recurrence,
    convolution,
    over_tokens,
    mixed_views,
    chance,
    bilinear,
]


def random_network(seed: int) -> tuple[RandomNetwork, Tensor]:
    """A network, and an example of its input."""
    network = RandomNetwork(seed, 2 + seed % 12)
    return network, torch.randn(3, 4, FEATURES, generator=torch.Generator().manual_seed(seed))


def largest_error(network: RandomNetwork, groups: NeuronGroups, seed: int) -> float:
    """How far outputs move by permutations, in float64, with other weights, inputs and sizes.

    In both modes; relative to the largest value of an output. Dropout is off.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    views = _views(weights_of(network))
    network = copy.deepcopy(network).double()
    shared = {
        name: value + 0.3 * torch.rand(value.shape, generator=generator).to(value)
        if value.is_floating_point()
        else value
        for name, value in weights_of(network).items()
    }
    for name, (whole, turned) in views.items():
        shared[name] = shared[whole].T if turned else shared[whole]
    errors = [0.0]
    for training, (batch, tokens) in ((False, (2, 6)), (True, (5, 3))):
        network.train(training)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        x = torch.randn(batch, tokens, FEATURES, generator=generator).double() * 1.5
        before = _outputs(network, shared, x)
        for permutation in (Permutation.random(groups, seed=seed + n) for n in range(2)):
            after = _outputs(network, permutation.apply(shared), x)
            assert len(after) == len(before)
            errors += [
                float((new - old).abs().max() / old.abs().max().clamp_min(1e-12))
                for new, old in zip(after, before, strict=True)
            ]
    return float(torch.tensor(errors).max())  # NaN if one of them is


def _views(weights: dict[str, Tensor]) -> dict[str, tuple[str, bool]]:
    """The weights over the memory of an earlier one: its name, and whether they are transposed."""
    first: dict[int, str] = {}
    views = {}
    for name, value in weights.items():
        whole = first.setdefault(value.data_ptr(), name)
        if whole != name and value.numel() > 1:
            other = weights[whole]
            turned = value.shape != other.shape or value.stride() != other.stride()
            views[name] = whole, turned
    return views


def _outputs(network: RandomNetwork, weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    given = {name: value.clone() for name, value in weights.items()}
    with torch.no_grad():
        result = torch.func.functional_call(network, given, (x,))
    if isinstance(result, dict):
        return list(result.values())
    if isinstance(result, tuple):
        return list(result)
    return [result[0], *result[1]["rest"]]
