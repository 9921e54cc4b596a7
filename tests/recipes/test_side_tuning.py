import copy as copying
import math

import pytest
import torch
from small_networks import Interrupt, batches, network, same, same_runs
from torch import nn

from slipstream.evaluation import Task, accuracy, evaluate
from slipstream.recipes import (
    SideNetwork,
    SidePlan,
    SideTask,
    distil_side,
    features_of,
    side_tune,
    small_side,
)
from slipstream.storage import resumable_state as checkpoint
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, TrainingPlan, fresh_weights
from slipstream.trajectory import Recorder, Trajectory, check_run
from slipstream.weights import clone, load_weights_, weights_of

SHORT = SidePlan(TrainingPlan.cosine(epochs=4, lr=0.05, weight_decay=0.1))


def parts(seed=0):
    base = features_of(network(seed), head="4")
    with torch.random.fork_rng():
        torch.manual_seed(seed + 10)
        side, head = nn.Sequential(nn.Linear(3, 8), nn.ReLU()), nn.Linear(8, 2)
    return base, side, head


def outputs(module, data):
    module.eval()
    with torch.no_grad():
        return torch.cat([module(inputs) for inputs, _ in data])


def test_the_output_is_the_blend_of_both_under_the_head():
    base, side, head = parts()
    found = SideNetwork(base, SideTask(side, head))
    found.task.alpha.data.fill_(1.3)
    x, a = torch.randn(5, 3), 1 / (1 + math.exp(-1.3))
    torch.testing.assert_close(found(x), head(a * base(x) + (1 - a) * side(x)))
    assert found.task.blend == pytest.approx(a)
    begun = SideNetwork(base, SideTask(side, head))
    torch.testing.assert_close(begun(x), head((base(x) + side(x)) / 2))  # alpha = 0


def test_features_are_the_inputs_of_the_head():
    model = network()
    base = features_of(model, head="4")
    x = torch.randn(5, 3)
    model.eval()
    torch.testing.assert_close(model[4](base(x)), model(x))
    assert not any(p.requires_grad for p in base.parameters())
    assert all(p.requires_grad for p in model.parameters())  # a copy was taken
    other = weights_of(network(7))
    there = features_of(model, weights=other, head="4")
    assert torch.equal(weights_of(there)["0.weight"], other["0.weight"])
    assert not torch.equal(weights_of(model)["0.weight"], other["0.weight"])


@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_of_the_base_changes_and_nothing_is_forgotten(frozen):
    base, side, head = parts()
    base.requires_grad_(not frozen).train()
    before = clone(weights_of(base))
    first = side_tune(Task(base, batches()), side=side, head=head, plan=SHORT)
    data = batches()
    answers = outputs(first.network, data)
    base.train()
    second = side_tune(Task(base, batches(along=1)), side=side, head=head, plan=SHORT)
    assert same(before, weights_of(base))  # running statistics of BatchNorm among them
    assert base.training
    assert all(parameter.grad is None for parameter in base.parameters())
    assert torch.equal(outputs(first.network, data), answers)
    assert not torch.equal(outputs(second.network, data), answers)
    assert second.network.base is first.network.base is base
    assert same(clone(weights_of(side)), clone(weights_of(parts()[1])))  # copies were trained


def test_alpha_learns_and_the_rest_decays():
    base, side, head = parts()
    one = side_tune(Task(base, batches()), side=side, head=head, plan=SHORT)
    assert abs(one.blend - 0.5) > 1e-4

    still = SidePlan(TrainingPlan.cosine(epochs=3, lr=0.1, weight_decay=0.5))
    silent = side_tune(
        Task(base, batches(), lambda model, batch: 0 * model(batch[0]).sum()),
        side=side,
        head=head,
        plan=still,
    )
    assert not silent.network.task.alpha
    assert (silent.weights["head.weight"].abs() < head.weight.abs()).all()  # the rest decays


def test_alpha_does_not_decay():
    base, side, head = parts()
    task = SideTask(side, head)
    task.alpha.data.fill_(2.0)
    training = Loop(task, TrainingPlan.cosine(epochs=2, weight_decay=0.5), undecayed=[task.alpha])
    network = SideNetwork(base, task)
    training.run(lambda batch: 0 * network(batch[0]).sum(), data=batches())
    assert torch.equal(task.alpha.detach(), torch.tensor(2.0))


def test_distilling_comes_near_the_base_and_leaves_it():
    base, side, _ = parts()
    before, data = clone(weights_of(base)), batches(60)
    descent = TrainingPlan.cosine(epochs=30, lr=0.1, weight_decay=0.0)
    found = distil_side(side, Task(base, data), descent=descent)
    assert same(before, weights_of(base))
    aim = outputs(base, data)
    end, begin = ((outputs(s, data) - aim).square().mean() for s in (found.side, side))
    assert end < 0.1 * begin
    # It goes on without labels too, and for inputs by name.
    bare = distil_side(side, Task(base, [inputs for inputs, _ in data]), descent=descent)
    assert same(weights_of(bare.side), weights_of(found.side))


