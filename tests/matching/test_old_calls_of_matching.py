"""Calls as of 0.1, with model, loss and data one by one: they warn, and give the same."""

import pytest

from slipstream.evaluation import Task, classification_loss
from slipstream.matching import match_activations, match_gradients, match_rotations
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import weights_of
from transfer.small_runs import batches, network

MODEL = network(0)
GROUPS = find_neuron_groups(MODEL, batches()[0][0])
ENDS = {"source": weights_of(network(1)), "target": weights_of(network(2))}
START = Permutation.identity(GROUPS)
TASK = Task(MODEL, batches())
CALLS = {
    "activations": (
        lambda: match_activations(MODEL, **ENDS, data=batches(), groups=GROUPS),
        lambda: match_activations(*ENDS.values(), TASK, groups=GROUPS),
    ),
    "activations, fed by hand": (
        lambda: match_activations(
            MODEL, **ENDS, data=batches(), groups=GROUPS, forward=lambda m, batch: m(-batch[0])
        ),
        lambda: match_activations(
            *ENDS.values(), Task(MODEL, [(-x, y) for x, y in batches()]), groups=GROUPS
        ),
    ),
    "gradients": (
        lambda: match_gradients(
            MODEL, classification_loss, **ENDS, data=batches(), groups=GROUPS, restarts=1
        ),
        lambda: match_gradients(*ENDS.values(), TASK, groups=GROUPS, restarts=1),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_call_gives_the_same_and_warns(name):
    before, now = CALLS[name]
    with pytest.warns(DeprecationWarning, match="takes a Task now"):
        first = before()
    second = now()
    assert first.source_to_target.same_as(second.source_to_target)
    assert first.objective == second.objective


def test_rotations_are_matched_as_before():
    with pytest.warns(DeprecationWarning, match="takes a Task now"):
        first = match_rotations(MODEL, **ENDS, data=batches(), groups=GROUPS, start=START)
    second = match_rotations(*ENDS.values(), TASK, groups=GROUPS, start=START)
    assert first.axes.keys() == second.axes.keys()
    assert all((turn == second.axes[at]).all() for at, turn in first.axes.items())
