import copy
from dataclasses import replace

import pytest
import torch
from small_networks import Interrupt, same, same_runs
from torch import nn

from slipstream.averaging import LAWA, average_run
from slipstream.comparison import compare_checkpoints
from slipstream.evaluation import Task
from slipstream.federated import Server, bytes_of, follow
from slipstream.recipes import (
    OperatorPlan,
    PhysicsPlan,
    PhysicsProblem,
    average_operators,
    feed_functions,
    function_loss,
    operator_errors,
    physics_metrics,
    pretrain_operators,
    tune_operator,
)
from slipstream.recipes.operators.low_rank import make_low_rank_, merged
from slipstream.recipes.operators.physics import physics_parts, trunk_derivatives
from slipstream.report.report import write_report
from slipstream.storage import resumable_state
from slipstream.storage.new_run import NewRun
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.testbed.deeponet import DeepONet
from slipstream.testbed.equations import FlowEquation, random_functions, solution_batches
from slipstream.training import TrainingPlan
from slipstream.trajectory import Trajectory, check_run
from slipstream.transfer import TransferPlan, transfer_trajectory
from slipstream.weights import parameter_names, weights_of

SIZES = {"sensors": 16, "width": 8, "terms": 6, "hidden_layers": 2, "waves": 2}
PLAN = OperatorPlan(local_steps=3, descent=TrainingPlan(epochs=3, optimizer="adam", lr=1e-2))
TUNING = PhysicsPlan(points=16, descent=TrainingPlan(epochs=3, optimizer="adam", lr=3e-3))
TARGET = FlowEquation(1.0, 0.05)
PROBLEM = PhysicsProblem.even(TARGET.residual, 16)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DeepONet(**SIZES)


def functions(count, seed=0):
    return random_functions(count, positions=16, waves=2, seed=seed)


def solutions(equation, *, count=8, seed=0):
    made = functions(count, seed)
    return solution_batches(equation, made, instants=3, batch_size=4, grid=64)


def sources():
    return [solutions(FlowEquation(c, 0.1), seed=n) for n, c in enumerate((1.0, 0.5, 0.0))]


def pretrained(plan=PLAN, **how):
    return pretrain_operators(
        Task(network(), loss=function_loss), operators=sources(), plan=plan, **how
    )


def input_task(model=None):
    return Task(model or network(), list(functions(12).split(4)), validation=[functions(4, 9)])


def tuned(plan=TUNING, model=None, **how):
    return tune_operator(input_task(model), problem=PROBLEM, plan=plan, **how)


# Pre-training


def test_the_shared_half_is_a_mean_by_server_and_clients_and_nothing_else_is_sent():
    found = pretrained()
    shared = [n for n in found.operators[0] if n.startswith("branch.")]
    assert found.local == tuple(n for n in found.operators[0] if n.startswith("trunk."))
    first, *others = found.operators
    for other in others:
        assert all(torch.equal(first[n], other[n]) for n in shared)
        assert not torch.equal(first["trunk.1.weight"], other["trunk.1.weight"])
    size = 4 * sum(first[n].numel() for n in shared)
    # Two batches per epoch: rounds end with the epochs, then the result is handed out.
    assert [done.bytes_up for done in found.rounds] == [3 * size] * 3 + [0]
    assert found.rounds[0].bytes_down == 3 * size
    assert found.bytes_up == 9 * size
    assert found.rounds[-1].accepted == ()


def test_one_round_is_federated_averaging_of_the_shared_half_alone():
    """By hand: each operator trains a copy; the branches are averaged, the trunks are not."""
    descent = TrainingPlan(epochs=1, lr=0.1, momentum=0.0)
    found = pretrained(OperatorPlan(begun="equal", local_steps=2, descent=descent))
    trained = []
    for data in sources():
        model = network()
        for batch in data:
            model.zero_grad()
            function_loss(model, batch).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
        trained.append(weights_of(model))
    for name, value in found.operators[1].items():
        mean = torch.stack([w[name] for w in trained]).mean(0)
        torch.testing.assert_close(value, trained[1][name] if "trunk" in name else mean)


