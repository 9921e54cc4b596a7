"""The best start for new data, by a few labelled batches."""

import pytest
import torch
from descendants import network, trained, weights
from torch import nn

from slipstream.comparison import StartPlan, choose_start
from slipstream.evaluation import Task
from slipstream.testbed import load_data
from slipstream.trajectory import Trajectory


def batches(count=4, *, flipped=False):
    examples = load_data("digits").test
    images = examples.inputs.flip(-1) if flipped else examples.inputs
    return [(images[n::count][:32], examples.labels[n::count][:32]) for n in range(count)]


STARTS = {
    "plain": weights(trained(network(), 150)),
    "mirrored": weights(trained(network(1), 150, flipped=True)),
}


@pytest.mark.parametrize(("flipped", "best"), [(False, "plain"), (True, "mirrored")])
def test_what_learned_the_same_is_the_best_start(flipped, best):
    task = Task(network(5), batches(flipped=flipped))
    before = weights(task.model)
    choice = choose_start(STARTS, task, plan=StartPlan(steps=5, rates=(1e-3,)))
    assert choice.best.name == best
    assert choice.margin > 2
    assert [one.name for one in choice.candidates][-1] == "fresh"
    assert all(torch.equal(v, before[n]) for n, v in weights(task.model).items())
    assert str(choice).count("\n") == 3


def test_the_cost_is_what_was_counted():
    calls = {"train": 0, "eval": 0}

    def loss(model, batch):
        calls["train" if model.training else "eval"] += 1
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    plan = StartPlan(batches=3, steps=4, rates=(1e-3, 1e-4))
    choice = choose_start(STARTS, Task(network(5), batches(), loss), plan=plan)
    assert (choice.gradients, choice.forward_passes) == (calls["train"], calls["eval"])
    assert choice.gradients == 2 * 2 * 4 * 3


def test_no_batch_is_judged_by_what_was_fitted_on_it():
    fitted, judged = [], []

    def loss(model, batch):
        (fitted if model.training else judged).append(int(batch[1].sum()))
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    data = [(torch.randn(8, 1, 8, 8), torch.full((8,), n)) for n in range(4)]
    choose_start(
        [STARTS["plain"]], Task(network(), data, loss), plan=StartPlan(steps=2, rates=(1e-3,))
    )
    trial = fitted[:2], judged[4:6]
    assert not set(trial[0]) & set(trial[1])


def test_without_steps_the_starts_are_judged_as_they_are():
    choice = choose_start(STARTS, Task(network(), batches()), plan=StartPlan(steps=0))
    assert choice.gradients == 0
    for one in choice.candidates:
        assert (one.loss, one.rate) == (one.loss_before, None)
    other = choose_start(STARTS, Task(network(), batches()), plan=StartPlan(steps=2, rates=(1e9,)))
    assert all(one.loss > 1e3 for one in other.candidates)


def test_runs_and_other_heads():
    run = Trajectory.from_weights([weights(network()), STARTS["plain"]])
    headed = {n: v[:3] if n.startswith("5.") else v for n, v in STARTS["plain"].items()}
    task = Task(network(5), batches())
    choice = choose_start({"run": run, "headed": headed}, task, plan=StartPlan(steps=0))
    kept = {one.name: one.kept for one in choice.candidates}
    assert kept == {"run": (), "headed": ("5.weight", "5.bias"), "fresh": ()}


def test_what_does_not_fit_is_refused():
    task = Task(network(), batches())
    with pytest.raises(ValueError, match="no checkpoint was given"):
        choose_start([], task)
    with pytest.raises(ValueError, match="x has no tensor that the model has"):
        choose_start({"x": {"other": torch.zeros(3, 3)}}, task)
    with pytest.raises(ValueError, match="at least two batches"):
        choose_start(STARTS, Task(network(), batches()[:1]))
    for wrong in ({"batches": 1}, {"steps": -1}, {"rates": ()}, {"rates": (0.0,)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            StartPlan(**wrong)
