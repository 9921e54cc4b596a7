"""Meta-learning: the gradient of scores, thresholds, resuming, tickets that move."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from oracles.plain_meta import plain_objective
from recipes.small_networks import Interrupt, same, same_runs
from slipstream import Permutation, Trajectory, find_neuron_groups
from slipstream.evaluation import accuracy, batch_statistics, classification_loss
from slipstream.recipes import MetaPlan, judge_tasks, load_ticket, train_meta
from slipstream.recipes.few_shot.adaptation import Adaptation, AfterAdaptation
from slipstream.recipes.few_shot.meta_training import _Training
from slipstream.storage import resumable_state as checkpoint
from slipstream.testbed import ClassTasks, TaskForm, build_network, load_tasks
from slipstream.testbed.datasets import DataSpec
from slipstream.training import Descent
from slipstream.weights import copy, weights_of

FORM = TaskForm(ways=3, shots=2, tasks=3, batches=4)
METHODS = ("ticket", "ticket-boil", "maml", "anil", "boil")


def tasks(form=FORM, seed=0):
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(8, 1, 6, generator=generator)
    return ClassTasks(centres + 0.5 * torch.randn(8, 9, 6, generator=generator), form, seed=seed)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 7), nn.ReLU(),
            nn.Linear(7, 3),
        )  # fmt: skip


def plan(method="ticket", **changes):
    how = Descent(3, lr=5.0 if method.startswith("ticket") else 0.1, weight_decay=0.0)
    return MetaPlan(method, **{"descent": how, **changes})


def test_a_score_gets_the_slope_of_its_mask():
    """As the paper says it, in float64, beside a plain loop."""
    model = network().double()
    training = _Training(model, classification_loss, MetaPlan(pruned=0.3))
    batch = tasks().batch(0)
    batch = type(batch)(*((x.double(), y) for x, y in batch))
    training.objective(batch).backward()
    scored = training.scored
    masks = {n: m.double().requires_grad_() for n, m in scored.masks.items()}
    assert list(masks) == ["0.weight", "3.weight"]
    free = {n: scored.random.get(n, p.detach()) for n, p in model.named_parameters()}
    with batch_statistics(model):
        expected = plain_objective(
            model, lambda call, given: nn.functional.cross_entropy(call(given[0]), given[1]),
            batch, rate=0.4, moved=list(free), free=free, masks=masks,
        )  # fmt: skip
    slopes = torch.autograd.grad(expected, list(masks.values()))
    for score, slope in zip(scored.scores.values(), slopes, strict=True):
        assert (slope != 0).float().mean() > 0.5
        torch.testing.assert_close(score.grad, slope.to(score.grad), rtol=1e-5, atol=1e-7)


def test_a_fixed_threshold_is_that_of_the_start():
    model = network()
    dense = _Training(model, classification_loss, MetaPlan()).scored
    assert all(mask.all() for mask in dense.masks.values())
    half = _Training(network(), classification_loss, MetaPlan(pruned=0.5)).scored
    at_start = {n: m.clone() for n, m in half.masks.items()}
    assert [int((~m).sum()) for m in at_start.values()] == [30, 35]
    with torch.no_grad():
        for score in half.scores.values():
            score += 10.0
    assert all(mask.all() for mask in half.choose().values())
    top = _Training(network(), classification_loss, MetaPlan(pruned=0.5, threshold="top-k")).scored
    assert all(torch.equal(m, at_start[n]) for n, m in top.masks.items())
    with torch.no_grad():
        for score in top.scores.values():
            score += 10.0
    assert all(torch.equal(m, at_start[n]) for n, m in top.choose().items())


@pytest.mark.parametrize("method", METHODS)
def test_tasks_are_learned_better_after_it(method):
    model, test = network(), tasks(replace(FORM, batches=20), seed=9)
    made = plan(method, descent=replace(plan(method).descent, epochs=8))
    found = train_meta(model, data=tasks(replace(FORM, batches=20)), plan=made)
    assert found.steps == 160
    assert found.tasks == 480
    assert found.losses[-1] < found.losses[0]
    inner = replace(made.adaptation, sparse=made.masked)
    judge = AfterAdaptation(inner, metric=accuracy)
    before = judge_tasks(model, judge, data=test)
    after = judge_tasks(model, judge, weights=found.weights, data=test)
    assert after.tasks == 60
    if (
        method != "ticket-boil"
    ):  # with a random head that never moves, so small a body learns little
        assert after.mean > before.mean
    assert (found.ticket is not None) == made.masked
    if made.masked:
        assert same(found.ticket.weights, found.weights)
        assert 0 < found.pruned[-1] < 1
        for name in ("5.weight", "1.running_mean"):  # neither masked nor learned
            assert torch.equal(found.weights[name], model.state_dict()[name])


def test_only_what_a_method_learns_changes():
    model = network()
    for method, learned in (("maml", 10), ("anil", 10), ("boil", 10), ("ticket", 2)):
        start = copy(weights_of(model))
        found = train_meta(model, data=tasks(), plan=plan(method))
        changed = [n for n, v in found.weights.items() if not torch.equal(v, start[n])]
        masked = ["0.weight", "3.weight", "3.bias", "5.bias"]  # biases become 0
        expected = masked if learned == 2 else [n for n, _ in model.named_parameters()]
        indifferent = {"0.bias"}  # BatchNorm takes it away again
        assert set(changed) - indifferent == set(expected) - indifferent
        assert same(weights_of(model), start)  # the model is left as it was


@pytest.mark.parametrize("method", ["ticket", "maml"])
def test_an_interrupted_training_ends_in_the_same_bits(method, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)  # a state after every epoch
    made = plan(method, **({"redrawn": 0.5, "every": 3} if method == "ticket" else {}))
    given = {"plan": made, "validation": tasks(seed=5)}
    given["metrics"] = {"accuracy": AfterAdaptation(made.adaptation, metric=accuracy)}
    whole = train_meta(network(), data=tasks(), run_folder=tmp_path / "whole", **given)
    with pytest.raises(KeyboardInterrupt):
        train_meta(
            network(), data=tasks(), run_folder=tmp_path / "cut", progress=Interrupt(7), **given
        )
    again = train_meta(network(), data=tasks(), run_folder=tmp_path / "cut", resume=True, **given)
    assert same(whole.weights, again.weights)
    assert (whole.losses, whole.pruned, whole.churn) == (again.losses, again.pruned, again.churn)
    assert (whole.rounds, whole.tasks) == (again.rounds, again.tasks) == (
        (3 if method == "ticket" else 0), 36,
    )  # fmt: skip
    assert same_runs(tmp_path / "whole", tmp_path / "cut")
    assert same(Trajectory.open(tmp_path / "cut")[-1].weights, whole.weights)
    if method == "ticket":
        ticket = load_ticket(tmp_path / "cut")
        assert same(ticket.weights, whole.weights)
        assert same(ticket.scores, whole.ticket.scores)
    with pytest.raises(ValueError, match="of another training"):
        train_meta(
            network(), data=tasks(), run_folder=tmp_path / "cut", resume=True,
            **given | {"plan": replace(made, rate=0.3)},
        )  # fmt: skip


@pytest.mark.parametrize("masked", [True, False], ids=["ticket", "maml"])
def test_a_permuted_ticket_learns_tasks_as_well(masked):
    form = TaskForm(ways=3, shots=2, tasks=3, batches=5)
    spec = DataSpec("digits", (1, 8, 8), 3)
    model = build_network("tapered_mlp", data=spec, width=0.2, seed=1).double()
    data = load_tasks("digits", form)
    made = plan("ticket" if masked else "maml", pruned=0.3 if masked else 0.0)
    found = train_meta(model.float(), data=data.train, plan=made)
    support, _ = data.test.batch(0)
    groups = find_neuron_groups(model, support[0].flatten(0, 1))
    assert len(groups.groups) == 4
    moved = Permutation.random(groups, seed=1)
    weights = moved.apply(found.weights)
    if masked:
        permuted = found.ticket.permute(moved)
        assert same(permuted.weights, weights)
        assert any(
            not torch.equal(mask, found.ticket.masks[n]) for n, mask in permuted.masks.items()
        )
    judge = AfterAdaptation(replace(made.adaptation, sparse=masked), metric=accuracy)
    one, other = (
        judge_tasks(model, judge, weights=w, data=data.test) for w in (found.weights, weights)
    )
    assert other.mean == pytest.approx(one.mean, abs=1e-3)
    loss = AfterAdaptation(replace(made.adaptation, sparse=masked))
    doubled = [{n: v.double() for n, v in w.items()} for w in (found.weights, weights)]
    batch = data.test.batch(0)
    batch = [type(batch)(*((x.double(), y) for x, y in batch))]
    first, second = (judge_tasks(model.double(), loss, weights=w, data=batch).mean for w in doubled)
    assert second == pytest.approx(first, rel=1e-9)


def test_drawing_anew_leaves_the_function_and_the_seed_gives_it_again(tmp_path):
    made = plan(pruned=0.5, redrawn=1.0, every=2)
    found = train_meta(network(), data=tasks(), plan=made, run_folder=tmp_path / "run")
    assert found.rounds == 5
    assert max(int(born.max()) for born in found.ticket.births.values()) >= 1
    assert same(load_ticket(tmp_path / "run" / "ticket.safetensors").weights, found.weights)


def test_constant_weights_differ_by_their_mask_alone():
    found = train_meta(network(), data=tasks(), plan=plan(initial="constant", pruned=0.3))
    values = found.weights["0.weight"].unique().tolist()
    assert values == [0.0, pytest.approx((2 / 6) ** 0.5)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "reptile"}, "method must be one of ticket, ticket-boil, maml"),
        ({"pruned": 1.0}, "at least 0 and below 1; got 1.0"),
        ({"threshold": "top-k"}, "needs the share that falls"),
        ({"redrawn": 1.5}, "redrawn must be a share from 0 to 1"),
        ({"redrawn": 0.1, "initial": "constant"}, "there is nothing to draw"),
        ({"every": 0}, "every must be at least 1 step"),
        ({"seed": -1}, "seed must not be negative"),
        ({"exclude": "0.*"}, r"write exclude=\('0.\*',\)"),
        ({"rate": -1.0}, "rate must be above 0"),
    ],
)
def test_a_wrong_plan_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        MetaPlan(**given)


def test_what_cannot_be_learned_is_told():
    with pytest.raises(ValueError, match="has no weight to mask"):
        train_meta(nn.Sequential(nn.Linear(6, 3)), data=tasks(), plan=plan())
    with pytest.raises(ValueError, match="must be a TaskBatch"):
        train_meta(network(), data=[(torch.ones(2, 6), torch.ones(2).long())], plan=plan("maml"))
    with pytest.raises(ValueError, match="data is empty"):
        train_meta(network(), data=[], plan=plan())
    with pytest.raises(ValueError, match="no task to be judged by"):
        judge_tasks(network(), AfterAdaptation(Adaptation()), data=[])
    broken = tasks()
    broken.examples[:] = torch.nan
    with pytest.raises(ValueError, match="The loss at step 1 is nan"):
        train_meta(network(), data=broken, plan=plan("maml"))
