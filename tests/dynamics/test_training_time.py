import math

import pytest
import torch
from torch import nn

from cases import CASES
from slipstream.dynamics import PredictionPlan, Trust, predict_training_time
from slipstream.evaluation import Task, classification_loss, squared_loss
from slipstream.testbed import Examples
from slipstream.training import TrainingPlan, train
from slipstream.weights import clone, displace, weights_of

DTYPE = torch.float64
EXAMPLES = Examples(
    torch.randn(13, 6, generator=torch.Generator().manual_seed(1), dtype=DTYPE),
    torch.randint(3, (13,), generator=torch.Generator().manual_seed(2)),
)
DATA = [(EXAMPLES.inputs[:5], EXAMPLES.labels[:5]), (EXAMPLES.inputs[5:], EXAMPLES.labels[5:])]


def predicted(model, loss, *, data, weights=None, progress=None, **options):
    """The prediction for plain SGD, without momentum unless some is given."""
    plan = PredictionPlan(**{"momentum": 0.0, **options})
    return predict_training_time(
        Task(model, data, loss), weights=weights, plan=plan, progress=progress
    )


def linear():
    torch.manual_seed(0)
    return nn.Linear(6, 3).to(DTYPE)


def network(*, width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)).to(DTYPE)


def loss_over_data(model, loss):
    with torch.no_grad():
        return loss(model, (EXAMPLES.inputs, EXAMPLES.labels)).item()


def real_losses(model, loss, *, steps, lr=0.05, batch_size=None, seed=0, momentum=0.0, decay=0.0):
    """By torch's own SGD, on batches of the testbed."""
    rate = lr if callable(lr) else lambda step: lr
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate(0), momentum=momentum, weight_decay=decay
    )
    found, epoch = [loss_over_data(model, loss)], 0
    while True:
        full = batch_size is None
        for batch in EXAMPLES.batches(batch_size or 13, seed=None if full else seed).epoch(epoch):
            if len(found) > steps:
                return torch.tensor(found, dtype=DTYPE)
            optimizer.param_groups[0]["lr"] = rate(len(found) - 1)
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
            found.append(loss_over_data(model, loss))
        epoch += 1


WAYS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "schedule": {"lr": lambda step: 0.2 / (1 + step)},
    "batches": {"batch_size": 5, "seed": 3},
    "all": {
        "batch_size": 4,
        "seed": 1,
        "momentum": 0.5,
        "decay": 0.1,
        "lr": lambda step: 0.1 if step < 7 else 0.01,
    },
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
losses = pytest.mark.parametrize("loss", [squared_loss, classification_loss])


def settings(way):
    found = {"lr": 0.05, **way}
    return {("weight_decay" if name == "decay" else name): v for name, v in found.items()}


@losses
@ways
@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("linearisations", [1, 3])
def test_a_linear_model_is_predicted_exactly(loss, way, steps_before, linearisations):
    real = real_losses(linear(), loss, steps=30, **way)
    found = predicted(
        linear(),
        loss,
        data=DATA,
        thresholds=[float(real.min()) * 0.999, float(real[0]) * 0.9],
        max_steps=30,
        warm_up=steps_before,
        linearisations=linearisations,
        tolerance=0.0,
        **settings(way),
    )
    torch.testing.assert_close(found.losses, real, rtol=1e-10, atol=1e-12)
    arrival = int((real <= real[0] * 0.9).nonzero()[0])
    assert [one.steps for one in found.arrivals] == [None, arrival]
    # Weights and velocity of each linearisation are the real ones: so are the outputs there.
    assert found.trust.path_error < 1e-10
    assert found.trust.output_error < 1e-10
    assert found.trust.kernel_drift < 1e-10
    assert found.trust.predicted_loss == pytest.approx(found.trust.real_loss, rel=1e-10)


def test_the_closed_form_is_the_iteration_and_is_taken_where_it_holds():
    def other_loss(model, batch):  # the same, but not known to be
        return squared_loss(model, batch)

    how = {"data": DATA, "thresholds": [0.1], "lr": 0.3, "max_steps": 600, "tolerance": 0}
    closed, iterated = (predicted(network(), loss, **how) for loss in (squared_loss, other_loss))
    assert (closed.method, iterated.method) == ("closed form", "iteration")
    torch.testing.assert_close(closed.losses, iterated.losses, rtol=1e-9, atol=1e-12)
    assert closed.arrivals[0].steps == iterated.arrivals[0].steps
    assert closed.trust.path_error == pytest.approx(iterated.trust.path_error, rel=1e-6)
    for further in (
        {"momentum": 0.1},
        {"batch_size": 5},
        {"weight_decay": 0.1},
        {"lr": [0.3] * 50},
    ):
        found = predicted(network(), squared_loss, **how | {"max_steps": 50} | further)
        assert found.method == "iteration"


