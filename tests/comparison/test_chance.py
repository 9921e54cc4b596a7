"""What unrelated networks have in common by chance."""

import itertools
import math

import pytest
import torch

from slipstream.comparison.chance import surprise


def inner_products(first, second, axis):
    """Of the first with the second, whose neurons are in every order."""
    a, b = (value.transpose(0, axis).flatten(1).double() for value in (first, second))
    products = a @ b.T
    orders = torch.tensor(list(itertools.permutations(range(len(b)))))
    return products[torch.arange(len(a)), orders].sum(1)


def test_mean_and_spread_are_those_of_all_orders():
    first, second = torch.randn(2, 8, 1) + 1
    every = inner_products(first, second, 0)
    expected = (every[0] - every.mean()) / every.std(correction=0)
    assert surprise(first, second).deviations == pytest.approx(float(expected), rel=1e-6)


def test_unrelated_weights_are_not_surprising():
    found = [surprise(*torch.randn(2, 40, 30)).deviations for _ in range(200)]
    assert max(map(abs, found)) < 5
    # The lesser of two standard normals: between those of one and of two independent ones.
    assert -1 / math.sqrt(math.pi) - 0.2 < sum(found) / len(found) < 0.2
    assert torch.tensor(found).std() == pytest.approx(1, abs=0.2)


def test_inputs_that_both_ignore_do_not_make_two_networks_related():
    seen = torch.cat([torch.ones(30), torch.zeros(30)]) + torch.linspace(0, 1, 60)
    template = torch.randn(60)
    first, second = torch.randn(2, 50, 60) * seen + template
    cosine = float((first * second).sum() / first.norm() / second.norm())
    assert cosine * math.sqrt(first.numel()) > 10  # what a naive test would take for kinship
    assert abs(surprise(first, second).deviations) < 5


def test_a_common_part_is_found_in_any_axis_order():
    common = torch.randn(32, 24, 3, 3)
    first, second = (common + torch.randn(32, 24, 3, 3) for _ in range(2))
    assert surprise(first, second).deviations > 20
    assert surprise(first, first).deviations == pytest.approx(surprise(first, first).highest)


def test_little_or_constant_says_nothing():
    assert surprise(torch.randn(4, 30), torch.randn(4, 30)) is None
    assert surprise(torch.ones(30, 30), torch.randn(30, 30)) is None
    assert surprise(torch.randn(30), torch.randn(30)) is None
    assert surprise(torch.randn(30, 1, 3, 3), torch.randn(30, 1, 3, 3)) is not None


def test_large_matrices_are_sampled():
    common = torch.randn(3000, 10)
    first, second = (common + torch.randn(3000, 10) for _ in range(2))
    assert surprise(first, second).deviations > 6
    assert surprise(first, second).highest < 3000
