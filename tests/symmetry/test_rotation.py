"""Rotations of neuron groups: found, proven, applied, and refused with the reason."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cases import Wired
from slipstream.symmetry.rotation import GroupRotation, nearest_rotation, off_mean
from slipstream.symmetry.rotation_proof import find_rotatable_groups
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import load_weights_, weights_of
from small_transformer import inputs, transformer

STREAM = "embed.weight:0"


def computed(model, weights, x):
    before = {name: value.clone() for name, value in weights_of(model).items()}
    load_weights_(model, weights)
    with torch.no_grad():
        result = model.eval()(x)
    load_weights_(model, before)
    return result


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_stream_and_heads_are_rotated_and_the_function_stays(norm):
    model, x = transformer(norm), inputs()
    found = find_rotatable_groups(model, x)
    assert set(found.names) == {STREAM, "query.weight:0/inside", "value.weight:0/inside"}
    assert found[STREAM].keeps_mean == (norm is nn.LayerNorm)
    assert {n.gain for n in found[STREAM].norms} == {"first.weight", "second.weight", "last.weight"}
    own = weights_of(model)
    other = {name: value + 0.3 for name, value in found.norm_values(own).items()}
    moved = GroupRotation.random(found, seed=3, norms=other).apply(own)
    assert all(torch.equal(moved[name], value) for name, value in other.items())
    assert float((moved["out.weight"] - own["out.weight"]).norm()) > 1
    unseen = torch.randn(9, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(
        computed(model, moved, unseen), computed(model, own, unseen), rtol=0, atol=1e-12
    )


def test_without_norms_to_align_to_gains_stay_folded():
    model, x = transformer(), inputs()
    found, own = find_rotatable_groups(model, x), weights_of(model)
    moved = GroupRotation.identity(found).apply(own)
    assert torch.equal(moved["last.weight"], torch.ones(6).double())
    assert torch.equal(moved["last.bias"], torch.zeros(6).double())
    torch.testing.assert_close(moved["head.weight"], own["head.weight"] * own["last.weight"])
    torch.testing.assert_close(computed(model, moved, x), computed(model, own, x))


def test_keeps_dtype_and_is_read_as_text():
    model = transformer(dtype=torch.float32)
    found = find_rotatable_groups(model, inputs(dtype=torch.float32))
    moved = GroupRotation.random(found, seed=0).apply(weights_of(model))
    assert {value.dtype for value in moved.values()} == {torch.float32}
    assert "embed.weight:0 (6): its mean stays, gains of 3 normalisations are folded" in str(found)
    assert "not rotatable: wide.weight:0: a rotation moved the output" in str(found)
    assert {pin["where"] for pin in found.to_json()["refused"]} >= {"wide.weight:0"}


def refusal(model, x, name, **given):
    found = find_rotatable_groups(model, x, **given)
    assert name not in found.names
    return next(pin.reason for pin in found.refused if pin.where == name)


def test_tied_head_is_refused():
    def wiring(self, x):
        x = self.token(x)
        return nn.functional.linear(self.norm(x + self.two(torch.tanh(self.one(x)))),
                                    self.token.weight)  # fmt: skip

    model = Wired(
        wiring, token=nn.Embedding(9, 6), one=nn.Linear(6, 8), two=nn.Linear(8, 6),
        norm=nn.RMSNorm(6),
    )  # fmt: skip
    reason = refusal(model, torch.arange(8).view(2, 4), "token.weight:1")
    assert "'norm.weight' cannot be moved into linear layers" in reason
    assert "'token.weight', which embedding uses too" in reason


def test_gain_that_no_linear_layer_takes_in_is_refused():
    def added(self, x):
        x = self.embed(x)
        return self.head(x + self.norm(x))

    model = Wired(added, embed=nn.Linear(5, 6), norm=nn.RMSNorm(6), head=nn.Linear(6, 3))
    assert "is followed by add" in refusal(model, inputs(dtype=torch.float32), STREAM)


def test_bias_without_a_bias_to_take_it_in_is_refused():
    model = transformer(bias=False)
    assert "comes with the bias 'first.bias'" in refusal(model, inputs(), STREAM)


def test_shared_reader_and_batch_normalisation_are_refused():
    def shared(self, x):
        x = self.embed(x)
        x = x + self.layer(self.first(x))
        return self.head(x + self.layer(self.second(x)))

    model = Wired(
        shared, embed=nn.Linear(5, 6), first=nn.RMSNorm(6), second=nn.RMSNorm(6),
        layer=nn.Linear(6, 6), head=nn.Linear(6, 3),
    )  # fmt: skip
    reason = refusal(model, inputs(dtype=torch.float32), STREAM)
    assert "'layer.weight', which linear uses too" in reason
    batch = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    reason = refusal(batch, torch.randn(8, 5), "0.weight:0")
    assert "batch normalisation" in reason


def test_what_the_example_does_not_test_is_refused():
    model = transformer(nn.RMSNorm)
    groups = find_neuron_groups(model, inputs())
    reason = refusal(model, inputs()[:, :1], "query.weight:0/inside", groups=groups)
    assert "could not be tested on 'query.weight'" in reason


def test_nearest_rotation_undoes_a_rotation_and_keeps_the_mean():
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)
    turn = nearest_rotation(draw, keeps_mean=True)
    rows = torch.randn(5, 40, generator=generator, dtype=torch.float64)
    found = nearest_rotation(turn @ rows @ rows.T, keeps_mean=True)
    torch.testing.assert_close(found, turn)
    ones = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(turn @ ones, ones.expand(2, 5))
    basis = off_mean(5)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(basis.sum(0), torch.zeros(4, dtype=torch.float64))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="meta device and hold no values to prove rotations"):
        find_rotatable_groups(nn.Linear(3, 3, device="meta"), torch.ones(2, 3))
    model, x = transformer(), inputs()
    found, own = find_rotatable_groups(model, x), weights_of(model)
    rotation = GroupRotation.random(found, seed=0)
    with pytest.raises(ValueError, match="must have shape \\(6, 6\\), got \\(5, 5\\)"):
        replace(rotation, matrices={STREAM: torch.eye(5)})
    with pytest.raises(ValueError, match="is not orthogonal"):
        replace(rotation, matrices={STREAM: 2 * torch.eye(6)})
    with pytest.raises(ValueError, match=r"'first.weight'.* has an entry of 0.0e"):
        replace(rotation, norms={n: 0 * v for n, v in found.norm_values(own).items()})
    with pytest.raises(ValueError, match=r"'embed.bias' is missing"):
        rotation.apply({name: value for name, value in own.items() if name != "embed.bias"})
    with pytest.raises(KeyError, match="No rotatable group is named 'wide'"):
        found["wide"]
