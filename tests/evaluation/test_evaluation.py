import copy

import pytest
import torch
from torch import nn

from slipstream.evaluation import (
    Task,
    accuracy,
    batch_size,
    classification_loss,
    evaluate,
    gradient,
    probe_determinism,
    recalibrate_batchnorm,
    to_device,
    weights_in,
)
from slipstream.weights import weights_of

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(6, 6)
        self.leave = nn.Linear(6, 6)
        self.leave.weight = self.enter.weight

    def forward(self, x):
        return self.leave(torch.relu(self.enter(x)))


def normed():
    return nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)
    )


def unequal_batches(sizes=(7, 4, 1), *, seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 6, generator=generator) * (1 + number) + number,
            torch.randint(classes, (size,), generator=generator),
        )
        for number, size in enumerate(sizes)
    ]


def pooled(data):
    return [tuple(torch.cat(parts) for parts in zip(*data, strict=True))]


def everything(model):
    """All that a function must leave alone: state, modes, gradients, and where parameters live."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(module.training, len(module._forward_pre_hooks)) for module in model.modules()],
        [(p.grad, p.data_ptr(), p.requires_grad) for p in model.parameters()],
    )


def assert_untouched(model, before):
    now = everything(model)
    assert all(torch.equal(now[0][name], value) for name, value in before[0].items())
    assert now[1:] == before[1:]


# batches


def test_batch_size_is_the_first_length_found():
    assert batch_size(torch.zeros(4, 2)) == 4
    assert batch_size((torch.zeros(3, 2), torch.zeros(9))) == 3
    assert batch_size({"scale": torch.tensor(1.0), "x": [torch.zeros(2)]}) == 2
    with pytest.raises(ValueError, match="this str holds none"):
        batch_size("text")


def test_to_device_keeps_the_kind_of_container():
    batch = {"x": [torch.zeros(2), "name"], "y": (torch.zeros(1), 3)}
    moved = to_device(batch, "meta")
    assert moved["x"][0].is_meta
    assert moved["y"][0].is_meta
    assert moved["x"][1] == "name"
    assert moved["y"][1] == 3
    assert isinstance(moved["y"], tuple)


# weights_in


def test_weights_are_in_the_model_inside_and_gone_after():
    model, other = normed(), normed()
    model.train()
    inputs = unequal_batches()[0][0]
    before = everything(model)
    lent = weights_of(other)
    kept = {name: value.clone() for name, value in lent.items()}
    with weights_in(model, lent):
        assert model[0].weight.data_ptr() == other[0].weight.data_ptr(), "swapped, not copied"
        model(inputs)
        assert torch.equal(model.eval()(inputs), model(inputs))
        model.train()
    assert_untouched(model, before)
    assert all(torch.equal(lent[name], value) for name, value in kept.items())


def test_weights_come_back_after_an_error():
    model = normed()
    before = everything(model)
    with (
        pytest.raises(RuntimeError, match="mid-way"),
        weights_in(model, {"0.bias": torch.ones(5)}),
    ):
        raise RuntimeError("mid-way")
    assert_untouched(model, before)


def test_tied_weights_move_together():
    model = Tied()
    before = everything(model)
    with weights_in(model, {"enter.weight": torch.eye(6)}):
        assert torch.equal(model.leave.weight, torch.eye(6))
    with weights_in(model, {"leave.weight": torch.eye(6)}):
        assert torch.equal(model.enter.weight, torch.eye(6))
    assert_untouched(model, before)
    assert model.leave.weight is model.enter.weight


def test_weights_are_cast_to_the_models_dtype():
    model = normed()
    with weights_in(model, {"0.bias": torch.full((5,), 0.5, dtype=torch.bfloat16)}):
        assert model[0].bias.dtype == torch.float32
        assert torch.equal(model[0].bias, torch.full((5,), 0.5))


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"2.gone": torch.ones(1)}, "'2.gone'"), ({"0.bias": torch.ones(4)}, r"\(4,\).*\(5,\)")],
)
def test_weights_of_another_model_are_refused(weights, message):
    with pytest.raises(ValueError, match=message), weights_in(normed(), weights):
        pass


# evaluate


def test_means_over_unequal_batches_are_those_over_all_examples():
    model, data = normed().train(), unequal_batches()
    metrics = {"loss": classification_loss, "accuracy": accuracy}
    before = everything(model)
    split, whole = (evaluate(model, metrics, data=d) for d in (data, pooled(data)))
    assert split == pytest.approx(whole, rel=1e-6)
    assert_untouched(model, before)


def test_evaluate_takes_weights_and_refuses_nothing():
    model, other, data = normed(), normed(), unequal_batches()
    metrics = {"loss": classification_loss}
    assert evaluate(model, metrics, weights=weights_of(other), data=data) == evaluate(
        other, metrics, data=data
    )
    with pytest.raises(ValueError, match="data is empty"):
        evaluate(model, metrics, data=[])


# gradient


@pytest.mark.parametrize("build", [normed, Tied], ids=["batchnorm", "tied"])
def test_gradient_over_unequal_batches_is_that_of_the_pooled_loss(build):
    model, data = build().double().train(), unequal_batches()
    data = [(inputs.double(), labels) for inputs, labels in data]
    before = everything(model)
    found = gradient(model, classification_loss, data=data)
    assert_untouched(model, before)
    classification_loss(model.eval(), pooled(data)[0]).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


def test_gradient_of_one_batch_is_autograds_bit_for_bit():
    model, data = Tied(), unequal_batches((9,))
    found = gradient(model, classification_loss, data=data)
    classification_loss(model, data[0]).backward()
    assert all(torch.equal(found[name], p.grad) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_is_taken_at_the_given_weights_in_the_models_dtype(dtype):
    model, other = normed().to(dtype), normed().to(dtype)
    data = [(inputs.to(dtype), labels) for inputs, labels in unequal_batches()]
    found = gradient(model, classification_loss, weights=weights_of(other), data=data)
    expected = gradient(other, classification_loss, data=data)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(value.dtype == dtype for value in found.values())


def test_many_small_bfloat16_gradients_do_not_drown():
    """300 gradients of 1 and 1000: a bfloat16 sum stops growing, a float32 sum does not."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    data = [torch.full((1, 1), value, dtype=torch.bfloat16) for value in [1000.0] + [1.0] * 299]
    slope = gradient(model, lambda model, batch: model(batch).mean(), data=data)["weight"]
    assert slope.item() == pytest.approx((1000 + 299) / 300, rel=2**-8)


