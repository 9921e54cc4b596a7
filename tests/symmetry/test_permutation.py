from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from slipstream.symmetry.neuron_groups import Block, NeuronGroup, NeuronGroups
from slipstream.symmetry.permutation import Permutation

PLAIN = NeuronGroups(
    (NeuronGroup("units", 3),),
    (
        Block("first", 0, 0, ("units",)),
        Block("second", 1, 0, ("units", 2)),
        Block("joined", 0, 2, ("units",)),
    ),
    {"first": (3, 4), "second": (2, 6), "joined": (6,), "other": (5,)},
)
# The second weight is of a convolution with three groups.
GROUPED = NeuronGroups(
    (
        NeuronGroup("groups", 3),
        NeuronGroup("in", 2, ("groups",)),
        NeuronGroup("out", 4, ("groups",)),
    ),
    (
        Block("w0", 0, 0, ("groups", "in")),
        Block("w1", 0, 0, ("groups", "out")),
        Block("w1", 1, 0, ("in",)),
        Block("w2", 1, 0, ("groups", "out")),
    ),
    {"w0": (6, 5, 1, 1), "w1": (12, 2, 3, 3), "w2": (7, 12, 1, 1)},
)


def signed(groups, *plain):
    """The same groups with signs, in all blocks but those on the tensors `plain`."""
    return replace(
        groups,
        groups=tuple(replace(group, signed=True) for group in groups.groups),
        blocks=tuple(
            block
            if block.tensor in plain
            else replace(block, signs=tuple(f for f in block.factors if isinstance(f, str)))
            for block in groups.blocks
        ),
    )


SIGNED = signed(PLAIN, "joined")
SIGNED_GROUPED = signed(GROUPED)
BOTH = pytest.mark.parametrize(
    "groups",
    [PLAIN, GROUPED, SIGNED, SIGNED_GROUPED],
    ids=["plain", "grouped", "signed", "signed_grouped"],
)


def weights_for(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in groups.shapes.items()
    }


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_place_i_receives_neuron_order_i():
    moved = Permutation(PLAIN, {"units": torch.tensor([2, 0, 1])}).apply(
        {
            "first": torch.arange(3)[:, None].expand(3, 4),
            "second": torch.arange(6).expand(2, 6),
            "joined": torch.arange(6),
            "other": torch.arange(5),
        }
    )
    assert moved["first"][:, 0].tolist() == [2, 0, 1]
    assert moved["second"][1].tolist() == [4, 5, 0, 1, 2, 3]
    assert moved["joined"].tolist() == [0, 1, 4, 2, 3, 5]
    assert moved["other"].tolist() == [0, 1, 2, 3, 4]


def test_place_i_receives_its_sign_times_that_neuron():
    permutation = Permutation(
        SIGNED, {"units": torch.tensor([2, 0, 1])}, {"units": torch.tensor([1, -1, 1])}
    )
    weights = {
        "first": torch.arange(1, 4)[:, None].expand(3, 4),
        "second": torch.arange(1.0, 7).expand(2, 6).bfloat16(),
        "joined": torch.arange(6),
    }
    moved = permutation.apply(weights)
    assert moved["first"][:, 0].tolist() == [3, -1, 2]
    assert moved["second"][1].tolist() == [5, 6, -1, -2, 3, 4]
    assert moved["joined"].tolist() == [0, 1, 4, 2, 3, 5]
    assert {n: value.dtype for n, value in moved.items()} == {
        n: value.dtype for n, value in weights.items()
    }
    assert permutation.factors("second")[1].tolist() == [1, 1, -1, -1, 1, 1]
    assert permutation.factors("joined") == {}
    assert Permutation.identity(SIGNED).factors("second") == {}


def test_signs_that_depend_on_the_place_of_a_parent():
    orders = Permutation.identity(SIGNED_GROUPED).orders
    signs = {"in": torch.tensor([[1, 1], [-1, 1], [1, 1]])}
    factors = Permutation(SIGNED_GROUPED, orders, signs).factors("w1")
    assert list(factors) == [1]
    # Rows 4 to 7 of the weight are those of the second group of the convolution.
    assert factors[1].shape == (12, 2, 1, 1)
    assert (factors[1] == -1).nonzero()[:, :2].tolist() == [[4, 0], [5, 0], [6, 0], [7, 0]]


def test_a_sign_alone_counts_as_moved():
    orders = Permutation.identity(SIGNED).orders
    flipped = Permutation(SIGNED, orders, {"units": torch.tensor([1, -1, 1])})
    assert flipped.moved() == pytest.approx(1 / 3)
    assert not flipped.same_as(Permutation.identity(SIGNED))
    plus = Permutation(SIGNED, orders, {"units": torch.ones(3)})
    assert plus.same_as(Permutation.identity(SIGNED))
    assert Permutation.identity(SIGNED).same_as(plus)


