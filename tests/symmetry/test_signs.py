"""Which neurons may change their sign, and in which tensors."""

import copy
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from cases import CASES, Wired
from slipstream.symmetry.narrow_model import proven_alike
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.proof import check
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import load_weights_, weights_of


def signed_places(groups, name):
    """Where the neurons of a group bring their sign along."""
    return {f"{b.tensor}:{b.axis}[{b.offset}]" for b in groups.blocks_of(name) if name in b.signs}


def plain_places(groups, name):
    return {
        f"{b.tensor}:{b.axis}[{b.offset}]" for b in groups.blocks_of(name) if name not in b.signs
    }


class Transformer(nn.Module):
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
    groups = find_neuron_groups(Transformer(), torch.randint(7, (3, 4)))
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


def test_a_llama_of_transformers():
    network = pytest.importorskip("oracles.network_zoo").NETWORKS["Llama"]
    pytest.importorskip("transformers")
    model = network.build()
    groups = find_neuron_groups(model, network.inputs(model))
    assert not groups.dropped
    layer = "model.layers.1"
    stream = signed_places(groups, "model.embed_tokens.weight:1")
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj"):
        assert f"{layer}.{name}.weight:1[0]" in stream
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert f"{layer}.{name}.weight:0[0]" in stream
    assert plain_places(groups, "model.embed_tokens.weight:1") == {
        f"{name}.weight:0[0]"
        for name in [
            *(
                f"model.layers.{n}.{norm}_layernorm"
                for n in (0, 1)
                for norm in ("input", "post_attention")
            ),
            "model.norm",
        ]
    }
    # Rotary positions pin the features of queries and keys, but a whole head may change its sign.
    assert signed_places(groups, f"{layer}.self_attn.q_proj.weight:0/groups") == {
        f"{layer}.self_attn.{name}_proj.weight:0[0]" for name in "qk"
    }
    assert signed_places(groups, f"{layer}.self_attn.v_proj.weight:0/inside") == {
        *(f"{layer}.self_attn.v_proj.weight:0[0]", f"{layer}.self_attn.o_proj.weight:1[0]")
    }
    assert signed_places(groups, f"{layer}.mlp.gate_proj.weight:0") == {
        *(f"{layer}.mlp.up_proj.weight:0[0]", f"{layer}.mlp.down_proj.weight:1[0]")
    }


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, eps=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-3),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2, eps=1e-3),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2, eps=1e-3),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2, eps=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, eps=1e-3),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, eps=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=1e-3, momentum=0.9, centered=True),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2, t0=1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2, eps=(1e-3, 1e-3)),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


@pytest.fixture(scope="module")
def transformer():
    """A network in which every kind of signed group occurs, and its groups."""
    model = Transformer().double()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.rand(value.shape, generator=torch.Generator().manual_seed(0)))
    return model, find_neuron_groups(model, torch.randint(7, (3, 4)), prove=False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_commutes_with_a_signed_permutation(name, transformer):
    model, groups = transformer
    permutation = Permutation.random(groups, seed=1)
    trained, other = copy.deepcopy(model), copy.deepcopy(model)
    load_weights_(other, permutation.apply(weights_of(model)))
    optimizers = [OPTIMIZERS[name](network.parameters()) for network in (trained, other)]
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        tokens = torch.randint(7, (3, 4), generator=generator)
        labels = torch.randint(5, (12,), generator=generator)
        for network, optimizer in zip((trained, other), optimizers, strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(network(tokens).flatten(0, 1), labels).backward()
            optimizer.step()
    torch.testing.assert_close(permutation.apply(weights_of(trained)), weights_of(other))
    moved = permutation.apply_optimizer_state(optimizers[0].state_dict(), model)
    torch.testing.assert_close(moved, optimizers[1].state_dict())
    optimizers[1].load_state_dict(moved)


def test_a_state_that_lies_along_no_weight_is_refused(transformer):
    model, groups = transformer
    state = {"state": {0: {"d": torch.rand(10), "t": 0.1}}, "param_groups": []}  # of LBFGS
    with pytest.raises(ValueError, match=r"'d' of 'table.weight' has shape \(10,\), the weight"):
        Permutation.random(groups, seed=1).apply_optimizer_state(state, model)


def test_means_over_places_with_orders_of_their_own_are_refused():
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=3))
    model.append(nn.Conv2d(12, 2, 1))
    groups = find_neuron_groups(model, torch.randn(2, 2, 4, 4), prove=False)
    permutation = Permutation.random(groups, seed=0)
    whole = {"state": {2: {"variance": torch.rand(12, 2, 3, 1)}}, "param_groups": []}
    assert permutation.apply_optimizer_state(whole, model)["state"][2]["variance"].shape[0] == 12
    mean = {"state": {2: {"variance": torch.rand(1, 2, 3, 3)}}, "param_groups": []}
    with pytest.raises(ValueError, match="averages entries of which each has an order"):
        permutation.apply_optimizer_state(mean, model)