def test_unused_and_frozen_parameters():
    model = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3))
    model[0].bias.requires_grad_(False)
    found = gradient(model, lambda model, batch: model[0](batch[0]).mean(), data=unequal_batches())
    assert list(found) == ["0.weight", "1.weight", "1.bias"]
    assert not found["1.weight"].any()
    assert found["0.weight"].any()


def test_gradient_works_inside_no_grad_and_keeps_old_gradients():
    model, data = Tied(), unequal_batches()
    model.enter.bias.grad = torch.ones(6)
    with torch.no_grad():
        assert gradient(model, classification_loss, data=data)["enter.bias"].any()
    assert torch.equal(model.enter.bias.grad, torch.ones(6))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: model(batch[0]).sum() * float("nan"), "batch 0 .* nan"),
        (lambda model, batch: model(batch[0]).sum(1), r"shape is \(7,\)"),
        (lambda model, batch: batch[0].mean(), "no parameter"),
    ],
)
def test_gradient_refuses_bad_losses(loss, message):
    model = normed()
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        gradient(model, loss, data=unequal_batches())
    assert_untouched(model, before)


def test_gradient_names_the_bad_batch_and_refuses_no_data():
    data = unequal_batches()
    data[2][0].fill_(torch.inf)
    with pytest.raises(ValueError, match="batch 2"):
        gradient(Tied(), lambda model, batch: model(batch[0]).mean(), data=data)
    with pytest.raises(ValueError, match="data is empty"):
        gradient(Tied(), classification_loss, data=[])


# probe_determinism


class Shuffled:
    def __init__(self, batches):
        self.batches, self.turn = batches, 0

    def __iter__(self):
        self.turn += 1
        return iter(self.batches[self.turn % 2 :] + self.batches[: self.turn % 2])


