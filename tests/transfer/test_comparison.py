import time

import pytest
import torch

from slipstream.evaluation import Task, classification_loss, evaluate
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.transfer import Target, TransferPlan, compare_methods, transfer_trajectory
from slipstream.weights import weights_of
from transfer.small_runs import batches, network, trained

METRICS = {"loss": classification_loss}


def test_outcomes_are_those_of_the_transfers_measured_on_the_test_data():
    run, model = trained(network(0)), network(1)
    groups = find_neuron_groups(model, batches()[0][0])
    targets = [Target(weights_of(network(s)), trained(network(s))[-1].weights) for s in (2, 3)]
    plans = {"carried": TransferPlan("naive", stages=2), "best": TransferPlan("oracle", stages=2)}
    validation, test = batches(seed=8), batches(seed=9)
    told = []
    task = Task(model, batches(), validation=validation, test=test, metrics=METRICS)
    common = {"task": task, "groups": groups}
    found = compare_methods(
        run,
        targets,
        plans=plans,
        further=lambda weights: {**weights, "6.bias": torch.zeros(3, dtype=torch.float64)},
        progress=lambda *work: told.append(work),
        **common,
    )
    assert found.names == ("target start", "carried", "best", "trained target")
    assert told == [(o.name, n, 8) for n, o in enumerate(found.outcomes)]
    for outcome in found.outcomes:
        target = targets[outcome.target]
        weights = {"target start": target.start, "trained target": target.trained}.get(outcome.name)
        if weights is None:
            plan = plans[outcome.name]
            result = transfer_trajectory(run, target, plan=plan, **common)
            weights = result.weights
            assert outcome.along == tuple(stage.metrics for stage in result.stages)
        measured = evaluate(model, METRICS, weights=weights, data=test)
        assert outcome.metrics == pytest.approx(measured)
        later = {**weights, "6.bias": torch.zeros(3, dtype=torch.float64)}
        assert outcome.further == pytest.approx(evaluate(model, METRICS, weights=later, data=test))


def test_seconds_are_without_the_validation():
    def slow(model, batch):
        time.sleep(0.05)
        return classification_loss(model, batch)

    run, model = trained(network(0)), network(1)
    target = Target(weights_of(network(2)), weights_of(network(3)))
    found = compare_methods(
        run,
        [target],
        Task(model, batches(), validation=batches(), test=batches(count=1), metrics={"slow": slow}),
        plans={"naive": TransferPlan("naive", stages=2)},
        groups=find_neuron_groups(model, batches()[0][0]),
    )
    assert found.of("naive")[0].seconds < 3 * 4 * 0.05