@BOTH
def test_inverse_and_composition(groups):
    weights = weights_for(groups)
    first, second = (Permutation.random(groups, seed=seed) for seed in (1, 2))
    assert_equal(first.invert().apply(first.apply(weights)), weights)
    assert_equal(second.after(first).apply(weights), second.apply(first.apply(weights)))
    assert first.invert().after(first).same_as(Permutation.identity(groups))
    assert first.after(first.invert()).same_as(Permutation.identity(groups))
    assert Permutation.identity(groups).moved() == 0 < first.moved()
    assert not first.same_as(second)
    assert second.after(Permutation.identity(groups)).same_as(second)


@BOTH
def test_a_part_of_the_weights_moves_as_in_the_whole(groups):
    weights = weights_for(groups)
    permutation = Permutation.random(groups, seed=0)
    moved = permutation.apply(weights)
    for name in weights:
        assert_equal(permutation.apply({name: weights[name]}), {name: moved[name]})


@pytest.mark.parametrize(
    ("groups", "bend"),
    [(GROUPED, torch.relu), (SIGNED_GROUPED.without_signs(["groups"]), torch.tanh)],
    ids=["plain", "signed"],
)
def test_orders_of_a_grouped_convolution(groups, bend):
    def network(weights, x):
        x = bend(functional.conv2d(x, weights["w0"]))
        x = bend(functional.conv2d(x, weights["w1"], groups=3))
        return functional.conv2d(x, weights["w2"])

    x = torch.randn(2, 5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    weights = weights_for(GROUPED)
    for seed in range(5):
        moved = Permutation.random(groups, seed=seed).apply(weights)
        torch.testing.assert_close(network(weights, x), network(moved, x))


@BOTH
def test_a_file_holds_the_groups_too(groups, tmp_path):
    permutation = Permutation.random(groups, seed=3)
    permutation.save(tmp_path / "source_to_target.safetensors")
    loaded = Permutation.load(tmp_path / "source_to_target.safetensors")
    assert loaded.same_as(permutation)
    assert loaded.groups == groups


def test_a_file_of_the_first_format_is_read(tmp_path):
    text = PLAIN.to_json().replace('"format": 2', '"format": 1')
    text = text.replace(',\n   "signed": false', "").replace(',\n   "signs": []', "")
    assert "sign" not in text
    path = tmp_path / "00000001.safetensors"
    save_file({"units": torch.tensor([2, 0, 1])}, path, metadata={"neuron_groups": text})
    loaded = Permutation.load(path)
    assert loaded.groups == PLAIN
    assert loaded.same_as(Permutation(PLAIN, {"units": torch.tensor([2, 0, 1])}))


def test_the_same_seed_draws_the_same_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    drawn = [Permutation.random(GROUPED, seed=5) for _ in range(2)]
    assert drawn[0].same_as(drawn[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_signs_leave_the_orders_that_a_seed_draws_as_they_are():
    plain, signs = (Permutation.random(groups, seed=5) for groups in (GROUPED, SIGNED_GROUPED))
    assert_equal(plain.orders, signs.orders)
    assert {name: sign.dtype for name, sign in signs.signs.items()} == dict.fromkeys(
        ["groups", "in", "out"], torch.int8
    )
    assert all(bool((sign == 1).any() & (sign == -1).any()) for sign in signs.signs.values())


def test_optimiser_state_of_another_model_is_refused():
    model = nn.Linear(2, 2)
    state = {"state": {4: {}}, "param_groups": []}
    groups = NeuronGroups((), (), {})
    with pytest.raises(ValueError, match="of 5 parameters, the model has 2"):
        Permutation.identity(groups).apply_optimizer_state(state, model)


def test_bad_orders_and_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"order of 'units' must have shape \(3,\), got nothing"):
        Permutation(PLAIN, {})
    with pytest.raises(ValueError, match=r"must have shape \(3,\), got \(2,\)"):
        Permutation(PLAIN, {"units": torch.tensor([1, 0])})
    with pytest.raises(ValueError, match="does not list every neuron once"):
        Permutation(PLAIN, {"units": torch.tensor([1, 1, 0])})
    order = {"units": torch.arange(3)}
    with pytest.raises(ValueError, match="'units', which is no signed neuron group"):
        Permutation(PLAIN, order, {"units": torch.ones(3)})
    with pytest.raises(ValueError, match=r"\+1 or -1, of shape \(3,\), got \(2,\)"):
        Permutation(SIGNED, order, {"units": torch.ones(2)})
    with pytest.raises(ValueError, match=r"with values from 0\.0 to 1\.0"):
        Permutation(SIGNED, order, {"units": torch.tensor([1.0, 0.0, 1.0])})
    identity = Permutation.identity(PLAIN)
    with pytest.raises(ValueError, match="no tensor named 'third'"):
        identity.apply({"third": torch.ones(3)})
    with pytest.raises(ValueError, match=r"'first' has shape \(4, 3\), expected \(3, 4\)"):
        identity.apply({"first": torch.ones(4, 3)})
    with pytest.raises(ValueError, match="different neuron groups"):
        identity.after(Permutation.identity(GROUPED))
    save_file({"units": torch.arange(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="holds no permutation"):
        Permutation.load(tmp_path / "plain.safetensors")