def test_a_deterministic_setting_is_cleared():
    model = normed().eval()
    probe = probe_determinism(model, classification_loss, data=unequal_batches())
    expected = evaluate(model, {"loss": classification_loss}, data=unequal_batches())
    assert probe.deterministic
    assert probe.suspects == ()
    assert probe.first_loss == probe.second_loss == pytest.approx(expected["loss"])


def test_dropout_is_named_and_batchnorm_statistics_stay():
    model = normed().train()
    model.append(nn.Dropout(0.5).eval())
    before = everything(model)
    probe = probe_determinism(model, classification_loss, data=unequal_batches((40, 30)))
    assert not probe.deterministic
    assert probe.suspects == ("dropout in train mode at 3",)
    assert probe.first_loss != probe.second_loss
    assert_untouched(model, before)


def test_functional_noise_is_blamed_on_the_model_or_the_loss():
    probe = probe_determinism(
        Tied(), lambda model, batch: model(batch[0]).mean() + torch.rand(()), data=unequal_batches()
    )
    assert "a random operation" in probe.suspects[0]


def test_attention_with_dropout_is_named():
    model = nn.TransformerEncoderLayer(6, 1, 8, dropout=0.0, batch_first=True)
    model.self_attn.dropout = 0.5
    data = [torch.randn(4, 5, 6)]
    # Not a mean of squares: the last normalisation makes that 1, dropout or not.
    probe = probe_determinism(model, lambda model, batch: model(batch)[..., 0].mean(), data=data)
    assert probe.suspects == ("dropout in train mode at self_attn",)


def test_changing_data_is_named():
    model = normed().eval()
    shuffled = probe_determinism(model, classification_loss, data=Shuffled(unequal_batches()))
    assert "shuffling" in shuffled.suspects[0]
    spent = probe_determinism(model, classification_loss, data=iter(unequal_batches()))
    assert "generator" in spent.suspects[0]
    with pytest.raises(ValueError, match="data is empty"):
        probe_determinism(model, classification_loss, data=[])