def test_local_halves_begin_apart_or_equal():
    still = TrainingPlan(epochs=1, lr=1e-12, momentum=0.0)
    apart = pretrained(replace(PLAN, descent=still)).operators
    assert not torch.allclose(apart[0]["trunk.1.weight"], apart[1]["trunk.1.weight"])
    torch.testing.assert_close(apart[0]["trunk.1.weight"], network().trunk[1].weight.detach())
    equal = pretrained(replace(PLAN, begun="equal", descent=still)).operators
    torch.testing.assert_close(equal[0]["trunk.1.weight"], equal[1]["trunk.1.weight"])


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_a_pretraining_that_is_interrupted_ends_as_if_it_was_not(tmp_path, steps, monkeypatch):
    monkeypatch.setattr(resumable_state, "SHARE", float("inf"))  # a state after every epoch
    whole = pretrained(run_folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrained(run_folder=tmp_path / "cut", progress=Interrupt(steps))
    again = NewRun(tmp_path / "cut", resume=True)
    found = pretrained(run_folder=again)
    for one, other in zip(found.operators, whole.operators, strict=True):
        same(one, other)
    assert found.rounds == whole.rounds
    same_runs(tmp_path / "cut" / "operator-2", tmp_path / "whole" / "operator-2")
    last = Trajectory.open(tmp_path / "cut" / "operator-2")[-1]
    same(last.weights, found.operators[1])
    assert pretrained(run_folder=again).rounds == whole.rounds
    with pytest.raises(FileExistsError, match="operator-1 is not empty"):
        pretrained(run_folder=tmp_path / "cut")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"operators": sources()[:1]}, "operators must hold 2 sets of batches at least"),
        ({"operators": [sources()[0], sources()[1][:1]]}, r"as many batches.*\[2, 1\]"),
        ({"plan": replace(PLAN, local=("stem.*",))}, "local: 'stem.*' matches no parameter"),
        ({"plan": replace(PLAN, local=("*",))}, "local names all that is trained"),
    ],
)
def test_halves_and_data_that_do_not_fit(given, message):
    usual = {"operators": sources(), "plan": PLAN}
    with pytest.raises(ValueError, match=message):
        pretrain_operators(Task(network(), loss=function_loss), **{**usual, **given})


def test_a_nan_in_the_solutions_names_the_operator():
    data = sources()
    (inputs, values), *rest = data[1]
    data[1] = [(inputs, values * torch.nan), *rest]
    with pytest.raises(ValueError, match="loss of operator 2 at step 1 is not finite"):
        pretrain_operators(Task(network(), loss=function_loss), operators=data, plan=PLAN)


def test_local_tensors_are_in_no_message():
    model = network()
    local = [n for n in weights_of(model) if n.startswith("trunk.")]
    server = Server(model, local=local)
    order = server.order(1)
    assert bytes_of(order.arrays) == 4 * sum(p.numel() for p in model.branch.parameters())
    client = follow(None, order)
    assert not set(local) & set(client.weights)
    assert set(server.weights) == set(weights_of(model)) - set(local)
    with pytest.raises(ValueError, match=r"no tensor 'trunk\.9\.weight'"):
        Server(model, local=["trunk.9.weight"])
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="are tied; name both, or neither"):
        Server(tied, local=["0.weight"])


# Averages


def test_matching_undoes_permutations_and_signs_of_the_local_half():
    model = network()
    task = Task(model, solutions(TARGET), forward=feed_functions)
    groups = find_neuron_groups(model, task.example())
    hidden = groups.keep(["trunk.1.weight:0", "trunk.3.weight:0"])
    own = {n: w.clone() for n, w in weights_of(model).items()}
    moved = Permutation.random(hidden, seed=3).apply(own)
    moved = {n: -v if n in ("trunk.3.weight", "trunk.1.bias", "trunk.1.weight") else v
             for n, v in moved.items()}  # fmt: skip
    # The second minus sign of trunk.3 is that of its inputs, which the first layer turned.
    torch.testing.assert_close(
        operator_errors(model, task.data, weights=moved), operator_errors(model, task.data)
    )
    found = average_operators([own, moved], task, plan=PLAN)
    assert found.groups == ("trunk.1.weight:0", "trunk.3.weight:0")
    for name, value in own.items():
        torch.testing.assert_close(found.weights[name], value, rtol=0, atol=1e-5)
    plain = average_operators([own, moved], task, plan=PLAN, match=False).weights
    assert (plain["trunk.1.weight"] - own["trunk.1.weight"]).norm() > 0.5


def test_networks_that_cannot_be_averaged():
    model = network()
    task = Task(model, solutions(TARGET), forward=feed_functions)
    own = weights_of(model)
    with pytest.raises(ValueError, match="at least two"):
        average_operators([own], task)
    other = weights_of(DeepONet(**{**SIZES, "width": 9}))
    with pytest.raises(ValueError, match="network 2"):
        average_operators([own, other], task)
    with pytest.raises(ValueError, match="Network 2 holds a NaN"):
        average_operators([own, {**own, "trunk.1.bias": own["trunk.1.bias"] * torch.nan}], task)
    with pytest.raises(ValueError, match=r"No neurons within trunk\.5"):
        average_operators([own, own], task, plan=OperatorPlan(local=("trunk.5.*",)))


# The loss of an equation


