"""Porting in memory: what is carried, what is chosen, what is told, what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, classification_loss, evaluate
from slipstream.porting import FineTune, PortPlan, port_fine_tune
from slipstream.porting.plan import UNLABELLED
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer import SignWeights, TransferPlan, transfer_trajectory
from slipstream.weights import clone, difference, displace, inner, norm, parameter_names, weights_of
from transfer.small_runs import batches, network, trained


def fine_tune(*, seed=1, batchnorm=True):
    """A trained base, its fine-tune on other labels, and the groups of the network."""
    model = network(seed, batchnorm=batchnorm)
    base = clone(trained(model, steps=20)[-1].weights)
    tuned = clone(trained(model, steps=8, lr=0.05)[-1].weights)
    return (
        base,
        tuned,
        find_neuron_groups(network(0, batchnorm=batchnorm), batches()[0][0], signs=False),
    )


@pytest.fixture(scope="module", params=[True, False], ids=["BatchNorm", "plain"])
def known(request):
    """A fine-tune, and a base that is the first one with its neurons in another order."""
    base, tuned, groups = fine_tune(batchnorm=request.param)
    order = Permutation.random(groups, seed=3)
    model = network(0, batchnorm=request.param)
    return model, base, tuned, order.apply(base), order.apply(tuned), groups


def ports(known, plan, *, groups=None, progress=None, **pieces):
    model, base, tuned, other, *_ = known
    return port_fine_tune(
        FineTune(base, tuned, other), Task(model, **pieces),
        plan=plan, groups=groups, progress=progress,
    )  # fmt: skip


def close(first, second):
    return all(
        torch.allclose(value, second[name])
        for name, value in first.items()
        if value.is_floating_point()  # a count of batches is the other base's own
    )


# what is carried


def test_to_the_same_base_every_method_without_signs_gives_the_fine_tune(known):
    model, base, tuned, *_ = known
    for method in ("identity", "weights", "fgmt"):
        same = (model, base, tuned, base)
        ported = ports(same, PortPlan(method), loss=classification_loss, data=batches())
        assert close(ported.weights, tuned)
        assert [layer.kept for layer in ported.layers] == pytest.approx([1] * len(ported.layers))
        assert all(layer.alignment == pytest.approx(1) for layer in ported.layers)


def test_identity_adds_the_displacement(known):
    model, base, tuned, other, *_ = known
    ported = ports(known, PortPlan("identity")).weights
    assert close({n: other[n] + (tuned[n] - base[n]) for n in parameter_names(model)}, ported)
    assert list(ported) == list(other)


@pytest.mark.parametrize("method", ["weights", "activations", "procrustes", "fgmt"])
def test_a_base_with_its_neurons_in_another_order_gets_the_fine_tune_in_that_order(known, method):
    *_, ordered, _ = known
    ported = ports(known, PortPlan(method), loss=classification_loss, data=batches())
    assert close(ported.weights, ordered)
    assert all(layer.matched == pytest.approx(1) for layer in ported.layers)
    assert any(layer.gain > 0.1 for layer in ported.layers)


def test_weights_needs_no_data_where_groups_are_known(known):
    *_, ordered, groups = known
    ported = port_fine_tune(
        FineTune(*known[1:4]),
        plan=PortPlan("weights"), groups=groups,
    )  # fmt: skip
    assert close(ported.weights, ordered)


def test_the_mask_keeps_what_goes_down_the_slope():
    model = nn.Linear(4, 1, bias=False)
    base, other = {"weight": torch.zeros(1, 4)}, {"weight": torch.ones(1, 4)}
    tuned = {"weight": torch.tensor([[-1.0, 2.0, -3.0, 4.0]])}
    slope = torch.tensor([1.0, 1.0, -1.0, -1.0])  # the gradient, whatever the weights
    ported = port_fine_tune(
        FineTune(base, tuned, other),
        Task(model, [slope.expand(3, 4)], lambda m, batch: (m.weight * batch.mean(0)).sum()),
        plan=PortPlan("sign-mask"),
    )  # fmt: skip
    assert ported.weights["weight"].tolist() == [[0, 1, 1, 5]]
    assert ported.layers[0].kept == pytest.approx((1 + 16) / 30)


def test_signed_is_the_learning_transfer_along_the_line(known):
    model, base, tuned, other, *_ = known
    plan = PortPlan("fgmt-signed", stages=4)
    ported = ports(known, plan, loss=classification_loss, data=batches())
    transferred = transfer_trajectory(
        Trajectory.from_weights([base, tuned]), other, Task(model, batches()),
        plan=TransferPlan("fgmt-signed", stages=4, signs=SignWeights()),
    )  # fmt: skip
    parameters = parameter_names(model)
    # The second pass goes on in the data where the first one ended, in both.
    assert close({n: ported.weights[n] for n in parameters}, transferred.weights)


def test_strength_scales_what_is_added(known):
    _, _, _, other, *_ = known
    validation = batches(seed=5)
    options = {"loss": classification_loss, "data": batches(), "validation": validation}
    half = ports(known, PortPlan("weights", strengths=(0.5,)), **options)
    whole = ports(known, PortPlan("weights", strengths=(1.0,)), **options)
    parameters = parameter_names(known[0])
    moved = {n: whole.weights[n] - other[n] for n in parameters}
    expected = displace({n: other[n] for n in parameters}, moved, scale=0.5)
    assert close(expected, half.weights)
    assert half.strength == pytest.approx(0.5)
    assert all(layer.kept == pytest.approx(0.5) for layer in half.layers)


def test_dtypes_are_kept_and_differences_taken_in_single_precision():
    base = {"w": torch.tensor([[256.0]]).bfloat16(), "count": torch.tensor(3)}
    tuned = {"w": torch.tensor([[258.0]]).bfloat16(), "count": torch.tensor(9)}
    other = {"w": torch.tensor([[0.5]]), "count": torch.tensor(4)}
    ported = port_fine_tune(FineTune(base, tuned, other)).weights
    assert ported["w"].dtype == torch.float32
    assert ported["w"].tolist() == [[2.5]]
    assert ported["count"].item() == 4
    back = port_fine_tune(FineTune(other, other, base)).weights
    assert back["w"].dtype == torch.bfloat16


def test_a_variance_stays_positive():
    names = ("running_mean", "running_var")
    base = {f"norm.{name}": torch.tensor([5.0]) for name in names}
    tuned = {f"norm.{name}": torch.tensor([1.0]) for name in names}
    other = {f"norm.{name}": torch.tensor([2.0]) for name in names}
    ported = port_fine_tune(FineTune(base, tuned, other)).weights
    assert ported["norm.running_mean"].item() == -2
    assert ported["norm.running_var"].item() == pytest.approx(0.2)


def test_nothing_given_is_changed(known):
    given = [clone(weights) for weights in known[1:4]] + [clone(weights_of(known[0]))]
    options = {"loss": classification_loss, "data": batches(), "validation": batches(seed=5)}
    ports(known, PortPlan(stages=2), **options)
    for before, now in zip(given, [*known[1:4], weights_of(known[0])], strict=True):
        assert all(torch.equal(value, now[name]) for name, value in before.items())


# what is chosen


@pytest.mark.parametrize("seed", range(4))
def test_auto_takes_what_is_surely_best_of_what_it_tried_or_nothing(seed):
    base, tuned, groups = fine_tune(seed=seed)
    other = clone(trained(network(seed + 50), steps=20)[-1].weights)
    model, validation = network(0), batches(seed=9)
    ported = port_fine_tune(
        FineTune(base, tuned, other), Task(model, batches(), validation=validation),
        plan=PortPlan(stages=3), groups=groups,
    )  # fmt: skip
    measured = evaluate(
        model, {"loss": classification_loss}, weights=ported.weights, data=validation
    )
    assert measured["loss"] == pytest.approx(ported.loss_after)
    losses = {c.method: c.loss for c in sorted(ported.candidates, key=lambda c: -c.loss)}
    assert ported.loss_after == losses[ported.method]
    assert set(ported.method.split("+")) <= set(UNLABELLED) or ported.loss_after < min(
        loss for method, loss in losses.items() if set(method.split("+")) <= set(UNLABELLED)
    )
    sure = ported.loss_after < ported.loss_before - ported.margin
    assert (ported.method == "untouched") == (not sure)
    assert ported.loss_before == pytest.approx(
        evaluate(model, {"loss": classification_loss}, weights=other, data=validation)["loss"]
    )


def test_auto_tells_a_continued_lineage_from_independent_bases(known):
    model, base, tuned, *_ = known
    floats = {n: v for n, v in base.items() if v.is_floating_point()}
    onward = base | displace(floats, difference({n: tuned[n] for n in floats}, floats), scale=0.3)
    lineage = ports((model, base, tuned, onward), None)
    assert (lineage.regime, lineage.method) == ("continued lineage", "identity")
    apart = ports(known, None, example_input=batches()[0][0])
    assert (apart.regime, apart.method) == ("independent", "weights")
    blind = ports(known, None)  # no input, so no neuron groups
    assert (blind.regime, blind.method) == ("independent", "identity")


def test_bases_whose_neurons_correspond_are_of_one_lineage_though_they_point_elsewhere():
    base, tuned, groups = fine_tune()
    matrices = {n: v for n, v in base.items() if v.dim() > 1}
    noise = {n: torch.randn_like(v) for n, v in matrices.items()}
    other = base | displace(matrices, noise, scale=2 * norm(matrices) / norm(noise))
    kept = {n: other[n] for n in matrices}
    assert inner(matrices, kept) < 0.5 * norm(matrices) * norm(kept)
    few = replace_large_groups(groups)
    ported = port_fine_tune(FineTune(base, tuned, other), groups=few)
    assert ported.regime == "continued lineage"


def replace_large_groups(groups):
    """Only the group that is easiest to match: it lists the most numbers for each neuron."""
    return groups.keep([max(groups.groups, key=lambda g: len(groups.blocks_of(g.name))).name])


def test_batchnorm_is_measured_as_carried_and_as_estimated():
    base, tuned, groups = fine_tune()
    other = clone(trained(network(7), steps=20)[-1].weights)
    ported = port_fine_tune(
        FineTune(base, tuned, other), Task(network(0), batches(), validation=batches(seed=9)),
        groups=groups, plan=PortPlan("weights"),
    )  # fmt: skip
    assert {candidate.statistics for candidate in ported.candidates} == {"carried", "estimated"}


# what is told


def test_the_report_of_a_layer():
    base = {"a.weight": torch.tensor([[3.0, 0.0]]), "a.bias": torch.tensor([4.0])}
    tuned = {"a.weight": torch.tensor([[3.0, 1.0]]), "a.bias": torch.tensor([4.0])}
    other = {"a.weight": torch.tensor([[0.0, 5.0]]), "a.bias": torch.tensor([5.0])}
    (layer,) = port_fine_tune(FineTune(base, tuned, other)).layers
    assert layer.name == "a"
    assert layer.displacement == 1
    assert layer.relative == pytest.approx(1 / 5)
    assert layer.alignment == layer.matched == pytest.approx(20 / (5 * math.sqrt(50)))


def test_the_result_prints_as_a_table_and_as_json(known):
    ported = ports(known, PortPlan("identity"))
    text = str(ported)
    assert all(layer.name in text for layer in ported.layers)
    assert "identity at strength 1" in text
    assert ported.to_json()["layers"][0]["gain"] == 0
    assert "weights" not in ported.to_json()


def test_a_head_of_another_size_is_kept_and_named():
    base, tuned, _ = fine_tune()
    other = clone(weights_of(network(2, classes=5)))
    ported = port_fine_tune(FineTune(base, tuned, other))
    assert ported.excluded == ("6.weight", "6.bias")
    assert "6.bias, 6.weight" in ported.warnings[0]
    assert torch.equal(ported.weights["6.weight"], other["6.weight"])
    assert not torch.equal(ported.weights["4.weight"], other["4.weight"])


def test_a_head_of_another_size_takes_no_part_in_gradients():
    base, tuned, _ = fine_tune()
    model = network(2, classes=5)
    other = clone(weights_of(model))
    ported = port_fine_tune(
        FineTune(base, tuned, other), Task(model, batches()), plan=PortPlan("fgmt-signed")
    )  # fmt: skip
    assert torch.equal(ported.weights["6.weight"], other["6.weight"])


def test_tensors_can_be_excluded(known):
    ported = ports(known, PortPlan("identity", exclude=("0.*",)))
    assert ported.excluded == ("0.weight", "0.bias")
    assert torch.equal(ported.weights["0.weight"], known[3]["0.weight"])


def test_a_fine_tune_of_another_base_is_warned_of_with_figures():
    base, _, _ = fine_tune()
    ported = port_fine_tune(FineTune(base, weights_of(network(9)), base))
    assert any("times the size of the weights" in warning for warning in ported.warnings)


def test_what_only_the_fine_tune_has_is_named(known):
    model, base, tuned, other, *_ = known
    ported = ports((model, base, {**tuned, "new.weight": torch.ones(2)}, other), PortPlan())
    assert any("new.weight" in warning for warning in ported.warnings)


def test_gradients_are_counted(known):
    options = {"loss": classification_loss, "data": batches()}
    counts = {
        method: ports(known, PortPlan(method, stages=3), **options).gradient_evaluations
        for method in ("identity", "sign-mask", "weights-signed", "fgmt", "fgmt-signed")
    }
    assert list(counts.values()) == [0, 3, 3, 6, 9]


# what is refused


def test_architectures_that_differ_are_refused_with_a_list(known):
    model, base, tuned, other, *_ = known
    longer = {f"{copy}.{n}": v for copy in "ab" for n, v in base.items()}
    wider = {n: torch.zeros([2 * size for size in v.shape]) for n, v in longer.items()}
    with pytest.raises(ValueError, match=r"from_base and to_base.*'a.0.weight' has shape") as error:
        ports((model, longer, longer, wider), None)
    assert str(error.value).count("has shape") == 6
    assert f"and {len([v for v in longer.values() if v.dim()]) - 6} more" in str(error.value)
    fewer = {name: value for name, value in other.items() if not name.startswith("0.")}
    with pytest.raises(ValueError, match=r"'0.weight' is missing in to_base"):
        ports((model, base, tuned, fewer), None)
    with pytest.raises(ValueError, match=r"'0.weight' is missing in from_base"):
        ports((model, fewer, tuned, other), None)
    with pytest.raises(ValueError, match=r"from_base and fine_tuned.*'0.weight' is missing"):
        ports((model, base, fewer, other), None)


@pytest.mark.parametrize("which", ["from_base", "fine_tuned", "to_base"])
def test_a_nan_is_refused_with_its_place(known, which):
    given = dict(zip(("from_base", "fine_tuned", "to_base"), known[1:4], strict=True))
    bad = given[which]["0.weight"].clone()
    bad[0, 0] = math.nan
    given[which] = given[which] | {"0.weight": bad}
    with pytest.raises(ValueError, match=rf"{which} holds a NaN.*'0.weight'"):
        port_fine_tune(FineTune(**given))


@pytest.mark.parametrize("method", ["weights", "activations", "fgmt", "sign-mask", "fgmt-signed"])
def test_a_method_says_what_it_lacks(known, method):
    with pytest.raises(ValueError, match=rf"'{method}' needs a model: give Task\("):
        port_fine_tune(FineTune(*known[1:4]), plan=PortPlan(method))
    with pytest.raises(ValueError, match=rf"'{method}' needs data: give Task\("):
        ports(known, PortPlan(method), validation=batches())


def test_plans_are_checked():
    with pytest.raises(ValueError, match=r"method must be one of auto, untouched, .*got 'magic'"):
        PortPlan("magic")
    with pytest.raises(ValueError, match="strengths must be numbers above 0"):
        PortPlan(strengths=())
    with pytest.raises(ValueError, match="stages must be at least 1"):
        replace(PortPlan(), stages=0)
    with pytest.raises(ValueError, match="exclude: 'x' matches no tensor of to_base"):
        port_fine_tune(FineTune(*({"w": torch.ones(1)},) * 3), plan=PortPlan(exclude=("x",)))