def test_a_state_of_unknown_sign_is_refused(transformer):
    model, groups = transformer
    names = [name for name, _ in model.named_parameters()]
    permutation = Permutation.random(groups, seed=1)

    def moved(name, value):
        state = {"state": {names.index(name): {"curvature": value}}, "param_groups": []}
        return permutation.apply_optimizer_state(state, model)["state"][names.index(name)]

    with pytest.raises(ValueError, match=r"state 'curvature' of 'o\.weight' is unknown"):
        moved("o.weight", torch.ones(6, 6))
    assert torch.equal(moved("o.weight", -torch.ones(6, 6))["curvature"].abs(), torch.ones(6, 6))
    assert torch.equal(moved("before.weight", torch.ones(6))["curvature"], torch.ones(6))


def test_signs_that_do_not_hold_are_given_up_and_the_order_stays():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    groups = find_neuron_groups(model, torch.randn(6, 4), prove=False)
    forgetful = replace(
        groups,
        blocks=tuple(replace(b, signs=()) if b.tensor == "0.bias" else b for b in groups.blocks),
    )
    checked = check(model, forgetful, torch.randn(6, 4))
    assert checked.groups == groups.without_signs(["0.weight:0"]).groups
    assert checked.blocks == groups.without_signs(["0.weight:0"]).blocks
    (pin,) = checked.dropped
    assert pin.reason.startswith("its neurons keep their signs: with others, a permutation moved")
    assert pin.tensors == ("0.weight:0", "0.bias:0", "2.weight:1")


def test_signs_that_the_twin_gave_up_are_given_up(transformer):
    _, groups = transformer
    stream, *_ = groups.sizes()
    proven = groups.without_signs([stream])
    assert proven_alike(groups, groups, proven) == proven


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


def in_words(self, x):
    """RMSNorm as Hugging Face writes it."""
    return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rms_residual(self, x):
    x = self.first(x)
    x = x + self.down(self.up(in_words(self, x)).relu())
    return self.last(self.norm(x))


def bilinear(self, x):
    return self.last(self.first(x) * self.up(x))


def batch_norm(self, x):
    return self.last(self.statistics(self.first(x)).tanh() ** 3)


def powers(self, x):
    x = self.first(x)
    return self.last(x.abs() - x.square() / 3 + 1), self.down(x.tanh() / 2)


def scaled(self, x):
    x = self.first(x)
    return self.last(x + self.gain * self.down(self.up(self.norm(x)).sin()))


def chosen(self, x):
    x = self.first(x)
    return self.last(torch.where(x.norm(dim=-1, keepdim=True) > 1, x, -x.tanh()))


def shifted(self, x):
    return self.last(self.first(x).tanh() + 0.1)


def lifted(self, x):
    """All neurons are raised by the same number."""
    return self.last(self.first(x).tanh() + x[:, :1])


def keys(self, x):
    queries, keys, values = self.first(x), self.up(x), x
    return functional.scaled_dot_product_attention(queries, keys, values).cos()


def headed(self, x):
    """Heads of one feature, whose keys are never negative."""
    q, k, v = (
        y.T[:, :, None] for y in (self.first(x), self.up(x).relu(), self.down(x[:, :3]).tanh())
    )
    return self.last(functional.scaled_dot_product_attention(q, k, v)[:, :, 0].T)


def picked(self, x):
    """Some examples, some of them twice."""
    first = self.first(x).index_select(0, torch.tensor([2, 0, 2]))
    return self.last(first.reciprocal() + self.up(x)[[0, 3, 5]])


