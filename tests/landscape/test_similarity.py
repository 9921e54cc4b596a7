"""Agreement and linear CKA: closed forms, a plain estimate, invariances."""

import pytest
import torch
from torch import nn

from cases import CASES
from slipstream.evaluation import Task
from slipstream.landscape import prediction_agreement, representation_similarity
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import clone, weights_of


def linear(features=3, width=4):
    return nn.Sequential(nn.Linear(features, width, bias=False)).double()


def rows(count, width, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def unbiased_hsic(x, y):
    """The estimate of Nguyen et al. (2021), Equation 3, as it is written there."""
    k, l = x @ x.T, y @ y.T  # ruff: ignore[ambiguous-variable-name]
    k.fill_diagonal_(0)
    l.fill_diagonal_(0)
    n = len(k)
    ones = torch.ones(n, dtype=torch.float64)
    return (
        (k @ l).trace()
        + (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (ones @ k @ l @ ones)
    ) / (n * (n - 3))


def similarity_of(first, second, data, **given):
    weights = {"a": {"0.weight": first}, "b": {"0.weight": second}}
    found = representation_similarity(weights, Task(linear(), data), **given)
    return found["0"]


def test_the_estimate_is_that_of_the_paper_over_unequal_batches():
    first, second = rows(4, 3, seed=1), rows(4, 3, seed=2)
    data = [rows(n, 3, seed=n) + n for n in (9, 5, 3, 6)]  # that of 3 is too small
    sums = torch.zeros(2, 2, dtype=torch.float64)
    for batch in (batch for batch in data if len(batch) > 3):
        outputs = [batch @ first.T, batch @ second.T]
        for i, x in enumerate(outputs):
            for j, y in enumerate(outputs):
                sums[i, j] += len(batch) * unbiased_hsic(x, y)
    expected = sums / torch.outer(sums.diag().sqrt(), sums.diag().sqrt())
    torch.testing.assert_close(similarity_of(first, second, data), expected)


def test_many_examples_give_the_value_of_the_covariances():
    first, second = rows(4, 3, seed=1), rows(4, 3, seed=2)
    batch = rows(1500, 3)
    x, y = (batch @ w.T - (batch @ w.T).mean(0) for w in (first, second))
    exact = (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert float(similarity_of(first, second, [batch])[0, 1]) == pytest.approx(
        float(exact), abs=5e-3
    )


def test_rotations_permutations_and_scale_change_nothing():
    first, second = rows(4, 3, seed=1), rows(4, 3, seed=2)
    turn, _ = torch.linalg.qr(rows(4, 4, seed=5))
    data = [rows(20, 3)]
    expected = similarity_of(first, second, data)
    for other in (turn @ second, second[[2, 0, 3, 1]], -7.0 * second):
        torch.testing.assert_close(similarity_of(first, other, data), expected)
    assert float(similarity_of(first, turn @ first * 3, data)[0, 1]) == pytest.approx(1.0)
    skewed = torch.diag(torch.tensor([5.0, 1.0, 1.0, 1.0]).double()) @ second
    assert abs(float(similarity_of(first, skewed, data)[0, 1] - expected[0, 1])) > 1e-3


def test_unrelated_features_are_near_zero_although_they_are_many():
    weights = {name: {"0.weight": rows(400, 50, seed=seed)} for seed, name in enumerate("ab")}
    model = nn.Sequential(nn.Linear(50, 400, bias=False)).double()
    noise = [rows(30, 50, seed=s) for s in range(10)]
    # The inputs of both networks are unrelated: the second one sees them shuffled.
    model.register_forward_pre_hook(
        lambda m, args: (args[0].roll(7, 0),) if m[0].weight[0, 0] == weights["b"]["0.weight"][0, 0]
        else None
    )  # fmt: skip
    found = representation_similarity(weights, Task(model, noise))["0"]
    assert abs(float(found[0, 1])) < 0.1
    assert float(found[0, 0]) == pytest.approx(1.0)


def test_permuted_networks_are_alike_in_every_layer():
    case = CASES["residual"]
    model = case.model().double()
    own = clone(weights_of(model))
    groups = find_neuron_groups(case.model(), case.inputs())
    moved = Permutation.random(groups, seed=3).apply(own)
    data = [(x.double(), y) for x, y in case.batches()]
    weights = {"own": own, "moved": moved}
    found = representation_similarity(weights, Task(model, data))
    assert set(found) == {"stem", "first.0", "first.3", "second.0", "second.3", "head"}
    for value in found.values():
        torch.testing.assert_close(value, torch.ones(2, 2, dtype=torch.float64))
    chosen = representation_similarity(weights, Task(model, data), layers=["first", "head"])
    assert list(chosen) == ["first", "head"]
    both = prediction_agreement(weights, Task(model, data))
    assert torch.equal(both, torch.ones(2, 2, dtype=torch.float64))


def test_a_constant_layer_has_no_similarity():
    found = similarity_of(torch.zeros(4, 3).double(), rows(4, 3), [rows(8, 3)])
    assert found[0].isnan().all()
    assert float(found[1, 1]) == pytest.approx(1.0)


def test_agreement_counts_examples_of_unequal_batches():
    model = nn.Linear(2, 2, bias=False)
    weights = {"a": {"weight": torch.eye(2)}, "b": {"weight": torch.eye(2).flip(0)},
               "c": {"weight": torch.eye(2)}}  # fmt: skip
    apart, together = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]] * 4)
    found = prediction_agreement(weights, Task(model, [apart, together]))
    expected = [[1, 0.8, 1], [0.8, 1, 0.8], [1, 0.8, 1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_bad_input_is_told():
    model, weights = (
        linear(),
        {"a": {"0.weight": rows(4, 3)}, "b": {"0.weight": rows(4, 3, seed=1)}},
    )
    with pytest.raises(ValueError, match="no layer 'conv'; it has , 0"):
        representation_similarity(weights, Task(model, [rows(8, 3)]), layers=["conv"])
    with pytest.raises(ValueError, match="a batch of 4 examples or more"):
        representation_similarity(weights, Task(model, [rows(3, 3)]))
    with pytest.raises(ValueError, match="data is empty"):
        representation_similarity(weights, Task(model, []))
    with pytest.raises(ValueError, match="b lacks the tensor"):
        prediction_agreement({**weights, "b": {}}, Task(model, [rows(3, 3)]))
    flat = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Flatten(0)).double()
    with pytest.raises(ValueError, match="give as predict a function of a model and a batch"):
        prediction_agreement(weights, Task(flat, [rows(3, 3)]))
