"""Losses after adaptation: closed forms, differences, a plain second implementation, proofs."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from oracles.plain_meta import plain_objective
from slipstream.evaluation import (
    Task,
    TaskBatch,
    accuracy,
    batch_statistics,
    classification_loss,
    evaluate,
    gradient,
    inputs_of,
    recalibrate_batchnorm,
)
from slipstream.recipes.few_shot import Adaptation, AfterAdaptation, adapt, head_of

TASKS, EXAMPLES = 4, 6
NETWORKS = {
    "mlp": lambda: [nn.Flatten(), nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 3)],
    "batchnorm": lambda: [
        *(nn.Flatten(), nn.Linear(16, 9), nn.BatchNorm1d(9), nn.Tanh()),
        *(nn.Linear(9, 7, bias=False), nn.BatchNorm1d(7, affine=False), nn.Tanh()),
        nn.Linear(7, 3),
    ],
    "layernorm": lambda: [nn.Flatten(), nn.Linear(16, 9), nn.LayerNorm(9), nn.Linear(9, 3)],
    "conv": lambda: [
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh()),
        *(nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), nn.Tanh(), nn.Flatten()),
        nn.Linear(6, 3),
    ],
}


def network(name, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*NETWORKS[name]()).double()


def tasks(seed=0, examples=EXAMPLES):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, TASKS, examples, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (2, TASKS, examples), generator=generator)
    return TaskBatch((x[0], y[0]), (x[1], y[1]))


def leaves_of(model, *, masked):
    own = dict(model.named_parameters())
    if not masked:
        return own, {}
    body = [n for n, p in own.items() if p.dim() > 1 and n not in head_of(model)]
    generator = torch.Generator().manual_seed(5)
    masks = {
        n: (torch.rand(own[n].shape, generator=generator) > 0.4).double().requires_grad_()
        for n in body
    }
    return {n: p.detach() for n, p in own.items()}, masks


def test_a_bowl_in_closed_form():
    """After a step of rate r on |w - a|^2 / 2, w = (1 - r) w + r a: loss and slope follow."""
    model = nn.Linear(2, 1, bias=False).double()
    start = model.weight.detach().clone()

    def bowl(model, batch):
        return (model.weight - batch.mean(0)).square().sum() / 2

    centres = torch.tensor([[[1.0, 2.0]], [[-3.0, 0.5]]]).double()
    for batching in ("auto", "vmap", "none"):
        after = AfterAdaptation(Adaptation(0.25, 2, batching=batching), bowl)
        value = after(model, TaskBatch(centres, centres))
        shrunk = 0.75**2
        expected = [(shrunk * (start - c)).square().sum() / 2 for c in centres]
        torch.testing.assert_close(value, torch.stack(expected).mean())
        (slope,) = torch.autograd.grad(value, [model.weight])
        torch.testing.assert_close(slope, shrunk**2 * (start - centres.mean(0)))
        first = replace(after, adaptation=replace(after.adaptation, second_order=False))
        (slope,) = torch.autograd.grad(first(model, TaskBatch(centres, centres)), [model.weight])
        torch.testing.assert_close(slope, shrunk * (start - centres.mean(0)))


@pytest.mark.parametrize("masked", [False, True], ids=["weights", "masks"])
@pytest.mark.parametrize("second_order", [True, False], ids=["second", "first"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("adapted", ["all", "head", "body"])
@pytest.mark.parametrize("examples", [EXAMPLES, EXAMPLES + 1])  # at most PAIRS of rows, and more
@pytest.mark.parametrize("name", NETWORKS)
def test_all_at_once_is_one_after_another(name, examples, adapted, steps, second_order, masked):
    model, batch = network(name), tasks(examples=examples)
    free, masks = leaves_of(model, masked=masked)
    at = list((masks or free).values())
    after = AfterAdaptation(Adaptation(0.4, steps, adapted, second_order=second_order))
    head = head_of(model)
    moved = [n for n in free if adapted == "all" or (n in head) == (adapted == "head")]
    with batch_statistics(model):
        expected = plain_objective(
            model, lambda call, given: nn.functional.cross_entropy(call(given[0]), given[1]),
            batch, rate=0.4, steps=steps, moved=moved, free=free, masks=masks,
            second_order=second_order,
        )  # fmt: skip
        slopes = torch.autograd.grad(expected, at, materialize_grads=True)
    assert after._batching(model, batch) == "together"
    found = after.mean(model, batch, free=free, masks=masks)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    given = torch.autograd.grad(found, at, materialize_grads=True)
    for one, other in zip(given, slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("examples", [EXAMPLES, EXAMPLES + 1])
def test_masks_under_autocast(examples, steps):
    model, batch = network("mlp").float(), tasks(examples=examples)
    batch = TaskBatch(*((x.float(), y) for x, y in batch))
    free, masks = leaves_of(model, masked=True)
    masks = {n: m.detach().float().requires_grad_() for n, m in masks.items()}
    after, slopes = AfterAdaptation(Adaptation(0.4, steps)), {}
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = after.mean(model, batch, free=free, masks=masks)
        slopes[enabled] = torch.autograd.grad(value, masks.values())
    for one, other in zip(slopes[True], slopes[False], strict=True):
        assert (one - other).norm() < 0.05 * other.norm()


def test_the_gradient_of_a_mask_is_the_slope_of_the_loss():
    model, batch = network("batchnorm"), tasks(examples=7)
    free, masks = leaves_of(model, masked=True)
    after = AfterAdaptation(Adaptation(0.4))
    slopes = torch.autograd.grad(after.mean(model, batch, free=free, masks=masks), masks.values())
    for name, slope in zip(masks, slopes, strict=True):
        towards = torch.rand_like(slope) - 0.5
        values = []
        for sign in (1, -1):
            moved = masks | {name: masks[name].detach() + sign * 1e-6 * towards}
            values.append(after.mean(model, batch, free=free, masks=moved).item())
        difference = (values[0] - values[1]) / 2e-6
        assert difference == pytest.approx((slope * towards).sum().item(), rel=1e-5)


def test_vmap_with_wrong_second_derivatives_is_refused():
    """PyTorch's vmap takes batch statistics as constants in second derivatives: noticed."""
    model, batch = network("layernorm"), tasks()
    with pytest.raises(ValueError, match="batching='vmap' does not give the values"):
        AfterAdaptation(Adaptation(batching="vmap"))(model, batch)


