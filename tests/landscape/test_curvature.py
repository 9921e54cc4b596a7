"""Hessians by their formulas, and by autograd's own second derivative in float64."""

import itertools
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from cases import CASES
from slipstream.evaluation import Task, classification_loss
from slipstream.landscape import (
    CurvaturePlan,
    SpectrumPlan,
    curvature_along,
    gradient_noise,
    hessian_product,
    hessian_spectrum,
    hessian_trace,
    measure_curvature,
    sharpness,
)
from slipstream.landscape.hessian import MeanLoss
from slipstream.trajectory import Trajectory
from slipstream.weights import clone, weights_of


def examples(sizes=(5, 5, 2), *, inputs=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, inputs, generator=generator, dtype=torch.float64) + 3 * number,
            torch.randint(2, (n,), generator=generator),
        )
        for number, n in enumerate(sizes)
    ]


def pooled(data):
    return [torch.cat(part) for part in zip(*data, strict=True)]


def linear(outputs=1, **options):
    return nn.Linear(4, outputs, **options).double()


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def squared(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square().mean()


def logistic(model, batch):
    return functional.binary_cross_entropy_with_logits(model(batch[0])[:, 0], batch[1].double())


def exact_hessian(model, loss, batch):
    """Of the parameters in one vector, by autograd's own function."""
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def value(flat):
        parts = flat.split([p.numel() for p in named.values()])
        weights = {n: v.view(p.shape) for v, (n, p) in zip(parts, named.items(), strict=True)}
        return loss(lambda x: functional_call(model, weights, (x,)), batch)

    flat = torch.cat([p.flatten() for p in named.values()])
    return torch.autograd.functional.hessian(value, flat)


def flat(named):
    return torch.cat([value.flatten() for value in named.values()])


def columns(model, loss, data, **options):
    """The whole Hessian, column by column."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = []
    for name, parameter in named.items():
        for place in range(parameter.numel()):
            unit = torch.zeros_like(parameter).flatten()
            unit[place] = 1
            vector = {name: unit.view(parameter.shape)}
            found.append(flat(hessian_product(vector, Task(model, data, loss), **options)))
    return torch.stack(found, 1)


# products


def test_linear_regression_over_unequal_batches_has_the_hessian_of_its_formula():
    data = examples()
    x, _ = pooled(data)
    found = columns(linear(bias=False), squared, data)
    torch.testing.assert_close(found, 2 * x.T @ x / len(x))


def test_logistic_regression_too():
    data, model = examples(), linear(bias=False)
    x, _ = pooled(data)
    with torch.no_grad():
        p = model(x)[:, 0].sigmoid()
    torch.testing.assert_close(columns(model, logistic, data), (x.T * (p * (1 - p))) @ x / len(x))


def test_a_network_over_unequal_batches_has_the_hessian_of_the_pooled_data():
    model, data = network(), examples()
    expected = exact_hessian(model, classification_loss, pooled(data))
    torch.testing.assert_close(columns(model, classification_loss, data), expected)


def test_frozen_parameters_are_left_out_and_weights_may_be_given():
    model, other, data = network(), network(), examples()
    model[0].bias.requires_grad_(False)
    other[0].bias.requires_grad_(False)
    before = clone(weights_of(model))
    found = columns(model, classification_loss, data, weights=weights_of(other))
    torch.testing.assert_close(found, exact_hessian(other, classification_loss, pooled(data)))
    assert all(torch.equal(before[name], value) for name, value in weights_of(model).items())


@pytest.mark.parametrize("name", ["tied_autoencoder", "residual", "layer_norm_mlp", "group_norm"])
def test_products_of_other_networks_are_differences_of_gradients(name):
    case = CASES[name]
    model = case.model().double()
    data = [(x.double(), y) for x, y in case.batches()]
    mean = MeanLoss(Task(model, data), weights=None)
    vector = torch.randn(mean.size, dtype=torch.float64)
    step = 1e-7  # few of the ReLU switch in between
    with torch.no_grad():
        slopes = []
        for sign in (1, -1):
            moved = dict(weights_of(model))
            for n, value in mean.named(vector).items():
                moved[n] = moved[n] + sign * step * value
            there = MeanLoss(Task(model, data), weights=moved)
            slopes.append(there.gradient())
    expected = (slopes[0] - slopes[1]) / (2 * step)
    torch.testing.assert_close(mean.product(vector), expected, rtol=1e-4, atol=1e-6)


def test_batchnorm_uses_its_running_statistics_unless_told_otherwise():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()
    data = examples((6, 6))
    before = clone(weights_of(model))
    running = columns(model, classification_loss, data)
    own = columns(model, classification_loss, data, mode="own")
    assert all(torch.equal(before[name], value) for name, value in weights_of(model).items())
    assert model.training
    torch.testing.assert_close(
        running, exact_hessian(model.eval(), classification_loss, pooled(data))
    )
    model.train()
    parts = [exact_hessian(model, classification_loss, batch) for batch in data]
    torch.testing.assert_close(own, (parts[0] + parts[1]) / 2)


def test_a_loss_without_curvature_has_none():
    model = linear()
    vector = {"weight": torch.ones(1, 4)}
    found = hessian_product(vector, Task(model, examples(), lambda m, b: m(b[0]).mean()))
    assert not any(value.any() for value in found.values())


# spectrum and trace


def test_eigenvalues_are_those_of_the_exact_hessian():
    model, data = network(), examples()
    values = torch.linalg.eigvalsh(exact_hessian(model, classification_loss, pooled(data)))
    seen = []
    found = hessian_spectrum(
        Task(model, data),
        progress=lambda *at: seen.append(at),
        plan=SpectrumPlan(count=3, tolerance=1e-9),
    )
    torch.testing.assert_close(found.eigenvalues, values.flip(0)[:3])
    assert found.lowest == pytest.approx(float(values[0]))
    assert found.converged
    assert found.products == len(seen) <= 23
    for value, vector in zip(found.eigenvalues, found.vectors, strict=True):
        product = hessian_product(vector, Task(model, data))
        torch.testing.assert_close(flat(product), value * flat(vector), rtol=0, atol=1e-6)
        assert float(flat(vector).norm()) == pytest.approx(1)


def diagonal(values):
    """A model and a loss whose Hessian is diagonal, with these values."""
    weight = torch.tensor([values], dtype=torch.float64)
    model = nn.Linear(len(values), 1, bias=False).double()
    return model, lambda model, _: (model.weight.square() * weight).sum() / 2


def test_residuals_bound_the_error_before_it_has_converged():
    values = [1.1**n for n in range(60)]
    model, loss = diagonal(values)
    found = hessian_spectrum(Task(model, [torch.zeros(1)], loss), plan=SpectrumPlan(iterations=6))
    assert not found.converged
    assert found.products == 6
    error = min(abs(value - float(found.eigenvalues[0])) for value in values)
    assert 0 < error <= float(found.residuals[0])
    assert float(found.eigenvalues[0]) < max(values)
    lowest = min(abs(value - found.lowest) for value in values)
    assert lowest <= found.lowest_residual


def test_more_eigenvalues_than_are_different():
    """The Hessian maps a small space into itself: the search goes on elsewhere."""
    model, loss = diagonal([7.0, 0.0, 0.0, 0.0, 0.0])
    found = hessian_spectrum(Task(model, [torch.zeros(1)], loss), plan=SpectrumPlan(count=4))
    torch.testing.assert_close(found.eigenvalues, torch.tensor([7.0, 0, 0, 0]).double())
    assert found.converged


def test_float32_finds_the_same():
    model, data = network(), examples()
    exact = hessian_spectrum(Task(model, data)).eigenvalues
    single = [(x.float(), y) for x, y in data]
    found = hessian_spectrum(Task(model.float(), single, classification_loss))
    torch.testing.assert_close(found.eigenvalues, exact, rtol=1e-4, atol=0)


def test_the_trace_is_in_its_error_bars_and_its_samples_are_quadratic_forms():
    model, data = network(), examples()
    hessian = exact_hessian(model, classification_loss, pooled(data))
    found = hessian_trace(Task(model, data), samples=300)
    assert abs(found.trace - float(hessian.trace())) < 3 * found.standard_error
    # Hutchinson's variance for random signs: twice the squares off the diagonal.
    off = hessian - torch.diag(hessian.diagonal())
    expected = math.sqrt(2 * float(off.square().sum()) / 300)
    assert found.standard_error == pytest.approx(expected, rel=0.2)
    assert found.products == len(found.samples) == 300


def test_the_same_seed_gives_the_same():
    model, data = network(), examples()
    runs = [hessian_trace(Task(model, data), seed=s) for s in (1, 1, 2)]
    assert runs[0].trace == runs[1].trace != runs[2].trace


# gradient noise


@pytest.mark.parametrize("sizes", [(1, 1), (1, 2), (2, 1, 1)])
def test_noise_and_gradient_are_unbiased(sizes):
    """Over all samples of a population of three, the means are exactly what is estimated."""
    population = torch.tensor([[1.0, 0.0], [4.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()  # whose gradient of its mean output is the mean
    noises, squares = [], []
    for drawn in itertools.product(range(3), repeat=sum(sizes)):
        rows = iter(drawn)
        data = [population[[next(rows) for _ in range(size)]] for size in sizes]
        found = gradient_noise(Task(model, data, lambda model, batch: model(batch).mean()))
        noises.append(found.noise)
        squares.append(found.squared_gradient)
    mean = population.mean(0)
    variance = float((population - mean).square().sum() / 3)
    assert sum(noises) / len(noises) == pytest.approx(variance)
    assert sum(squares) / len(squares) == pytest.approx(float(mean.square().sum()))


def test_equal_batches_give_the_estimates_from_two_batch_sizes():
    model, data = linear(), examples((4, 4, 4))
    mean = MeanLoss(Task(model, data, squared), weights=None)
    small = sum(float(g.square().sum()) for g, _ in mean.gradients()) / 3
    big = float(mean.gradient().square().sum())
    found = gradient_noise(Task(model, data, squared))
    assert found.squared_gradient == pytest.approx((12 * big - 4 * small) / (12 - 4))
    assert found.noise == pytest.approx((small - big) / (1 / 4 - 1 / 12))
    assert found.scale == pytest.approx(found.noise / found.squared_gradient)


def test_without_a_gradient_the_noise_scale_is_infinite():
    model = nn.Linear(1, 1, bias=False)
    data = [torch.tensor([[1.0]]), torch.tensor([[-1.0]])]
    found = gradient_noise(Task(model, data, lambda model, batch: model(batch).mean()))
    assert found.noise == 2
    assert found.scale == math.inf


# sharpness


def test_sharpness_in_a_bowl_by_its_formula():
    values = torch.tensor([5.0, 1.0, -2.0], dtype=torch.float64)
    model, loss = diagonal(values.tolist())
    found = sharpness(Task(model, [torch.zeros(1)], loss), radius=0.3)
    slope = values * model.weight.detach()[0]
    bend = float((values * slope.square()).sum() / slope.square().sum())
    expected = 0.3 * float(slope.norm()) + 0.3**2 / 2 * bend
    assert found.rise == pytest.approx(expected)
    assert found.gradient_norm == pytest.approx(float(slope.norm()))


def test_at_a_minimum_nothing_rises():
    model, loss = diagonal([1.0, 2.0])
    nn.init.zeros_(model.weight)
    assert sharpness(Task(model, [torch.zeros(1)], loss)).rise == 0


# all together, and along a run


def test_all_at_once_is_each_alone():
    model, data = network(), examples()
    found = measure_curvature(Task(model, data), plan=CurvaturePlan(seed=3))
    spectrum = hessian_spectrum(Task(model, data), plan=SpectrumPlan(tolerance=1e-2, seed=3))
    trace = hessian_trace(Task(model, data), samples=10, seed=3)
    raised = sharpness(Task(model, data))
    assert found.largest == spectrum.eigenvalues[0].item()
    assert found.lowest == spectrum.lowest
    assert (found.trace, found.trace_error) == (trace.trace, trace.standard_error)
    assert (found.loss, found.sharpness) == (raised.loss, raised.rise)
    assert found.noise_scale == gradient_noise(Task(model, data)).scale
    assert found.products == spectrum.products + 10
    alone = measure_curvature(Task(model, data[:1], classification_loss))
    assert math.isnan(alone.noise_scale)


def test_a_permuted_network_has_the_same_curvature():
    model, data = network(), examples()
    order = torch.tensor([2, 0, 1])
    weights = weights_of(model)
    permuted = {
        "0.weight": weights["0.weight"][order],
        "0.bias": weights["0.bias"][order],
        "2.weight": weights["2.weight"][:, order],
        "2.bias": weights["2.bias"],
    }
    found = [
        measure_curvature(Task(model, data), weights=w, plan=CurvaturePlan(tolerance=1e-8))
        for w in (weights, permuted)
    ]
    for name in ("loss", "gradient_norm", "largest", "lowest", "sharpness", "noise_scale"):
        assert getattr(found[0], name) == pytest.approx(getattr(found[1], name))


def short_run(model, data, *, steps=4):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = [clone(weights_of(model))]
    for _ in range(steps):
        optimizer.zero_grad()
        classification_loss(model, data[0]).backward()
        optimizer.step()
        kept.append(clone(weights_of(model)))
    return Trajectory.from_weights(kept, steps=range(0, 10 * len(kept), 10))


def test_along_a_run_it_is_that_of_each_snapshot():
    model, data = network(), examples()
    run = short_run(model, data)
    found = curvature_along(
        run,
        Task(model, iter(data)),
        steps=[0, 30],
        plan=CurvaturePlan(samples=2),
    )
    assert found.steps == (0, 30)
    for position, step in enumerate(found.steps):
        expected = measure_curvature(
            Task(model, data),
            weights=run.at(step).weights,
            plan=CurvaturePlan(samples=2),
        )
        assert asdict(found.at(position)) == asdict(expected)
    assert curvature_along(run, Task(model, data), plan=CurvaturePlan(samples=2)).steps == (
        0,
        10,
        20,
        30,
        40,
    )


def test_an_interrupted_measurement_goes_on(tmp_path):
    model, data = network(), examples()
    run = short_run(model, data)
    task, plan = Task(model, data), CurvaturePlan(samples=2)
    whole = curvature_along(run, task, plan=plan)

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    file = tmp_path / "curvature.safetensors"
    with pytest.raises(KeyboardInterrupt):
        curvature_along(run, task, plan=plan, resume=file, progress=stop)
    seen = []
    again = curvature_along(run, task, plan=plan, resume=file, progress=lambda *at: seen.append(at))
    assert seen == [(3, 5), (4, 5), (5, 5)]
    for name, value in whole.values.items():
        assert torch.equal(again.values[name], value)
    with pytest.raises(ValueError, match="computed with other options"):
        curvature_along(run, task, plan=replace(plan, seed=1), resume=file)
    with pytest.raises(ValueError, match="computed with other data"):
        curvature_along(run, task.on(data[:2]), plan=plan, resume=file)


# errors


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 2 * slope


class Attending(nn.Module):
    """Scaled dot product attention in its fused form."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4).double()

    def forward(self, x):
        x = self.head(x)[None, None]
        return functional.scaled_dot_product_attention(x, x, x)[0, 0]


def test_operators_without_a_second_derivative_are_named():
    once = nn.Sequential(linear(2))
    for model, loss, words in [
        (once, lambda m, b: Once.apply(m(b[0])).square().mean(), "once_differentiable"),
        (Attending(), lambda m, b: m(b[0]).square().mean(), "attention.*sdpa_kernel"),
    ]:
        vector = {name: torch.ones_like(p) for name, p in model.named_parameters()}
        with pytest.raises(ValueError, match=f"Hessian cannot be taken.*{words}"):
            hessian_product(vector, Task(model, examples(), loss))


def test_operations_in_place_are_named():
    def loss(model, batch):
        outputs = model(batch[0])
        raised = outputs.exp()
        value = raised.square().mean()
        raised += 1
        return value

    with pytest.raises(ValueError, match="in-place operation overwrites"):
        hessian_product({"bias": torch.ones(1)}, Task(linear(), examples(), loss))


def test_a_loss_that_is_not_deterministic_is_refused():
    model = nn.Sequential(nn.Dropout(0.5), linear(2))
    with pytest.raises(ValueError, match="not deterministic: dropout in train mode at 0"):
        hessian_trace(Task(model, examples(), classification_loss), mode="own")
    assert hessian_trace(Task(model, examples(), classification_loss)).trace > 0
    with pytest.raises(ValueError, match="not deterministic"):
        hessian_trace(Task(model, examples(), lambda m, b: squared(m, b) + torch.rand(())))


def test_bad_input_is_told():
    model, data = linear(), examples()
    run = short_run(linear(2), data)
    nowhere = {name: torch.full_like(v, math.nan) for name, v in weights_of(model).items()}
    for call, message in [
        (lambda: hessian_trace(Task(model, [], squared)), "data is empty"),
        (
            lambda: hessian_trace(Task(model, data, squared), samples=1),
            "samples must be at least 2",
        ),
        (lambda: hessian_trace(Task(model, data, squared), mode="train"), "mode must be 'eval' or"),
        (lambda: hessian_trace(Task(model, data, squared), weights=nowhere), "batch 0 .* is nan"),
        (
            lambda: hessian_spectrum(Task(model, data, squared), plan=SpectrumPlan(count=6)),
            "count must be from 1 to 5",
        ),
        (
            lambda: hessian_spectrum(
                Task(model, data, squared), plan=SpectrumPlan(count=3, iterations=2)
            ),
            "iterations must be at least count, 3, got 2",
        ),
        (
            lambda: hessian_spectrum(Task(model, data, squared), plan=SpectrumPlan(tolerance=0)),
            "tolerance must be",
        ),
        (lambda: gradient_noise(Task(model, data[:1], squared)), "data has 1 batch; the noise"),
        (lambda: sharpness(Task(model, data, squared), radius=0), "radius must be above 0, got 0"),
        (
            lambda: hessian_product({"gone": torch.ones(1)}, Task(model, data, squared)),
            "no tensor named 'gone'",
        ),
        (
            lambda: hessian_product({"bias": torch.ones(2)}, Task(model, data, squared)),
            r"'bias' has shape \(2,\)",
        ),
        (
            lambda: curvature_along(run, Task(linear(2), data, classification_loss), steps=[7]),
            "Step 7 was not kept; the nearest is 10",
        ),
        (lambda: hessian_trace(Task(nn.Identity(), data, squared)), "no parameter that requires"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.gpu
def test_it_runs_where_the_model_is():
    model, data = network(), examples()
    expected = measure_curvature(Task(model, data))
    found = measure_curvature(Task(model.cuda(), data, classification_loss))
    for name in ("loss", "gradient_norm", "largest", "trace", "sharpness", "noise_scale"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))
