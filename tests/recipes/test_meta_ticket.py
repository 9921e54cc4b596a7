"""Meta-learning: the gradient of scores, thresholds, resuming, tickets that move."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from oracles.plain_meta import plain_objective
from recipes.small_networks import Interrupt, same, same_runs
from slipstream import Permutation, Trajectory, find_neuron_groups
from slipstream.evaluation import Task, accuracy, batch_statistics
from slipstream.recipes import MetaPlan, judge_tasks, load_ticket, train_meta
from slipstream.recipes.few_shot import Adaptation, AfterAdaptation

# The gradient and the masks at the start, before a step has changed them.
from slipstream.recipes.few_shot.training import _Training
from slipstream.storage import resumable_state as checkpoint
from slipstream.storage.new_run import NewRun
from slipstream.testbed import ClassTasks, TaskForm, build_network, load_tasks
from slipstream.testbed.datasets import DataSpec
from slipstream.training import TrainingPlan
from slipstream.weights import clone, weights_of

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
    how = TrainingPlan.cosine(3, lr=5.0 if method.startswith("ticket") else 0.1, weight_decay=0.0)
    return MetaPlan(method, **{"descent": how, **changes})


def test_a_score_gets_the_slope_of_its_mask():
    """As the paper says it, in float64, beside a plain loop."""
    model = network().double()
    training = _Training(Task(model), MetaPlan(pruned=0.3))
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
    dense = _Training(Task(model), MetaPlan()).scored
    assert all(mask.all() for mask in dense.masks.values())
    half = _Training(Task(network()), MetaPlan(pruned=0.5)).scored
    at_start = {n: m.clone() for n, m in half.masks.items()}
    assert [int((~m).sum()) for m in at_start.values()] == [30, 35]
    with torch.no_grad():
        for score in half.scores.values():
            score += 10.0
    assert all(mask.all() for mask in half.choose().values())
    top = _Training(Task(network()), MetaPlan(pruned=0.5, threshold="top-k")).scored
    assert all(torch.equal(m, at_start[n]) for n, m in top.masks.items())
    with torch.no_grad():
        for score in top.scores.values():
            score += 10.0
    assert all(torch.equal(m, at_start[n]) for n, m in top.choose().items())


@pytest.mark.parametrize("method", METHODS)
def test_tasks_are_learned_better_after_it(method):
    model, test = network(), tasks(replace(FORM, batches=20), seed=9)
    made = plan(method, descent=replace(plan(method).descent, epochs=8))
    found = train_meta(Task(model, tasks(replace(FORM, batches=20))), plan=made)
    assert found.steps == 160
    assert found.tasks == 480
    assert found.losses[-1] < found.losses[0]
    inner = replace(made.adaptation, sparse=made.masked)
    judge = AfterAdaptation(inner, metric=accuracy)
    before = judge_tasks(judge, Task(model, test))
    after = judge_tasks(judge, Task(model, test), weights=found.weights)
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
        start = clone(weights_of(model))
        found = train_meta(Task(model, tasks()), plan=plan(method))
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
    metrics = {"accuracy": AfterAdaptation(made.adaptation, metric=accuracy)}
    task = Task(network(), tasks(), validation=tasks(seed=5), metrics=metrics)
    whole = train_meta(task, plan=made, run_folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_meta(task, plan=made, run_folder=tmp_path / "cut", progress=Interrupt(7))
    again = train_meta(task, plan=made, run_folder=NewRun(tmp_path / "cut", resume=True))
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
    other = replace(made, rate=0.3)
    with pytest.raises(ValueError, match="of another training"):
        train_meta(task, plan=other, run_folder=NewRun(tmp_path / "cut", resume=True))


@pytest.mark.parametrize("masked", [True, False], ids=["ticket", "maml"])
def test_a_permuted_ticket_learns_tasks_as_well(masked):
    form = TaskForm(ways=3, shots=2, tasks=3, batches=5)
    spec = DataSpec("digits", (1, 8, 8), 3)
    model = build_network("tapered_mlp", data=spec, width=0.2, seed=1).double()
    data = load_tasks("digits", form)
    made = plan("ticket" if masked else "maml", pruned=0.3 if masked else 0.0)
    found = train_meta(Task(model.float(), data.train), plan=made)
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
        judge_tasks(judge, Task(model, data.test), weights=w) for w in (found.weights, weights)
    )
    assert other.mean == pytest.approx(one.mean, abs=1e-3)
    loss = AfterAdaptation(replace(made.adaptation, sparse=masked))
    doubled = [{n: v.double() for n, v in w.items()} for w in (found.weights, weights)]
    batch = data.test.batch(0)
    batch = [type(batch)(*((x.double(), y) for x, y in batch))]
    first, second = (
        judge_tasks(loss, Task(model.double(), batch), weights=w).mean for w in doubled
    )
    assert second == pytest.approx(first, rel=1e-9)


def test_drawing_anew_leaves_the_function_and_the_seed_gives_it_again(tmp_path):
    made = plan(pruned=0.5, redrawn=1.0, every=2)
    found = train_meta(Task(network(), tasks()), plan=made, run_folder=tmp_path / "run")
    assert found.rounds == 5
    assert max(int(born.max()) for born in found.ticket.births.values()) >= 1
    assert same(load_ticket(tmp_path / "run" / "ticket.safetensors").weights, found.weights)


def test_constant_weights_differ_by_their_mask_alone():
    found = train_meta(Task(network(), tasks()), plan=plan(initial="constant", pruned=0.3))
    values = found.weights["0.weight"].unique().tolist()
    assert values == [0.0, pytest.approx((2 / 6) ** 0.5)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "reptile"}, "method must be ticket, ticket-boil, maml, anil or boil"),
        ({"pruned": 1.0}, "at least 0 and below 1; got 1.0"),
        ({"threshold": "top-k"}, "needs a share to prune"),
        ({"redrawn": 1.5}, "redrawn must be a share from 0 to 1"),
        ({"redrawn": 0.1, "initial": "constant"}, "there is nothing random"),
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
        train_meta(Task(nn.Sequential(nn.Linear(6, 3)), tasks()), plan=plan())
    with pytest.raises(ValueError, match="must be a TaskBatch"):
        train_meta(Task(network(), [(torch.ones(2, 6), torch.ones(2).long())]), plan=plan("maml"))
    with pytest.raises(ValueError, match="data is empty"):
        train_meta(Task(network(), []), plan=plan())
    with pytest.raises(ValueError, match="there are no tasks to measure on"):
        judge_tasks(AfterAdaptation(Adaptation()), Task(network(), []))
    broken = tasks()
    broken.examples[:] = torch.nan
    with pytest.raises(ValueError, match="The loss at step 1 is nan"):
        train_meta(Task(network(), broken), plan=plan("maml"))