class Mixing(nn.Sequential):
    """Its examples meet: each is seen relative to the mean of all."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


def test_tasks_whose_examples_meet_are_held_apart():
    torch.manual_seed(0)
    model, batch = Mixing(*NETWORKS["mlp"]()).double(), tasks()
    after = AfterAdaptation(Adaptation())
    assert after._batching(model, batch) == "vmap"
    alone = AfterAdaptation(Adaptation(batching="none"))
    torch.testing.assert_close(after(model, batch), alone(model, batch), rtol=1e-12, atol=1e-12)


def test_what_no_batching_fits_is_computed_one_by_one():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(-x if float(x.mean()) > 0.5 else x)

    torch.manual_seed(0)
    model, batch = Branching(*NETWORKS["mlp"]()).double(), tasks()
    shifted = TaskBatch(*((x + torch.arange(TASKS).view(-1, 1, 1, 1, 1) - 1, y) for x, y in batch))
    # Any of the ways gives the same values: only inside is seen which one was taken.
    assert AfterAdaptation(Adaptation())._batching(model, shifted) == "none"
    square = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16)).double()
    square[2].weight = square[1].weight
    # Any of the ways gives the same values: only inside is seen which one was taken.
    assert AfterAdaptation(Adaptation())._batching(square, batch) == "vmap"


def test_a_frozen_model_can_be_judged():
    model, batch = network("batchnorm").requires_grad_(requires_grad=False), tasks()
    after = AfterAdaptation(Adaptation())
    with batch_statistics(model):
        queries = [(batch.query[0][t], batch.query[1][t]) for t in range(TASKS)]
        expected = sum(classification_loss(model, query) for query in queries) / TASKS
    torch.testing.assert_close(after(model, batch), expected)  # no inner step moves anything


def test_each_task_and_their_mean():
    model, batch = network("batchnorm"), tasks()
    for metric in (None, accuracy):
        after = AfterAdaptation(Adaptation(0.3, 2), metric=metric)
        each = after.each(model, batch)
        assert each.shape == (TASKS,)
        torch.testing.assert_close(each.mean(), after(model, batch).to(each), rtol=1e-6, atol=1e-9)
        for t in range(TASKS):
            support, query = ([part[t] for part in parts] for parts in batch)
            weights = adapt(Task(model), support=support, adaptation=after.adaptation)
            twin = copy.deepcopy(model)
            twin.load_state_dict(weights)
            with batch_statistics(twin):
                found = (metric or classification_loss)(twin, query)
            torch.testing.assert_close(found.to(each), each[t], rtol=1e-10, atol=1e-12)


def test_a_model_is_left_as_it_was():
    model, batch = network("batchnorm"), tasks()
    before = copy.deepcopy(model.state_dict())
    for batching in ("auto", "none"):
        AfterAdaptation(Adaptation(batching=batching))(model.train(), batch).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_pruned_weights_stay_zero():
    model, batch = network("mlp"), tasks()
    with torch.no_grad():
        model[1].weight[:, ::2] = 0
        model[3].weight.zero_()
    support = tuple(part[0] for part in batch.support)
    weights = adapt(Task(model), support=support, adaptation=Adaptation(0.4, sparse=True))
    assert not weights["1.weight"][:, ::2].any()
    assert weights["3.weight"].any()  # a whole matrix of zeros is no mask
    dense = adapt(Task(model), support=support, adaptation=Adaptation(0.4))
    torch.testing.assert_close(
        dense["3.weight"], weights["3.weight"]
    )  # the head does not know of the mask yet


def test_it_is_a_loss_like_any_other():
    model, batch = network("batchnorm").float(), tasks()
    batch = TaskBatch(*((x.float(), y) for x, y in batch))
    after = AfterAdaptation(Adaptation())
    slope = gradient(model, after, data=[batch])
    value = after(model.eval(), batch)
    expected = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
    for found, other in zip(slope.values(), expected, strict=True):
        torch.testing.assert_close(found, other)
    assert evaluate(model, {"loss": after}, data=[batch])["loss"] == pytest.approx(value.item())
    assert inputs_of(batch).shape == (TASKS * EXAMPLES, 1, 4, 4)
    assert recalibrate_batchnorm(model, data=[batch], forward=after) == {}


def test_batch_statistics_come_back_after_an_error():
    layer = nn.BatchNorm1d(2)
    with pytest.raises(ZeroDivisionError), batch_statistics(layer):
        raise ZeroDivisionError
    assert layer.running_mean.tolist() == [0, 0]
    assert set(layer.state_dict()) == {
        *("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": 0.0}, "rate must be above 0"),
        ({"steps": -1}, "steps must not be negative"),
        ({"adapted": "tail"}, "adapted must be all, head or body"),
        ({"batching": "fast"}, "batching must be auto, together, vmap or none"),
        ({"head": "head.*"}, r"write head=\('head.\*',\)"),
    ],
)
def test_a_wrong_setting_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        Adaptation(**given)


def test_a_wrong_batch_or_head_is_told():
    model, batch = network("mlp"), tasks()
    with pytest.raises(ValueError, match="got a tuple: learning from few examples needs"):
        AfterAdaptation()(model, tuple(batch))
    with pytest.raises(ValueError, match="'tail' matches no parameter; there are"):
        AfterAdaptation(Adaptation(head=("tail",), adapted="head"))(model, batch)
