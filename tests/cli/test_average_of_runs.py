import json

import pytest
from safetensors.torch import load_file, save_file

from commands import slipstream
from slipstream import Trajectory
from slipstream.evaluation import Task
from slipstream.named_task import NamedTask
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import clone, weights_of


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A trained run, and a file of the same network with its neurons in another order."""
    folder = tmp_path_factory.mktemp("pair")
    words = ["mlp", "--width", 16, "--epochs", 2, "--lr", 0.1]
    slipstream("train", *words, "--out", folder / "run")
    return folder / "run", permuted(folder)


def permuted(folder):
    task = NamedTask("mlp", "digits", width=16).build()
    weights = Trajectory.open(folder / "run")[-1].weights
    groups = find_neuron_groups(task.model, task.example())
    hidden = Permutation.random(groups, seed=1).apply(clone(weights))
    file = folder / "hidden.safetensors"
    save_file({name: value.contiguous() for name, value in hidden.items()}, file)
    return file


def test_the_same_network_in_another_order_averages_to_itself(pair, tmp_path):
    run, file = pair
    out = tmp_path / "mean.safetensors"
    found = json.loads(slipstream("average", run, file, "-o", out, "--json").stdout)["networks"]
    assert found["mean, aligned"]["loss"] == pytest.approx(found[str(run)]["loss"], rel=1e-3)
    assert found["mean as they are"]["loss"] > 1.2 * found[str(run)]["loss"]
    task: Task = NamedTask("mlp", "digits", width=16).build()
    written = task.evaluate(weights=load_file(out), split="validation")
    assert written["loss"] == pytest.approx(found["mean, aligned"]["loss"], rel=1e-5)
    assert set(load_file(out)) == set(weights_of(task.model))


def test_people_read_a_table_and_which_network_is_better_alone(pair):
    run, file = pair
    told = slipstream("average", run, file).stdout
    assert "mean, aligned" in told
    assert "mean as they are" in told


def test_a_network_that_is_given_twice_is_refused(pair):
    assert "twice" in slipstream("average", pair[0], pair[0], code=2).stderr


def test_options_of_the_other_kind_of_average_are_refused(pair):
    run, file = pair
    assert "one run" in slipstream("average", run, file, "--rule", "lawa:3", code=2).stderr
    assert "several runs" in slipstream("average", run, "--learn-steps", 3, code=2).stderr


def test_a_network_of_another_width_is_named(pair, tmp_path):
    run, _ = pair
    other = weights_of(NamedTask("mlp", "digits", width=20).build().model)
    file = tmp_path / "other.safetensors"
    save_file({name: value.detach().contiguous() for name, value in other.items()}, file)
    assert "other.safetensors" in slipstream("average", run, file, code=2).stderr
