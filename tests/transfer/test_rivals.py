import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, classification_loss, recalibrate_batchnorm
from slipstream.trajectory import Trajectory
from slipstream.transfer import DescentPlan, descend, rivals, shuffled_source
from slipstream.transfer.rivals import best_rate
from slipstream.weights import weights_of
from transfer.small_runs import batches, network, trained

START = weights_of(network(2))


def task(**others):
    return Task(network(1), batches(), validation=batches(seed=8), **others)


def test_a_descent_is_a_training_with_a_cosine_on_the_batches_in_their_order():
    plan = DescentPlan("adam", gradients=6, rates=(0.02,), batchnorm_batches=3)
    found = descend(START, task(), plan)
    model = network(2)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * (step + 0.5) / 6))
        optimizer.zero_grad()
        classification_loss(model, batches()[step % 4]).backward()
        optimizer.step()
    for name, value in model.named_parameters():
        assert torch.allclose(found.weights[name], value), name
    statistics = recalibrate_batchnorm(model, data=batches()[:3])
    assert statistics
    for name, value in statistics.items():
        assert torch.allclose(found.weights[name], value), name
    assert found.validation == task().evaluate(weights=found.weights, split="validation")
    assert (found.gradients, found.gradients_of_all, found.rate) == (6, 6, 0.02)


@pytest.mark.parametrize("name", list(rivals()))
def test_every_rival_takes_as_many_gradients_as_it_says_and_learns(name):
    taken = []

    def counted(model, batch):
        if torch.is_grad_enabled():
            taken.append(batch)
        return classification_loss(model, batch)

    source = trained(network(0))[-1].weights

    def fed(model, batch):
        if torch.is_grad_enabled():
            taken.append(batch)
        return model(batch[0])

    plan = replace(rivals(4)[name], batches_per_gradient=2)
    own = replace(task(forward=fed), loss=counted, metrics={"accuracy": lambda *_: 0.5})
    found = descend(START, own, plan, source=source)
    sizes = [len(batch[1]) for batch in taken]
    assert sizes == [len(batch[1]) for batch in batches()] * 2 * len(found.tried)
    assert found.gradients_of_all == 4 * len(found.tried)
    losses = {rate: metrics["loss"] for rate, metrics in found.tried.items()}
    assert found.rate == min(losses, key=losses.get)
    assert min(losses) < found.rate < max(losses)
    before = own.evaluate(weights=START, split="validation")["loss"]
    assert losses[found.rate] < before


def test_two_batches_of_a_gradient_weigh_as_many_examples_as_they_hold():
    plan = DescentPlan("sgd", gradients=1, rates=(0.1,), batches_per_gradient=4)
    plain = Task(network(1, batchnorm=False), batches())
    start = weights_of(network(2, batchnorm=False))
    whole = [tuple(torch.cat(parts) for parts in zip(*batches(), strict=True))]
    one = descend(start, replace(plain, data=whole), replace(plan, batches_per_gradient=1))
    other = descend(start, plain, plan)
    for name, value in one.weights.items():
        assert torch.allclose(other.weights[name], value), name


def test_accuracy_chooses_the_rate_before_the_loss_does():
    accuracies = {}

    def favoured(model, _):
        return accuracies.setdefault(float(model[0].weight.sum()), len(accuracies) / 10)

    own = replace(task(), metrics={"accuracy": favoured})
    found = descend(START, own, DescentPlan("adam", 2, rates=(0.001, 0.01, 0.1)))
    assert found.validation["accuracy"] == max(m["accuracy"] for m in found.tried.values())
    assert found.validation["loss"] > min(m["loss"] for m in found.tried.values())


def test_the_grid_grows_on_both_sides_and_ends_between_neighbours():
    def worth(best, seen):
        return lambda rate: (seen.append(rate), (-abs(math.log(rate / best)),))[1]

    seen = []
    assert best_rate(worth(0.3, seen), (1.0, 10.0)) == pytest.approx(10**-0.5)
    assert seen == pytest.approx([1, 10, 0.1, 0.01, 10**-1.5, 10**-0.5])
    seen = []
    assert best_rate(worth(1e9, seen), (1.0, 2.0)) == 128  # as far as it goes
    assert best_rate(worth(0.3, seen := []), (1.0, 10.0), refine=False) == pytest.approx(0.1)
    assert seen == pytest.approx([1, 10, 0.1, 0.01])
    assert best_rate(worth(5.0, seen := []), (3.0,)) == 3
    assert seen == [3]