def test_examples_that_move_nothing_do_not_disturb_the_closed_form():
    model = nn.Linear(1, 1, bias=False).to(DTYPE)
    inputs = torch.tensor([[1.0], [0.0]], dtype=DTYPE)  # the kernel has an eigenvalue that is 0
    data = [(inputs, torch.ones(2, 1, dtype=DTYPE))]
    found = predicted(model, squared_loss, data=data, thresholds=[0.26], lr=0.1)
    assert found.method == "closed form"
    assert found.status == "reached"
    assert found.trust.path_error < 1e-10


@ways
def test_one_step_of_any_network_has_the_right_slope(way):
    """The linearisation is exact to first order: the error of a step is quadratic in the rate."""
    errors = []
    for scale in (1e-2, 1e-3):
        rate = way.get("lr", lambda step: 0.05)
        small = way | {"lr": lambda step, scale=scale, rate=rate: scale * rate(step)}
        real = real_losses(network(), classification_loss, steps=4, **small)
        found = predicted(
            network(), classification_loss, data=DATA, thresholds=[1e-9], max_steps=4,
            probe_steps=2, **settings(small),
        )  # fmt: skip
        errors.append(float((found.losses - real).abs().max()))
    assert errors[1] < errors[0] / 50


def test_more_linearisations_come_closer_and_wider_networks_too():
    def error(width, linearisations):
        how = {"lr": 0.2, "thresholds": [0.4], "max_steps": 5000}
        model = network(width=width)
        found = predicted(
            model, classification_loss, data=DATA, linearisations=linearisations, **how
        )
        real = real_losses(model, classification_loss, lr=0.2, steps=200)
        return math.log(found.arrivals[0].steps / int((real <= 0.4).nonzero()[0])), found.trust

    once, trust = error(8, 1)
    often, better = error(8, 8)
    wide, best = error(128, 1)
    assert once > 2 * abs(often)
    assert once > 2 * abs(wide)
    assert trust.path_error > max(better.path_error, best.path_error)


def test_model_and_weights_stay_as_they_were():
    model = network()
    before = clone(weights_of(model))
    given = displace(before, {"0.bias": torch.ones(8, dtype=DTYPE)})
    kept = clone(given)
    how = {"data": DATA, "thresholds": [0.5], "lr": 0.1, "warm_up": 2}
    there = predicted(model, classification_loss, weights=given, **how)
    assert all(torch.equal(before[name], value) for name, value in weights_of(model).items())
    assert all(torch.equal(kept[name], value) for name, value in given.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.load_state_dict(given)
    again = predicted(model, classification_loss, **how)
    assert torch.equal(there.losses, again.losses)


def test_frozen_parameters_do_not_move():
    frozen, plain = network(), network()
    for model in (frozen, plain):
        model[0].requires_grad_(False)
    real = real_losses(plain, classification_loss, steps=20)
    found = predicted(
        frozen, classification_loss, data=DATA, thresholds=[1e-9], lr=0.05, max_steps=20
    )
    torch.testing.assert_close(found.losses, real, rtol=1e-10, atol=1e-12)  # linear in the head


def test_real_targets_and_one_output():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)).to(DTYPE)  # outputs without an axis
    targets = torch.randn(13, dtype=DTYPE)

    def half_squares(model, batch):
        return (model(batch[0]) - batch[1]).square().mean() / 2

    data = [(EXAMPLES.inputs, targets)]
    how = {"data": data, "thresholds": [1e-9], "lr": 0.1, "max_steps": 20}
    found = predicted(model, half_squares, **how)
    plan = TrainingPlan(epochs=21, lr=0.1, momentum=0.0)
    result = train(Task(model, data, half_squares), plan)
    assert found.losses.tolist() == pytest.approx(result.losses, rel=1e-10)


def test_smoothing_averages_the_latest_losses():
    how = {"data": DATA, "thresholds": [1e-9], "lr": 0.05, "max_steps": 20, "batch_size": 5}
    raw, smooth = (
        predicted(linear(), classification_loss, smoothing=n, **how).losses for n in (1, 4)
    )
    expected = torch.stack([raw[max(0, t - 3) : t + 1].mean() for t in range(21)])
    torch.testing.assert_close(smooth, expected)


def test_separate_outputs_are_exact_where_outputs_share_nothing():
    how = {"data": DATA, "thresholds": [1e-9], "lr": 0.05, "max_steps": 20}
    full, separate = (
        predicted(linear(), squared_loss, outputs=kind, **how).losses
        for kind in ("full", "separate")
    )
    torch.testing.assert_close(full, separate)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@losses
def test_training_is_stable_just_below_the_stable_rate_and_not_above(loss, momentum):
    def found(factor, lr=None):
        return predicted(
            linear(), loss, data=DATA, thresholds=[1e-9], max_steps=3000, probe_steps=0,
            momentum=momentum, lr=lr * factor if lr else 1e-3,
        )  # fmt: skip

    stable = found(1).stable_lr
    hessian = torch.autograd.functional.hessian(
        lambda w: loss(lambda x: x @ w[:, :6].T + w[:, 6], (EXAMPLES.inputs, EXAMPLES.labels)),
        torch.cat([linear().weight, linear().bias[:, None]], 1).detach(),
    ).reshape(21, 21)  # fmt: skip
    top = float(torch.linalg.eigvalsh(hessian).max())
    assert stable == pytest.approx(2 * (1 + momentum) / top, rel=1e-2)
    if loss is squared_loss:
        assert found(0.98, stable).status == "not reached"
        above = found(1.05, stable)
        assert above.status == "unstable"
        assert len(above.losses) < 3001  # it stops once the loss is beyond all bounds


