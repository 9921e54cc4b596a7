import time

import pytest
import torch

from slipstream.evaluation import Task, classification_loss, evaluate
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.transfer import (
    Comparison,
    ContinuedTransfer,
    DescentPlan,
    Outcome,
    Reached,
    Target,
    TransferPlan,
    at_gradients,
    compare_methods,
    descend,
    transfer_trajectory,
)
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


def descents(*numbers):
    return [DescentPlan("adam", number, rates=(0.02,)) for number in numbers]


def test_rivals_and_continued_transfers_stand_beside_transfers():
    run, model = trained(network(0)), network(1)
    target = Target(weights_of(network(2)), trained(network(2))[-1].weights)
    task = Task(model, batches(), validation=batches(seed=8), test=batches(seed=9), metrics=METRICS)
    groups = find_neuron_groups(model, batches()[0][0])
    carried = TransferPlan("random-signed", stages=2)
    then = ContinuedTransfer(carried, descents(3)[0])
    taught = DescentPlan("adam", 2, rates=(0.02,), answers="source")
    plans = {"adam": descents(1, 4), "carried": carried, "then adam": then, "distilled": taught}
    found = compare_methods(run, [target], task, plans=plans, groups=groups)
    assert found.rows == (
        ("target start", 0), ("adam", 1), ("adam", 4), ("carried", 2), ("then adam", 5),
        ("distilled", 2), ("trained target", 0),
    )  # fmt: skip
    assert found.rivals == ("adam",)
    assert [o.gradient_evaluations for o in found.of("adam")] == [1, 4]
    (four,) = found.of("adam", 4)
    alone = descend(target.start, task, descents(4)[0])
    assert four.validation == alone.validation
    assert (four.rate, four.tuning_gradients) == (0.02, 0)
    assert four.metrics == task.evaluate(weights=alone.weights, split="test")
    result = transfer_trajectory(run, target, task, plan=carried, groups=groups)
    (both,), (first,) = found.of("then adam"), found.of("carried")
    assert first.validation == result.stages[-1].metrics
    assert both.validation == descend(result.weights, task, descents(3)[0]).validation
    assert both.seconds > 0
    learned = descend(target.start, task, taught, source=run[-1].weights)
    assert found.of("distilled")[0].validation == learned.validation


def test_a_function_of_the_start_is_a_row_without_gradients():
    run, model = trained(network(0)), network(1)
    targets = [Target(weights_of(network(n)), weights_of(network(3))) for n in (2, 4)]
    task = Task(model, batches(), validation=batches(seed=8), test=batches(seed=9), metrics=METRICS)
    end = run[-1].weights

    def made(start):
        return {name: (value + end[name]) / 2 for name, value in start.items()}

    found = compare_methods(run, targets, task, plans={"made": made})
    assert found.rows == (("target start", 0), ("made", 0), ("trained target", 0))
    assert found.rivals == ()
    for target, outcome in zip(targets, found.of("made"), strict=True):
        expected = made(target.start)
        assert outcome.metrics == task.evaluate(weights=expected, split="test")
        assert outcome.validation == task.evaluate(weights=expected, split="validation")


def test_plans_at_other_numbers_of_gradients():
    continued = ContinuedTransfer(TransferPlan("naive-signed", stages=10), DescentPlan())
    found = at_gradients(continued, (5, 10, 11, 30))
    assert [plan.descent.gradients for plan in found] == [1, 20]
    assert [plan.gradients for plan in found] == [11, 30]
    assert [plan.gradients for plan in at_gradients(DescentPlan(), (0, 3))] == [3]
    segmented = at_gradients(TransferPlan("naive-signed", segments=2), (1, 2, 3, 6))
    assert [plan.stages for plan in segmented] == [1, 3]


def outcome(name, gradients, reached, *, target=0, seconds=1.0, rival=False, metric="accuracy"):
    values = {metric: reached}
    return Outcome(
        name,
        target,
        {metric: reached / 2},
        {},
        (),
        seconds,
        gradients,
        values,
        without_source=rival,
    )


OUTCOMES = (
    outcome("target start", 0, 0.1),
    outcome("carried", 10, 0.78, seconds=3.0),
    outcome("carried", 20, 0.80, seconds=5.0),
    outcome("then adam", 15, 0.795, seconds=4.0),
    outcome("oracle", 0, 0.9),
    outcome("adam", 40, 0.70, rival=True),
    outcome("adam", 80, 0.81, seconds=9.0, rival=True),
    outcome("sgd", 160, 0.81, rival=True),
    outcome("trained target", 0, 0.8),
)


def test_what_is_saved_is_counted_to_the_same_validation_metric():
    found = Comparison(OUTCOMES).savings()
    (saving,) = found.targets
    assert saving.goal == pytest.approx(0.792)
    assert saving.transfer == Reached("then adam", 15, 4.0, 0.795 / 2)
    assert saving.rival == Reached("adam", 80, 9.0, 0.81 / 2)
    assert saving.ratio == pytest.approx(80 / 15) == found.least_ratio
    assert "after 15 gradients and 4.0 s (then adam), instead of 80 gradients" in str(found)
    (alone,) = Comparison(OUTCOMES).savings(["carried"]).targets
    assert alone.transfer.gradients == 20
    (given,) = Comparison(OUTCOMES).savings(value=0.7).targets
    assert (given.transfer.gradients, given.rival.gradients) == (10, 40)


def test_a_goal_that_is_not_reached_is_said():
    (high,) = Comparison(OUTCOMES).savings(value=0.805).targets
    assert high.transfer is None
    assert (high.ratio, high.least_ratio) == (None, 0)
    assert "not reached with the source; 80 gradients" in str(
        Comparison(OUTCOMES).savings(value=0.805)
    )
    without = [o for o in OUTCOMES if o.name != "sgd"]
    later = Comparison((*without, outcome("carried", 100, 0.9))).savings(value=0.85)
    (one,) = later.targets
    assert (one.ratio, one.least_ratio, one.most_gradients) == (None, 0.8, 80)
    assert "no way without the source reached it with up to 80 gradients" in str(later)
    nothing = Comparison(OUTCOMES).savings(value=0.99)
    assert "was not reached, neither with the source nor without it" in str(nothing)


def test_a_loss_has_to_fall():
    outcomes = (
        outcome("target start", 0, 4.0, metric="loss"),
        outcome("carried", 10, 2.4, metric="loss"),
        outcome("carried", 20, 2.2, metric="loss"),
        outcome("adam", 40, 2.3, rival=True, metric="loss"),
        outcome("trained target", 0, 2.0, metric="loss"),
    )
    (saving,) = Comparison(outcomes).savings(metric="loss", share=0.8).targets
    assert saving.goal == pytest.approx(2.5)
    assert saving.transfer.gradients == 10
    assert saving.rival.gradients == 40


def test_savings_of_what_was_not_compared_are_refused():
    with pytest.raises(ValueError, match="'adam' is no method with a source; there are carried"):
        Comparison(OUTCOMES).savings(["adam"])
    with pytest.raises(ValueError, match=r"'loss' was not measured on validation data.*accuracy"):
        Comparison(OUTCOMES).savings(metric="loss")
    with pytest.raises(ValueError, match=r"share must be above 0 and at most 1, got 1\.5"):
        Comparison(OUTCOMES).savings(share=1.5)
