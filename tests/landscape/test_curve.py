import math

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, classification_loss, evaluate
from slipstream.landscape import CurvePlan, Shape, Span, barrier_along, fit_curve
from slipstream.training import TrainingPlan
from slipstream.weights import clone, interpolate, weights_of

SHORT = CurvePlan(descent=TrainingPlan.cosine(epochs=4, lr=0.02), points=5)


def ring_loss(model, batch):
    """Low on the circle of radius 1: the straight way between opposite points climbs to 1."""
    return (model.w.square().sum() - 1).square() + 0 * batch.mean()


class Point(nn.Module):
    def __init__(self, *place):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(place))


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2)
        )


def batches():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(15, 3, generator=generator)
    return list(zip(inputs.split(6), (inputs[:, 0] > 0).long().split(6), strict=True))


def ends():
    return weights_of(network(1)), weights_of(network(2))


@pytest.mark.parametrize(("shape", "bends"), [("bezier", 1), ("bezier", 2), ("polyline", 2)])
def test_it_goes_around_a_hill(shape, bends):
    start, end = {"w": torch.tensor([-1.0, 0.1])}, {"w": torch.tensor([1.0, 0.1])}
    how = TrainingPlan.cosine(epochs=300, lr=0.05, weight_decay=0.0)
    plan = CurvePlan(shape, bends, how, points=41)
    curve = fit_curve(start, end, Task(Point(0.0, 0.0), [torch.ones(1)], ring_loss), plan=plan)
    assert curve.straight.height == pytest.approx(0.99**2 - 0.01**2)  # (0.1^2 - 1)^2 in the middle
    assert curve.along.height < 0.2 * curve.straight.height
    assert len(curve.controls) == bends + 2
    assert curve.along.line.losses[0] == curve.straight.line.losses[0]
    assert curve.straight.line.distances[-1] == pytest.approx(2)
    places = torch.stack([curve.at(i / 40)["w"] for i in range(41)]).double()
    length = places.diff(dim=0).norm(dim=1).sum()
    assert curve.along.line.distances[-1] == pytest.approx(float(length), rel=1e-5)
    assert curve.at(0.5)["w"].norm() == pytest.approx(1, abs=0.2)


def test_the_ends_are_kept_to_the_bit_and_the_bend_starts_on_the_line():
    (start, end), data = ends(), batches()
    curve = fit_curve(start, end, Task(network(0), data, classification_loss), plan=SHORT)
    for name in ("0.weight", "4.bias"):
        assert torch.equal(curve.at(0.0)[name], start[name])
        assert torch.equal(curve.at(1.0)[name], end[name])
        middle = interpolate(start, end, 0.5)[name]
        assert not torch.equal(curve.controls[1][name], middle)
    still = CurvePlan(descent=TrainingPlan.cosine(epochs=1, lr=1e-12, weight_decay=0.0))
    unmoved = fit_curve(start, end, Task(network(0), data, classification_loss), plan=still)
    torch.testing.assert_close(
        unmoved.controls[1]["0.weight"], interpolate(start, end, 0.5)["0.weight"]
    )
    torch.testing.assert_close(
        unmoved.along.line.losses, unmoved.straight.line.losses, rtol=1e-4, atol=1e-5
    )


def test_the_losses_are_those_of_the_weights_it_gives():
    (start, end), data = ends(), batches()
    model = network(0)
    before = clone(weights_of(model))
    curve = fit_curve(start, end, Task(model, data), plan=SHORT)
    line = curve.along.line
    assert set(line.values) == {"loss", "accuracy"}
    for position, loss in zip(line.positions.tolist(), line.losses.tolist(), strict=True):
        found = evaluate(
            model, {"loss": classification_loss}, weights=curve.at(position), data=data
        )
        assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert all(torch.equal(before[n], v) for n, v in weights_of(model).items())
    assert curve.steps == 12
    assert len(curve.training_losses) == 4