def test_seconds_come_from_the_steps_that_were_taken():
    how = {"data": DATA, "thresholds": [0.5], "lr": 0.05}
    found = predicted(linear(), squared_loss, **how, probe_steps=3)
    steps = found.arrivals[0].steps
    assert found.arrivals[0].seconds == pytest.approx(steps * found.cost.step)
    assert found.trust.steps == 3
    assert f"{steps} steps" in str(found)
    without = predicted(linear(), squared_loss, **how, probe_steps=0)
    assert (without.cost.step, without.arrivals[0].seconds) == (None, None)
    share = predicted(linear(), squared_loss, **how)
    assert share.trust.steps == math.ceil(steps / 20)


def test_the_verdict_is_that_of_the_path_error():
    for error, verdict in ((0.0, "good"), (0.019, "good"), (0.02, "fair"), (0.05, "poor")):
        assert Trust(error, 0, 0.0, 0.0, 0.0, 0.0).verdict == verdict
    far = predicted(
        network(), classification_loss, data=DATA, thresholds=[0.1], lr=1.0, linearisations=1
    )
    assert far.trust.verdict == "poor"
    assert "trust: poor" in str(far)


def test_progress_names_what_is_done():
    seen = []
    how = {"data": DATA, "thresholds": [0.5], "lr": 0.05, "warm_up": 1}
    predicted(network(), squared_loss, **how, progress=lambda what, done, total: seen.append(what))
    assert list(dict.fromkeys(seen)) == ["warm-up", "descent", "real steps"]


@pytest.mark.parametrize("name", ["conv_flatten", "residual", "layer_norm_mlp", "sequence"])
def test_other_networks_go_through(name):
    case = CASES[name]
    model = case.model().eval()
    found = predicted(
        model, classification_loss, data=case.batches(), thresholds=[0.5], lr=1e-3, max_steps=12
    )
    assert found.trust.path_error < 0.1
    assert found.losses[12] < found.losses[0]


def bad(*, match, **changes):
    return pytest.param(changes, match, id=match.split(",")[0][:40])


INPUTS, LABELS = EXAMPLES.inputs, EXAMPLES.labels


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        bad(match=r"thresholds must be below the loss at the start, .*got 9", thresholds=[9]),
        bad(match="thresholds is empty", thresholds=[]),
        bad(match="must be positive with several", thresholds=[0.0], linearisations=2),
        bad(match=r"lr must be positive, got -0\.1", lr=-0.1),
        bad(match="lr must be positive, got nan", lr=math.nan),
        bad(match=r"at step 2 \(counted from 0\) it is -1", lr=lambda step: 1 if step < 2 else -1),
        bad(match="empty sequence", lr=[]),
        bad(match="10 steps; they end after 3", lr=[0.1] * 3, probe_steps=10),
        bad(match=r"momentum must be at least 0 and below 1, got 1", momentum=1.0),
        bad(match="weight_decay must not be negative", weight_decay=-1.0),
        bad(match="batch_size must be at least 1, got 0", batch_size=0),
        bad(match="smoothing must be at least 1, got 0", smoothing=0),
        bad(match="linearisations must be at least 1, got 0", linearisations=0),
        bad(match="tolerance must not be negative", tolerance=-0.1),
        bad(match="warm_up must be at least 0, got -1", warm_up=-1),
        bad(match="data is empty", data=[]),
        bad(match="targets must be classes from 0 to 2.* one is 5", data=[(INPUTS, LABELS + 5)]),
        bad(match="inputs of batch 0 .* not all finite", data=[(INPUTS * math.nan, LABELS)]),
        bad(match="two tensors; batch 0 .* is a Tensor", data=[INPUTS]),
        bad(match="at 0: call model.eval", model=nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))),
        bad(match="at most 10 examples", memory=8_000),
        bad(
            match="loss must depend on the model by its outputs alone",
            loss=lambda model, batch: classification_loss(model, batch)
            + sum(p.square().sum() for p in model.parameters()),
        ),
    ],
)  # fmt: skip
def test_bad_input_is_told(changes, match):
    how = {"data": DATA, "thresholds": [0.1], "lr": 0.1, "max_steps": 50} | changes
    model = how.pop("model", network()).to(DTYPE)
    with pytest.raises(ValueError, match=match):
        predicted(model, how.pop("loss", classification_loss), **how)


def test_dropout_that_is_always_on_is_called_that():
    def dropped(model, batch):
        inputs, labels = batch
        hidden = nn.functional.dropout(inputs, 0.5)  # training=True, whatever the mode
        return nn.functional.cross_entropy(model(hidden), labels)

    with pytest.raises(ValueError, match="loss is not deterministic: two evaluations gave"):
        predicted(linear(), dropped, data=DATA, lr=0.1, thresholds=[0.5])
