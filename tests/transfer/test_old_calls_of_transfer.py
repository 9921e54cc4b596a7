"""Calls as of 0.1, with model, loss and data one by one: they warn, and give the same."""

import pytest
import torch

from slipstream.evaluation import Task, accuracy, classification_loss
from slipstream.storage.new_run import NewRun
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.transfer import (
    Target,
    TransferPlan,
    compare_methods,
    load_transfer,
    transfer_to_many,
    transfer_trajectory,
)
from slipstream.weights import weights_of
from transfer.small_runs import batches, network, trained

PLAN = TransferPlan("fgmt", stages=2)


@pytest.fixture(scope="module")
def run():
    return trained(network(0))


def old():
    return {"model": network(1), "loss": classification_loss, "data": batches()}


def start():
    return weights_of(network(2))


def groups():
    return find_neuron_groups(network(1), batches()[0][0])


def task(**more):
    return Task(network(1), batches(), metrics={}, **more)


MEASURED = {"validation": batches(seed=7), "metrics": {"accuracy": accuracy}}
CALLS = {
    "plan and groups": (
        lambda run, path: transfer_trajectory(run, start(), **old(), plan=PLAN, groups=groups()),
        lambda run, path: transfer_trajectory(run, start(), task(), plan=PLAN, groups=groups()),
    ),
    "keep": (
        lambda run, path: transfer_trajectory(run, start(), **old(), **MEASURED, keep="best"),
        lambda run, path: transfer_trajectory(
            run, start(), Task(network(1), batches(), **MEASURED), plan=TransferPlan(keep="best")
        ),
    ),
    "trained target": (
        lambda run, path: transfer_trajectory(
            run, start(), **old(), plan=TransferPlan("oracle", stages=1),
            trained_target=weights_of(network(3)),
        ),
        lambda run, path: transfer_trajectory(
            run, Target(start(), weights_of(network(3))), task(),
            plan=TransferPlan("oracle", stages=1),
        ),
    ),
    "a run folder": (
        lambda run, path: transfer_trajectory(
            run, start(), **old(), plan=PLAN, run_folder=path / "old", configuration={"a": 1},
            resume=True, example_input=batches()[0][0],
        ),
        lambda run, path: transfer_trajectory(
            run, start(), task(example_input=batches()[0][0]), plan=PLAN,
            run_folder=NewRun(path / "new", {"a": 1}, resume=True),
        ),
    ),
    "many": (
        lambda run, path: transfer_to_many(
            run, [start()], **old(), plan=PLAN, run_folders=[path / "one"]
        )[0],
        lambda run, path: transfer_to_many(
            run, [Target(start(), run_folder=path / "other")], task(), plan=PLAN
        )[0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_call_gives_the_same_and_warns(run, tmp_path, name):
    before, now = CALLS[name]
    with pytest.warns(DeprecationWarning, match="takes a Task"):
        first = before(run, tmp_path)
    second = now(run, tmp_path)
    assert first.stages == second.stages
    assert (first.plan, first.chosen) == (second.plan, second.chosen)
    assert all(torch.equal(value, second.weights[n]) for n, value in first.weights.items())
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    described = [load_transfer(path).trajectory.description["configuration"] for path in folders]
    assert all(description == described[0] for description in described)


def test_methods_are_compared_as_before(run):
    targets = [Target(start(), trained(network(2))[-1].weights)]
    parts = {**MEASURED, "test": batches(seed=8)}
    common = {"plans": {"naive": TransferPlan("naive", stages=2)}, "groups": groups()}
    with pytest.warns(DeprecationWarning, match="compare_methods takes a Task now"):
        first = compare_methods(run, targets, **old(), **parts, **common)
    second = compare_methods(run, targets, Task(network(1), batches(), **parts), **common)
    assert [o.metrics for o in first.outcomes] == [o.metrics for o in second.outcomes]


def test_resuming_without_a_folder_is_refused(run):
    with (
        pytest.warns(DeprecationWarning, match="takes a Task now"),
        pytest.raises(ValueError, match=r"resume=True .*pass run_folder="),
    ):
        transfer_trajectory(run, start(), **old(), resume=True)
