"""Calls as of 0.1: they warn, and give the same; those that had no model stay as they are."""

import pytest
import torch

from slipstream.averaging import LAWA, SWA, average_candidates, average_run, choose_average
from slipstream.evaluation import Task, accuracy, classification_loss
from transfer.small_runs import batches, network, trained

METRICS = {"loss": classification_loss, "accuracy": accuracy}


@pytest.mark.parametrize("criterion", ["loss", "accuracy"])
def test_an_average_is_chosen_as_before(criterion):
    run, validation = trained(network(0)), batches(seed=7)
    candidates = average_candidates(run, rules=[LAWA(2), SWA(2)])
    options = {"criterion": criterion, "highest": criterion == "accuracy"}
    with pytest.warns(DeprecationWarning, match="choose_average takes a Task now"):
        first = choose_average(
            network(1), METRICS,
            candidates=candidates, validation=validation, train=batches(), **options,
        )  # fmt: skip
    task = Task(network(1), batches(), validation=validation, metrics=METRICS)
    second = choose_average(candidates, task, **options)
    assert first.candidates == second.candidates
    assert first.best == second.best
    assert all(torch.equal(value, second.weights[n]) for n, value in first.weights.items())


def test_a_run_is_averaged_as_before():
    run = trained(network(0), steps=3)
    mean = torch.stack([s.weights["6.bias"] for s in run]).mean(0)
    torch.testing.assert_close(average_run(run, SWA())["6.bias"], mean)