def reused(self, x):
    """One square weight lists the neurons on both of its axes."""
    return self.last(self.down(self.up(self.first(x)).tanh()).tanh() + self.first(x))


def overwritten(self, x):
    """What is read in the end was multiplied through another view of it."""
    x, other = self.first(x), self.up(x)
    x.view(-1, 3).mul_(other)
    return self.last(x)


def normalised(self, x):
    return self.last(functional.normalize(self.first(x), dim=-1))


def double_gated(self, x):
    return self.last(functional.glu(torch.cat([self.first(x), self.up(x)], -1)))


NETWORKS = [
    *(rms_residual, bilinear, batch_norm, powers, scaled, chosen, shifted, keys, reused),
    *(double_gated, overwritten, normalised, lifted, headed, picked),
]


def network(wiring):
    inner = 4 if wiring in {rms_residual, scaled} else 3
    return Wired(
        wiring,
        first=nn.Linear(5, 3),
        up=nn.Linear(
            5 if wiring in {bilinear, keys, double_gated, overwritten, headed, picked} else 3, inner
        ),
        down=nn.Linear(inner, 3),
        last=nn.Linear(3, 2),
        norm=nn.RMSNorm(3),
        gain=nn.Parameter(torch.ones(3)),
        statistics=nn.BatchNorm1d(3),
    )


def examples():
    for wiring in NETWORKS:
        yield wiring.__name__, lambda wiring=wiring: network(wiring), (6, 5)
    for name in ("mlp", "tied_autoencoder", "sequence", "unet", "concat_of_branches"):
        yield name, CASES[name].model, (4, *CASES[name].shape)


EXAMPLES = {name: rest for name, *rest in examples()}


def leaves(outputs):
    return (outputs,) if isinstance(outputs, torch.Tensor) else outputs


def close(first, second):
    return torch.allclose(first, second, rtol=1e-9, atol=1e-12)


def is_gain(block, groups):
    return len(groups.shapes[block.tensor]) == 1 and block.tensor.endswith(("weight", "gain"))


def changes_of_sign_by_hand(model, inputs, groups, name):
    """All sets of blocks in which a group may change its signs, found by trying every set."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        n: torch.rand(v.shape, generator=generator, dtype=torch.float64) + 0.5
        if n.endswith("running_var")
        else torch.randn(v.shape, generator=generator, dtype=torch.float64)
        if v.is_floating_point()
        else v
        for n, v in weights_of(model).items()
    }
    model = model.double().eval()
    before = torch.func.functional_call(model, weights, inputs)
    blocks = groups.blocks_of(name)
    identity = Permutation.identity(groups)
    sign = torch.randint(2, identity.orders[name].shape, generator=generator) * 2 - 1
    sign[..., 0], sign[..., 1] = 1, -1
    signed = tuple(replace(g, signed=g.name == name) for g in groups.groups)
    for choice in product(*([False, True][: 2 - is_gain(b, groups)] for b in blocks)):
        listed = tuple(replace(b, signs=(name,) * c) for b, c in zip(blocks, choice, strict=True))
        others = tuple(replace(b, signs=()) for b in groups.blocks if b not in blocks)
        tried = replace(groups, groups=signed, blocks=others + listed)
        moved = Permutation(tried, identity.orders, {name: sign}).apply(weights)
        after = torch.func.functional_call(model, moved, inputs)
        if all(map(close, leaves(before), leaves(after))):
            yield {block for block, taken in zip(blocks, choice, strict=True) if taken}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_signs_are_those_that_change_most_numbers_and_keep_the_function(name):
    build, shape = EXAMPLES[name]
    model = build()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    groups = find_neuron_groups(model, inputs.float(), prove=False)

    def numbers(blocks):
        return sum(
            math.prod(groups.shapes[b.tensor]) // groups.shapes[b.tensor][b.axis] * groups.length(b)
            for b in blocks
        )

    for group in groups.groups:
        if any(groups[child].signed for child in groups.children_of(group.name)):
            assert not group.signed
            continue
        found = {block for block in groups.blocks_of(group.name) if group.name in block.signs}
        possible = list(changes_of_sign_by_hand(model, inputs, groups, group.name))
        assert found in possible
        # What is overwritten keeps its signs, which is less than would be possible.
        assert numbers(found) == max(map(numbers, possible)) or name == "overwritten"
