"""The study: each part as the function of its own measures it; the networks of a transfer."""

import pytest
import torch

from slipstream.evaluation import (
    Task,
    evaluate,
    recalibrate_batchnorm,
)
from slipstream.landscape import (
    StudyPlan,
    landscape_study,
    loss_barrier,
    networks_of_transfer,
    prediction_agreement,
    representation_similarity,
)
from slipstream.matching import match_weights
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.transfer import TransferPlan, transfer_trajectory
from slipstream.weights import clone, weights_of
from transfer.small_runs import batches, network, trained

PLAN = StudyPlan(points=5, corners=("a", "c", "d"), plane_points=3)


@pytest.fixture(scope="module")
def study():
    model, data = network(0), batches()
    weights = {
        name: trained(network(seed), steps=2)[-1].weights for seed, name in enumerate("abcd")
    }
    task = Task(model, data, calibration=batches(seed=5))
    return weights, task, landscape_study(weights, task, plan=PLAN)


def test_lines_are_those_of_loss_barrier(study):
    weights, task, found = study
    names = list(weights)
    for i, j in ((0, 1), (3, 1), (2, 3)):
        alone = loss_barrier(weights[names[i]], weights[names[j]], task, points=5)
        torch.testing.assert_close(found.lines["loss"][i, j], alone.line.losses)
        assert float(found.rises("loss")[i, j]) == pytest.approx(alone.height)
        assert float(found.drops("accuracy")[i, j]) == pytest.approx(alone.drop("accuracy"))
        assert float(found.distances[i, j]) == pytest.approx(float(alone.line.distances[-1]))
    for metric in ("loss", "accuracy"):
        assert torch.equal(found.lines[metric], found.lines[metric].transpose(0, 1).flip(2))
        assert torch.equal(found.rises(metric), found.rises(metric).T)
        assert not found.rises(metric).diag().any()


def test_values_and_similarities_are_those_of_calibrated_networks(study):
    weights, task, found = study
    ready = {
        name: value | recalibrate_batchnorm(task.model, weights=value, data=task.calibration)
        for name, value in weights.items()
    }
    for number, value in enumerate(ready.values()):
        there = evaluate(task.model, task.measured, weights=value, data=task.data)
        assert float(found.values("loss")[number]) == pytest.approx(there["loss"])
    agreement = prediction_agreement(ready, task)
    assert torch.equal(found.agreement, agreement)
    alike = representation_similarity(ready, task)
    assert list(found.similarity) == ["0", "4", "6"] == list(alike)
    torch.testing.assert_close(found.similarity["4"], alike["4"])


def test_the_plane_has_all_networks_marked(study):
    weights, _, found = study
    marks = found.plane.plane.marks
    assert set(marks) == set(weights)
    assert marks["b"].outside > 0.1
    assert [marks["d"].outside, marks["a"].x] == [0, 0]
    assert found.plane.losses.shape == (3, 3)
    told = found.to_json()
    assert told["rises"]["loss"] == found.rises("loss").tolist()
    assert told["plane"]["marks"]["b"]["outside"] == marks["b"].outside


def test_an_interrupted_study_goes_on_to_the_same_bits(study, tmp_path):
    weights, task, whole = study
    seen = []

    def until(last):
        def progress(done, total):
            seen.append((done, total))
            if done == last:
                raise KeyboardInterrupt

        return progress

    for last in (10, 25, None):
        try:
            found = landscape_study(
                weights, task, plan=PLAN, resume=tmp_path / "points", progress=until(last)
            )
        except KeyboardInterrupt:
            assert last is not None
    assert seen == [(n, 4 + 6 * 3 + 9) for n in range(1, 32)]
    assert torch.equal(found.lines["loss"], whole.lines["loss"])
    assert torch.equal(found.plane.losses, whole.plane.losses)


def test_the_networks_of_a_transfer():
    source, own = trained(network(1)), trained(network(2))
    model, data = network(0), batches()
    groups = find_neuron_groups(model.float(), data[0][0].float())
    result = transfer_trajectory(
        source,
        own[0].weights,
        Task(model.double(), data),
        plan=TransferPlan("fgmt", stages=2),
        groups=groups,
    )
    found = networks_of_transfer(
        source,
        result.trajectory,
        source_to_target=result.source_to_target,
        trained_target=own[-1].weights,
    )
    assert list(found) == [
        "target start", "naive", "transferred", "permuted source", "source", "trained target",
        "oracle",
    ]  # fmt: skip
    name = "4.weight"
    start, begun, ended = own[0][name], source[0][name], source[-1][name]
    torch.testing.assert_close(found["naive"][name], start + ended - begun)
    torch.testing.assert_close(found["transferred"][name], result.weights[name])
    pi = result.source_to_target
    torch.testing.assert_close(
        found["permuted source"][name] - found["transferred"][name],
        pi.apply_to(name, begun) - start,
    )
    learned = [n for n, v in own[0].weights.items() if v.is_floating_point() and "running" not in n]
    moved = {n: source[-1][n] - source[0][n] for n in learned}
    target_moved = {n: own[-1][n] - own[0][n] for n in learned}
    best = match_weights(moved, target_moved, groups=groups).source_to_target
    torch.testing.assert_close(found["oracle"][name], start + best.apply(moved)[name])
    few = networks_of_transfer(source, result.trajectory, source_to_target=pi)
    assert list(few) == list(found)[:5]


def test_bad_input_is_told():
    model, data = network(0, batchnorm=False), batches()
    weights = {"a": clone(weights_of(network(1, batchnorm=False))),
               "b": clone(weights_of(network(2, batchnorm=False)))}  # fmt: skip

    def study(weights, **more):
        return landscape_study(weights, Task(model, data, metrics={}), plan=StudyPlan(**more))

    with pytest.raises(ValueError, match="two or more networks by name, got 1"):
        study({"a": weights["a"]})
    with pytest.raises(ValueError, match="corners must be three of a, b, got 'c'"):
        study(weights, corners=("a", "b", "c"))
    with pytest.raises(ValueError, match="A plane goes through three weights, got 2"):
        study(weights, corners=("a", "b"))
    with pytest.raises(ValueError, match="metric must be one of loss, got 'accuracy'"):
        study(weights, points=2, predict=None).rises("accuracy")
    assert study(weights, points=2, predict=None).agreement is None
