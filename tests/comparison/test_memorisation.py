"""Whether checkpoints are new: by their errors, and by their weights modulo permutation."""

import pytest
import torch
from torch import nn

from slipstream import find_neuron_groups
from slipstream.comparison import MemorisationPlan, measure_memorisation
from slipstream.evaluation import Task
from slipstream.symmetry.permutation import Permutation
from slipstream.trajectory import create_run
from slipstream.weights import clone, weights_of

PLAN = MemorisationPlan(noise=(0.0, 0.5), controls=2)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def weights(seed):
    return clone(weights_of(network(seed)))


def task(count=30):
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    labels = (inputs[:, 0] > 0).long()
    return Task(network(), list(zip(inputs.split(8), labels.split(8), strict=True)))


KNOWN = [weights(seed) for seed in range(1, 5)]
GROUPS = find_neuron_groups(network(), torch.randn(4, 3))


def permuted(value, seed=3):
    return Permutation.random(GROUPS, seed=seed).apply(value)


def test_overlap_is_that_of_the_wrong_answers():
    model = nn.Linear(2, 2, bias=False)  # the class is the larger input, or the smaller one
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.5], [0.5, 1.0]])
    data = [(inputs[:3], torch.tensor([1, 0, 0])), (inputs[3:], torch.tensor([0]))]
    given = {"weight": torch.eye(2)}  # wrong at 0, 1 and 3
    flipped = {"weight": torch.eye(2).flip(0)}  # wrong at 2
    ones = {"weight": torch.tensor([[0.0, 0.0], [1.0, 1.0]])}  # says class 1: wrong at 1, 2 and 3
    known = [flipped, ones, flipped]
    found = measure_memorisation({"given": [given]}, known, Task(model, data), plan=PLAN)
    (row,) = found["given"].each
    assert (row.accuracy, row.same_errors) == (pytest.approx(1 / 4), "weights 2")
    assert row.overlap == pytest.approx(2 / 4)


def test_a_permuted_copy_is_a_copy():
    found = measure_memorisation(
        {"given": [permuted(KNOWN[2]), weights(9)]}, KNOWN, task(), plan=PLAN
    )
    copy, other = found["given"].each
    assert (copy.overlap, copy.same_weights) == (1.0, "weights 3")
    assert copy.distance == pytest.approx(0, abs=1e-6)
    assert other.distance > 0.5
    assert found.copies("given") == 1
    assert found.known == 4


def test_baselines_are_what_they_say():
    same = [KNOWN[0], permuted(KNOWN[0]), permuted(KNOWN[0], seed=5)]
    found = measure_memorisation({"given": [weights(9)]}, same, task(), plan=PLAN)
    for name in ("noise 0", "matched average", "a known one, left out"):
        assert found[name].distance == pytest.approx(0, abs=1e-6)
        assert found[name].overlap == pytest.approx(1)
    assert found["average"].distance > 0.1
    assert 0.2 < found["noise 0.5"].distance < 0.6
    apart = measure_memorisation({"given": [weights(9)]}, KNOWN, task(), plan=PLAN)
    assert apart["a known one, left out"].distance > 0.5  # not found in itself
    assert [len(row.each) for row in apart.rows] == [1, 2, 2, 2, 2, 2]
    with pytest.raises(KeyError, match="There is no row 'other'"):
        apart["other"]


def test_runs_in_a_folder_are_known(tmp_path):
    for number, value in enumerate(KNOWN):
        with create_run(tmp_path / f"{number}", model=network()) as run:
            run.append(step=0, weights=weights(20 + number))
            run.append(step=1, weights=value)
    seen = []
    found = measure_memorisation(
        {"given": [tmp_path / "1"], "earlier": [f"{tmp_path / '1'}@0"]},
        tmp_path,
        task(),
        plan=PLAN,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found["given"].each[0].same_weights == "1"
    assert found["given"].distance == pytest.approx(0, abs=1e-6)
    assert found["earlier"].distance > 0.5
    assert seen[-1] == (12, 12)


@pytest.mark.parametrize(
    ("sets", "known", "message"),
    [
        ({"given": [{"0.bias": torch.ones(5)}]}, KNOWN, "lacks the tensor '0.weight'"),
        ({"given": []}, KNOWN, "given is empty: give at least one checkpoint"),
        ({"given": KNOWN}, KNOWN[:2], "known must hold more than 2 checkpoints, got 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(sets, known, message):
    with pytest.raises(ValueError, match=message):
        measure_memorisation(sets, known, task(), plan=PLAN)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"averaged": 1}, "averaged must be at least 2, got 1"),
        ({"controls": 0}, "controls must be at least 1, got 0"),
        ({"noise": (-0.1,)}, "noise must not be negative"),
    ],
)
def test_plans_are_checked(changed, message):
    with pytest.raises(ValueError, match=message):
        MemorisationPlan(**changed)