class Plain(nn.Module):
    """A trunk that no rule knows."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, points):
        return self.inner(points)


def test_derivatives_by_the_chain_rule_are_those_of_autograd():
    trunk, points = network().trunk.double(), torch.rand(5, 2).double()
    by_rule = vars(trunk_derivatives(trunk, points))
    by_jvp = vars(trunk_derivatives(Plain(trunk), points))

    def one(point):
        return trunk(point[None])[0]

    slopes = torch.stack([torch.autograd.functional.jacobian(one, p) for p in points])
    closed = {
        "value": trunk(points),
        "x": slopes[..., 0],
        "t": slopes[..., 1],
        "xx": torch.stack(
            [
                torch.stack(
                    [
                        torch.autograd.functional.hessian(lambda q, k=k: one(q)[k], p)[0, 0]
                        for k in range(6)
                    ]
                )
                for p in points
            ]
        ),
    }
    for name, value in closed.items():
        torch.testing.assert_close(by_rule[name], value)
        torch.testing.assert_close(by_jvp[name], value)


def test_a_solution_has_no_loss_and_a_constant_only_that_of_the_start():
    class Trunk(nn.Module):
        def forward(self, points):
            x, t = points.unbind(-1)
            decay = torch.exp(-0.05 * (2 * torch.pi) ** 2 * t)
            return (decay * torch.sin(2 * torch.pi * x))[:, None]

    class Branch(nn.Module):
        def forward(self, functions):
            return functions @ torch.sin(2 * torch.pi * PROBLEM.sensors)[:, None] / 8

    model = nn.Module()
    model.branch, model.trunk = Branch(), Trunk()
    sine = torch.sin(2 * torch.pi * PROBLEM.sensors)[None]
    points = torch.rand(20, 2)
    heat = replace(PROBLEM, residual=FlowEquation(0.0, 0.05).residual)
    found = physics_parts(model, sine, points, problem=heat)
    assert max(found.residual, found.initial, found.boundary) < 1e-9
    other = physics_parts(model, sine, points, problem=replace(PROBLEM, residual=TARGET.residual))
    assert other.residual > 1e-2
    dull = network()
    for p in dull.parameters():
        p.data.zero_()
    none = physics_parts(dull, sine, points, problem=PROBLEM)
    assert none.residual == 0
    assert none.initial.item() == pytest.approx(0.5)


def test_ends_of_the_period_are_looked_at():
    model = network()
    model.trunk = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))
    parts = physics_parts(model, functions(3), torch.rand(9, 2), problem=PROBLEM)
    assert parts.boundary > 1e-4
    still = physics_parts(network(), functions(3), torch.rand(9, 2), problem=PROBLEM)
    assert still.boundary < 1e-10


# Tuning


def test_tuning_lowers_the_loss_and_keeps_the_best_by_it():
    plan = replace(TUNING, descent=TrainingPlan(epochs=40, optimizer="adam", lr=5e-3))
    found = tuned(plan)
    assert found.best < 0.7 * found.held_out[0]
    assert found.step == 3 * found.held_out.index(found.best)
    model = network()
    model.load_state_dict(found.weights)
    again = physics_metrics(model, input_task(), problem=PROBLEM, plan=plan)
    assert again["physics"] == pytest.approx(found.best, rel=1e-5)
    parts = again["residual"] + plan.initial * again["initial"] + plan.boundary * again["boundary"]
    assert again["physics"] == pytest.approx(parts)
    test = solutions(TARGET, seed=5)
    start, end = (operator_errors(network(), test, weights=w) for w in (None, found.weights))
    assert end.mean() < start.mean()


def test_a_start_that_training_makes_worse_is_kept():
    found = tuned(replace(TUNING, descent=TrainingPlan(epochs=2, optimizer="adam", lr=3.0)))
    assert found.step == 0
    same(found.weights, weights_of(network()))


def test_low_ranks_change_matrices_by_so_much_and_nothing_else():
    found = tuned(replace(TUNING, rank=2))
    start = weights_of(network())
    for name, value in found.weights.items():
        change = value - start[name]
        if name.endswith("bias"):
            assert not change.any()
        else:
            assert 0 < torch.linalg.matrix_rank(change, atol=1e-6) <= 2
    sizes = [p.shape for n, p in network().named_parameters() if n.endswith("weight")]
    assert found.trained == sum(2 * sum(shape) for shape in sizes)
    model = copy.deepcopy(network())
    make_low_rank_(model, 2, seed=0)
    same(merged(model, tuple(start)), start)


def test_rates_are_tried_and_chosen_by_the_held_out_loss():
    plan = replace(TUNING, rates=(1e-7, 1e-2, 1e30), trial=1.0)
    found = tuned(plan)
    assert plan.rates.index(found.rate) == 1
    assert found.trials[1e-2] < found.trials[1e-7] < found.trials[1e30]
    alone = tuned(replace(TUNING, descent=replace(TUNING.descent, lr=1e-2)))
    same(found.weights, alone.weights)
    assert found.held_out[-1] == found.trials[1e-2]


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_a_tuning_that_is_interrupted_ends_as_if_it_was_not(tmp_path, rank, steps, monkeypatch):
    monkeypatch.setattr(resumable_state, "SHARE", float("inf"))
    plan = replace(TUNING, rank=rank, rates=(1e-3, 3e-3))
    whole = tuned(plan, run_folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tuned(plan, run_folder=tmp_path / "cut", progress=Interrupt(steps))
    found = tuned(plan, run_folder=NewRun(tmp_path / "cut", resume=True))
    same(found.weights, whole.weights)
    assert (found.held_out, found.trials) == (whole.held_out, whole.trials)
    same_runs(tmp_path / "cut", tmp_path / "whole")
    other = NewRun(tmp_path / "cut", resume=True)
    with pytest.raises(ValueError, match="is of another training"):
        tuned(replace(plan, initial=3.0), run_folder=other)


def test_the_best_weights_outlive_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable_state, "SHARE", float("inf"))  # a state after every epoch
    plan = replace(TUNING, descent=TrainingPlan(epochs=4, optimizer="adam", lr=0.1))
    whole = tuned(plan)
    assert whole.step == 3  # later it gets worse
    with pytest.raises(KeyboardInterrupt):
        tuned(plan, run_folder=tmp_path / "cut", progress=Interrupt(8))
    found = tuned(plan, run_folder=NewRun(tmp_path / "cut", resume=True))
    assert found.step == 3
    same(found.weights, whole.weights)


class Added(DeepONet):
    def forward(self, functions, points):
        return super().forward(functions, points) + 1


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"data": solutions(TARGET)}, ValueError, "holds more than input functions, such as sol"),
        ({"data": [functions(3) * torch.nan]}, ValueError, "function holds a NaN"),
        ({"data": [torch.ones(3, 5)]}, ValueError, r"\(functions, 16\); its shape is \(3, 5\)"),
        ({"data": []}, ValueError, "data is empty"),
        ({"validation": None}, ValueError, "no validation data"),
        ({"model": Added(**SIZES)}, ValueError, "not its branch's times its trunk's"),
        ({"model": nn.Linear(16, 16)}, TypeError, "must have a `branch` and a `trunk`"),
    ],
)
def test_what_cannot_be_tuned(given, kind, message):
    with pytest.raises(kind, match=message):
        tune_operator(replace(input_task(), **given), problem=PROBLEM, plan=TUNING)


def test_plans_and_problems_that_mean_nothing():
    with pytest.raises(ValueError, match=r"initial must be above 0.*every constant"):
        PhysicsPlan(initial=0.0)
    with pytest.raises(ValueError, match="trial must be above 0"):
        PhysicsPlan(trial=0.0)
    with pytest.raises(ValueError, match="duration and period must be above 0"):
        PhysicsProblem.even(TARGET.residual, 8, duration=0.0)
    with pytest.raises(ValueError, match="sensors must be finite positions"):
        PhysicsProblem(TARGET.residual, torch.zeros(2, 2))
    broken = network()
    broken.trunk[1].bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="model holds a NaN"):
        tuned(model=broken)


# In the house


def test_the_runs_are_runs(tmp_path):
    found = pretrained(run_folder=tmp_path / "operators")
    one, other = (tmp_path / "operators" / f"operator-{n}" for n in (1, 2))
    result = tuned(run_folder=tmp_path / "tuned")
    for run in (one, other, tmp_path / "tuned"):
        assert check_run(run) == []
    compare_checkpoints([one, other])
    write_report([one, tmp_path / "tuned"], tmp_path / "page.html")
    mean = average_run(Trajectory.open(tmp_path / "tuned"), LAWA(2))
    ends = Trajectory.open(tmp_path / "tuned")
    torch.testing.assert_close(
        mean["trunk.1.bias"], (ends[-1]["trunk.1.bias"] + ends[-2]["trunk.1.bias"]) / 2
    )
    metrics = ends[-1].metrics
    assert metrics["validation_physics"] == pytest.approx(result.held_out[-1])
    assert "train_physics" in metrics

    task = Task(network(), sources()[0], function_loss, forward=feed_functions)
    moved = transfer_trajectory(
        Trajectory.open(one), weights_of(network(7)), task, plan=TransferPlan(stages=2)
    )
    assert set(moved.weights) >= set(parameter_names(task.model))
    assert found.steps == 6
