"""Calls as of 0.1: they warn, and give the same."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from slipstream.evaluation import Task, classification_loss
from slipstream.porting import FineTune, PortPlan, port_checkpoint, port_fine_tune
from slipstream.weights import weights_of
from transfer.small_runs import batches, network


def weights():
    return {
        name: weights_of(network(seed))
        for seed, name in enumerate(("from_base", "fine_tuned", "to_base"))
    }


DATA = {"data": batches(), "validation": batches(seed=7)}
CALLS = {
    "without a model": (
        lambda: port_fine_tune(**weights(), plan=PortPlan("identity")),
        lambda: port_fine_tune(FineTune(**weights()), plan=PortPlan("identity")),
    ),
    "with a model": (
        lambda: port_fine_tune(
            network(3), **weights(), loss=classification_loss, plan=PortPlan(stages=2), **DATA
        ),
        lambda: port_fine_tune(
            FineTune(**weights()), Task(network(3), **DATA), plan=PortPlan(stages=2)
        ),
    ),
    "with an input": (
        lambda: port_fine_tune(
            network(3), **weights(), plan=PortPlan("weights"), example_input=batches()[0][0]
        ),
        lambda: port_fine_tune(
            FineTune(**weights()),
            Task(network(3), example_input=batches()[0][0]),
            plan=PortPlan("weights"),
        ),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_call_gives_the_same_and_warns(name):
    before, now = CALLS[name]
    with pytest.warns(DeprecationWarning, match="port_fine_tune takes"):
        first = before()
    second = now()
    assert first.to_json() == second.to_json()
    assert all(torch.equal(value, second.weights[n]) for n, value in first.weights.items())


def test_files_are_ported_as_before(tmp_path):
    files = {name: tmp_path / f"{name}.safetensors" for name in weights()}
    for name, value in weights().items():
        save_file(value, files[name])
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    with pytest.warns(DeprecationWarning, match="port_checkpoint takes"):
        port_checkpoint(
            old, **files, plan=PortPlan("weights"), model=network(3),
            example_input=batches()[0][0], loss=None, data=None, validation=None, groups=None,
        )  # fmt: skip
    task = Task(network(3), example_input=batches()[0][0])
    port_checkpoint(new, FineTune(**files), task, plan=PortPlan("weights"))
    expected = load_file(new)
    assert all(torch.equal(value, expected[name]) for name, value in load_file(old).items())


def test_the_old_name_of_a_candidate_is_known():
    from slipstream import porting

    with pytest.warns(DeprecationWarning, match="PortCandidate"):
        assert porting.Candidate is porting.PortCandidate