def test_a_linear_side_distils_a_linear_base_exactly():
    base, side = nn.Linear(3, 4), nn.Linear(3, 4)
    descent = TrainingPlan.cosine(epochs=150, lr=0.4, weight_decay=0.0)
    found = distil_side(side, Task(base, batches()), descent=descent)
    torch.testing.assert_close(found.side.weight, base.weight, atol=1e-4, rtol=0)


def test_the_task_is_recorded_without_the_base(tmp_path):
    base, side, head = parts()
    data, metrics = batches(), {"accuracy": accuracy}
    found = side_tune(
        Task(base, data, validation=data, metrics=metrics),
        side=side,
        head=head,
        plan=SHORT,
        run_folder=tmp_path / "run",
    )
    assert check_run(tmp_path / "run") == []
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 3, 6, 9, 12]
    assert same(run[-1].weights, found.weights)
    assert run[-1].metrics["blend"] == found.blend
    there = evaluate(found.network, metrics, data=data)["accuracy"]
    assert run[-1].metrics["validation_accuracy"] == there
    again = SideNetwork(base, SideTask(copying.deepcopy(side), copying.deepcopy(head)))
    load_weights_(again.task, run[-1].weights)
    assert torch.equal(outputs(again, data), outputs(found.network, data))


@pytest.mark.parametrize("stop_at", [1, 5, 12])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)  # a state after every epoch
    base, side, head = parts()
    given = {"side": side, "head": head, "plan": SHORT}
    whole = side_tune(Task(base, batches()), **given, run_folder=tmp_path / "whole")
    given["run_folder"] = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        side_tune(Task(base, batches()), **given, progress=Interrupt(stop_at))
    given["run_folder"] = NewRun(tmp_path / "run", resume=True)
    resumed = side_tune(Task(base, batches()), **given)
    assert same(resumed.weights, whole.weights)
    assert resumed.losses == whole.losses
    assert same_runs(tmp_path / "whole", tmp_path / "run")
    again = side_tune(Task(base, batches()), **given, progress=lambda *_: 1 / 0)
    assert same(again.weights, whole.weights)
    other = features_of(network(5), head="4")
    with pytest.raises(ValueError, match="another training: its start is"):
        side_tune(Task(other, batches()), **given)


def test_an_interrupted_distillation_goes_on(tmp_path):
    base, side, _ = parts()
    given = {"side": side, "task": Task(base, batches()), "descent": TrainingPlan.cosine(epochs=3)}
    whole = distil_side(**given, run_folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        distil_side(**given, run_folder=tmp_path / "run", progress=Interrupt(5))
    resumed = distil_side(**given, run_folder=NewRun(tmp_path / "run", resume=True))
    assert same(weights_of(resumed.side), weights_of(whole.side))
    assert same_runs(tmp_path / "whole", tmp_path / "run")


def test_bad_input_says_what_is_wrong():
    base, side, head = parts()
    narrow = nn.Linear(3, 5)
    given = {"side": side, "head": head, "plan": SHORT}

    def tune(data=None, **other):
        return side_tune(Task(base, batches() if data is None else data), **{**given, **other})

    shape = r"side must give features of the base's shape, \(8, 8\); its own have shape \(8, 5\)"
    with pytest.raises(ValueError, match=shape):
        tune(side=narrow)
    with pytest.raises(ValueError, match=shape):
        distil_side(narrow, Task(base, batches()))
    with pytest.raises(ValueError, match="data is empty"):
        tune(data=[])
    with pytest.raises(ValueError, match="data is empty"):
        distil_side(side, Task(base, []))
    with pytest.raises(ValueError, match="is nan: try a smaller lr"):
        tune(plan=SidePlan(TrainingPlan(lr=1e30)))
    with pytest.raises(ValueError, match=r"no layer 'head'; its last ones are 0, 1, 2, 3, 4"):
        features_of(network(), head="head")
    with pytest.raises(
        ValueError, match=r"the model and weights differ in the shape of '4.weight'"
    ):
        features_of(network(), weights=weights_of(network(outputs=3)), head="4")
    with pytest.raises(ValueError, match="The model has no parameter that requires a gradient"):
        tune(side=nn.Identity(), head=nn.Identity())
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        distil_side(nn.Identity(), Task(base, batches()))


def test_a_base_from_a_recorded_run(tmp_path):
    found = fresh_weights(network(), seed=4)
    model = network()
    load_weights_(model, found)
    with Recorder(tmp_path / "run", model) as recorder:
        recorder.record()
    last = Trajectory.open(tmp_path / "run")[-1].weights
    base = features_of(network(), weights=last, head="4")
    assert torch.equal(weights_of(base)["0.weight"], found["0.weight"])


def test_a_small_side_has_features_of_any_shape():
    base = nn.Conv2d(1, 4, 3)
    side = small_side(base, torch.zeros(2, 1, 5, 5), width=7, seed=1)
    assert side(torch.zeros(2, 1, 5, 5)).shape == (2, 4, 3, 3)
    again = small_side(base, torch.zeros(2, 1, 5, 5), width=7, seed=1)
    assert same(weights_of(side), weights_of(again))
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        small_side(base, torch.zeros(2, 1, 5, 5), width=0)