# recalibrate_batchnorm


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("layer", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_first_batchnorm_gets_the_statistics_of_the_pooled_data(layer, momentum):
    batches = [torch.randn(n, 3, 4, 5) * n + n for n in (6, 3, 1)]
    model = nn.Sequential(
        layer(3, momentum=momentum), nn.InstanceNorm2d(3, track_running_stats=True)
    )
    before = everything(model)
    new = recalibrate_batchnorm(model, data=batches)
    assert_untouched(model, before)
    kept = ("running_mean", "running_var", "num_batches_tracked")
    assert list(new) == [f"{layer}.{name}" for layer in (0, 1) for name in kept]
    values = torch.cat(batches).transpose(0, 1).flatten(1)
    torch.testing.assert_close(new["0.running_mean"], values.mean(1))
    torch.testing.assert_close(new["0.running_var"], values.var(1))
    assert new["0.num_batches_tracked"] == 3
    normed = model[0].train()(torch.cat(batches[:1]))  # InstanceNorm: a mean over the examples
    own = recalibrate_batchnorm(model, data=batches[:1])
    torch.testing.assert_close(own["1.running_mean"], normed.mean((0, 2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(own["1.running_var"], normed.flatten(2).var(2).mean(0))


def test_a_batch_of_one_counts_as_what_it_holds():
    rows = torch.randn(9, 4) * 3 + 1
    new = recalibrate_batchnorm(nn.BatchNorm1d(4), data=list(rows.split([4, 4, 1])))
    torch.testing.assert_close(new["running_mean"], rows.mean(0))
    torch.testing.assert_close(new["running_var"], rows.var(0))
    with pytest.raises(ValueError, match="needs more than one value per channel"):
        recalibrate_batchnorm(nn.BatchNorm1d(4), data=[rows[:1]])


def test_sparse_embeddings_give_the_gradient_of_dense_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(9, 2))
    data = [(torch.randint(0, 5, (8, 3)), torch.randint(0, 2, (8,))) for _ in range(2)]
    sparse = gradient(model, classification_loss, data=data)
    assert model[0].sparse
    model[0].sparse = False
    torch.testing.assert_close(sparse, gradient(model, classification_loss, data=data))


def test_equal_batches_agree_with_torchs_own_cumulative_mean():
    """Two BatchNorm layers: the mean of torch's `momentum=None` pass, normalised batch by batch."""
    layers = [nn.BatchNorm1d(5, momentum=None), nn.BatchNorm1d(4, momentum=None)]
    model = nn.Sequential(nn.Linear(6, 5), layers[0], nn.Linear(5, 4), layers[1])
    data = unequal_batches((8, 8, 8))
    new = recalibrate_batchnorm(model, data=data)
    for inputs, _ in data:
        model(inputs)
    torch.testing.assert_close(new["3.running_mean"], model[3].running_mean)
    torch.testing.assert_close(new["1.running_mean"], model[1].running_mean)


def test_recalibration_uses_given_weights_and_any_forward():
    model, other = normed().train(), normed()
    data = unequal_batches((5, 3))
    new = recalibrate_batchnorm(
        model, weights=weights_of(other), data=data, forward=classification_loss
    )
    expected = recalibrate_batchnorm(other, data=[inputs for inputs, _ in data])
    assert all(torch.equal(new[name], value) for name, value in expected.items())


def test_the_recalibrated_model_is_centred_on_its_data():
    model, data = normed().eval(), unequal_batches((32,))
    new = recalibrate_batchnorm(model, data=data)
    with weights_in(model, new):
        outputs = model[:2](data[0][0])
    torch.testing.assert_close(outputs.mean(0), torch.zeros(5), atol=1e-5, rtol=0)


def test_without_batchnorm_there_is_no_pass():
    def explode():
        raise AssertionError("the data were read")
        yield

    assert recalibrate_batchnorm(Tied(), data=explode()) == {}
    with pytest.raises(ValueError, match="data is empty"):
        recalibrate_batchnorm(normed(), data=[])


def test_a_layer_that_never_ran_is_left_out():
    model = normed()
    model.spare = nn.BatchNorm1d(3)
    new = recalibrate_batchnorm(model, data=unequal_batches((4,)), forward=lambda m, b: m[:5](b[0]))
    assert {name.split(".")[0] for name in new} == {"1"}


def test_mappings_are_passed_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, pixels):
            return self.norm(pixels)

    pixels = torch.randn(9, 2)
    new = recalibrate_batchnorm(Named(), data=[{"pixels": pixels}])
    torch.testing.assert_close(new["norm.running_mean"], pixels.mean(0))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_everything_runs_where_the_model_is(dtype):
    here = normed().to(dtype)
    there = copy.deepcopy(here).cuda()
    data = [(inputs.to(dtype), labels) for inputs, labels in unequal_batches((7, 4))]
    slopes, expected = (gradient(m, classification_loss, data=data) for m in (there, here))
    for name, value in slopes.items():
        assert value.is_cuda
        torch.testing.assert_close(value.cpu(), expected[name], rtol=2e-2, atol=2e-2)
    assert probe_determinism(there.eval(), classification_loss, data=data).deterministic
    new, old = (recalibrate_batchnorm(m, data=data) for m in (there, here))
    torch.testing.assert_close(new["1.running_var"].cpu(), old["1.running_var"], rtol=2e-2, atol=0)
    metrics = {"accuracy": accuracy}
    assert evaluate(there, metrics, weights=weights_of(here), data=data)["accuracy"] <= 1


def test_calibration_alone_is_fed_by_the_loss_and_unlabelled_batches_by_the_model():
    model = nn.BatchNorm1d(2)
    first, second = torch.randn(8, 2), torch.randn(8, 2)

    def loss(module, batch):
        return module(batch[0] + batch[1]).mean() + batch[2]

    fed = Task(model, loss=loss, calibration=[(first, second, 0.0)]).recalibrated()
    torch.testing.assert_close(fed["running_mean"], (first + second).mean(0))
    alone = Task(model, loss=loss, unlabelled=[first]).recalibrated()
    torch.testing.assert_close(alone["running_mean"], first.mean(0))