def test_an_interrupted_fit_goes_on_to_the_same_bits(tmp_path):
    (start, end), data = ends(), batches()
    task = Task(network(0), data)
    whole = fit_curve(start, end, task, plan=SHORT)
    file = tmp_path / "fit.pt"

    def stop(step, total):
        assert total == 12
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_curve(start, end, task, plan=SHORT, checkpoint=file, progress=stop)
    steps = []
    resumed = fit_curve(
        start, end, task, plan=SHORT, checkpoint=file,
        progress=lambda step, total: steps.append(step),
    )  # fmt: skip
    assert steps[0] > 1
    assert steps[-1] == 12
    assert torch.equal(resumed.along.line.losses, whole.along.line.losses)
    for ours, theirs in zip(resumed.controls, whole.controls, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again = fit_curve(start, end, task, plan=SHORT, checkpoint=file, progress=lambda *_: 1 / 0)
    assert torch.equal(again.along.line.losses, whole.along.line.losses)


def test_a_checkpoint_of_another_fit(tmp_path):
    (start, end), data = ends(), batches()
    file, task = tmp_path / "fit.pt", Task(network(0), data)
    fit_curve(start, end, task, plan=SHORT, checkpoint=file)
    other = CurvePlan(descent=TrainingPlan.cosine(epochs=4, lr=0.5), points=5)
    with pytest.raises(ValueError, match=r"another training: its plan.descent.lr is 0.02, here"):
        fit_curve(start, end, task, plan=other, checkpoint=file)
    with pytest.raises(ValueError, match="another training: its ends is"):
        fit_curve(end, start, task, plan=SHORT, checkpoint=file)
    file.write_bytes(b"something of the user's own")
    with pytest.raises(ValueError, match="holds no state to resume from"):
        fit_curve(start, end, task, plan=SHORT, checkpoint=file)
    assert file.read_bytes() == b"something of the user's own"


def test_ends_that_make_no_curve():
    start, end = ends()
    model, data = network(0), batches()

    def fit(**given):
        return fit_curve(task=Task(model, data), plan=SHORT, **given)

    with pytest.raises(ValueError, match="start and end are equal: there is nothing between"):
        fit(start=start, end=clone(start))
    with pytest.raises(ValueError, match=r"start and end differ in the shape of '0.weight'"):
        fit(start=start, end=end | {"0.weight": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"end holds a NaN or an infinity in the tensor '4.bias'"):
        fit(start=start, end=end | {"4.bias": torch.full((2,), math.nan)})
    partial = [{"0.weight": side["0.weight"]} for side in (start, end)]
    with pytest.raises(ValueError, match=r"lacks the tensor '0.bias' that the model has"):
        fit(start=partial[0], end=partial[1])
    with pytest.raises(ValueError, match="data is empty"):
        fit_curve(start, end, Task(model, []), plan=SHORT)


def test_a_loss_that_is_not_finite_names_the_step():
    start, end = ends()
    with pytest.raises(ValueError, match="The loss at step 1 is nan"):
        fit_curve(
            start,
            end,
            Task(network(0), batches(), lambda *given: classification_loss(*given) * math.nan),
            plan=SHORT,
        )


def test_ends_may_be_the_parameters_alone():
    model, data = network(0), batches()
    own = [{n: v for n, v in side.items() if "running" not in n} for side in ends()]
    curve = fit_curve(own[0], own[1], Task(model, data), plan=SHORT)
    assert "1.running_mean" in curve.at(0.5)
    full = fit_curve(*ends(), Task(model, data), plan=SHORT)
    assert torch.equal(full.at(0.5)["4.weight"], curve.at(0.5)["4.weight"])


def test_a_barrier_is_along_a_line():
    corners = tuple(weights_of(network(seed)) for seed in range(3))
    with pytest.raises(ValueError, match="span must be a line or a curve"):
        barrier_along(Span(Shape("simplex", 3), corners), Task(network(0), batches()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "spline"}, "shape must be bezier or polyline, got 'spline'"),
        ({"bends": 0}, "bends must be at least 1, got 0"),
        ({"points": 1}, "points must be at least 2"),
    ],
)
def test_plans_of_no_curve(options, message):
    with pytest.raises(ValueError, match=message):
        CurvePlan(**options)