def test_rates_that_diverge_are_passed_over():
    def loss(model, batch):
        value = classification_loss(model, batch)
        return value / (model[0].weight.detach().abs().max() < 2)  # infinite far out

    found = descend(START, task(loss=loss), DescentPlan("sign-descent", 3, rates=(0.01, 9.0)))
    assert found.rate < 1
    assert found.tried[9.0] == {}
    with pytest.raises(ValueError, match="not finite at any rate"):
        descend(START, task(loss=loss), DescentPlan("sign-descent", 3, rates=(9.0,)))


def test_distillation_sees_no_label_and_comes_nearer_to_the_source():
    source = trained(network(0), steps=30)[-1].weights
    unlabelled = [inputs for inputs, _ in batches(seed=5)]
    plan = DescentPlan("adam", 50, rates=(0.02,), answers="source")
    for distance, classes in (("divergence", True), ("squared", False)):
        own = Task(network(1), unlabelled=unlabelled, calibration=unlabelled, loss=None)
        own = replace(own, loss=lambda *_: torch.zeros(()), metrics={})
        found = descend(START, own, replace(plan, distance=distance), source=source)

        def apart(weights, classes=classes):
            model = network(1)
            outputs = []
            for one in (weights, source):
                whole = {**weights_of(model), **one}
                whole |= recalibrate_batchnorm(model, weights=whole, data=unlabelled)
                model.load_state_dict(whole)
                model.eval()
                outputs.append(model(unlabelled[0]).detach())
            if classes:
                outputs = [output.softmax(-1) for output in outputs]
            return (outputs[0] - outputs[1]).norm()

        assert apart(found.weights) < 0.7 * apart(START)


def test_what_distillation_learns_follows_from_the_task():
    source = trained(network(0))[-1].weights
    plan = DescentPlan("adam", 2, rates=(0.02,), answers="source")
    ends = {
        distance: descend(START, task(), replace(plan, distance=distance), source=source).weights
        for distance in ("auto", "divergence", "squared")
    }
    other = task(loss=nn.Module.__call__, forward=lambda model, batch: model(batch[0]))
    other = replace(other, validation=None)
    values = descend(START, other, plan, source=source).weights
    assert torch.equal(ends["auto"]["0.weight"], ends["divergence"]["0.weight"])
    assert torch.equal(values["0.weight"], ends["squared"]["0.weight"])
    assert not torch.equal(values["0.weight"], ends["divergence"]["0.weight"])


def test_the_model_is_left_as_it_was():
    own = task()
    before = copy.deepcopy(own.model.state_dict())
    descend(START, own, DescentPlan("lion", 2))
    assert all(torch.equal(before[n], v) for n, v in own.model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "newton"}, "optimizer must be sgd, adam, .* got 'newton'"),
        ({"gradients": 0}, "gradients must be at least 1, got 0"),
        ({"rates": (0.1, 0.01)}, "rates must grow from above 0"),
        ({"rates": (0.0, 0.01)}, "rates must grow from above 0"),
        ({"answers": "nobody"}, "answers must be labels or source"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        DescentPlan(**change)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="rate is chosen on validation data"):
        descend(START, replace(task(), validation=None), DescentPlan())
    with pytest.raises(ValueError, match="pass source=weights"):
        descend(START, task(), DescentPlan(answers="source"))


def test_a_shuffled_source_keeps_start_and_sizes_and_loses_the_order():
    run = trained(network(0))
    shuffled = shuffled_source(run, seed=3)
    assert len(shuffled) == 2
    for name, start in run[0].weights.items():
        if not start.is_floating_point():
            continue
        assert torch.equal(shuffled[0].weights[name], start)
        moves = [(one[-1].weights[name] - start).flatten() for one in (run, shuffled)]
        assert torch.allclose(*(move.sort().values for move in moves))
        if start.numel() > 20:
            assert not torch.allclose(*moves)
    other = shuffled_source(run, seed=4)
    assert not torch.equal(other[-1].weights["0.weight"], shuffled[-1].weights["0.weight"])
    assert isinstance(shuffled, Trajectory)
