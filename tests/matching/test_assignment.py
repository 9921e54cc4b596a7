import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from slipstream.matching import assign, assignment, auction


def worth(matrix, order):
    return matrix[torch.arange(len(matrix)), order].sum().item()


def test_best_of_all_orders():
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    best = max(itertools.permutations(range(6)), key=lambda o: worth(matrix, torch.tensor(o)))
    assert assign(matrix).order.tolist() == list(best)


@pytest.mark.parametrize("size", [2, 192, 193, 600])
@pytest.mark.parametrize("kind", ["noise", "rank one", "ties", "constant", "tiny", "huge"])
def test_as_good_as_scipy_alone(size, kind):
    generator = torch.Generator().manual_seed(size)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    if kind == "rank one":
        left, right = torch.randn(2, size, generator=generator, dtype=torch.float64)
        matrix = 1e3 * torch.outer(left, right) + matrix
    matrix = {
        "ties": matrix.sign(),
        "constant": torch.full_like(matrix, 3.0),
        "tiny": matrix * 1e-30,
        "huge": matrix * 1e30,
    }.get(kind, matrix)
    found = assign(matrix)
    rows, columns = linear_sum_assignment(matrix.numpy(), maximize=True)
    assert sorted(found.order.tolist()) == list(range(size))
    assert worth(matrix, found.order) == pytest.approx(matrix.numpy()[rows, columns].sum())


def rank_one_and_noise(seed, *, strength=100):
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, 600, generator=generator)
    return strength * torch.outer(left, right) + torch.randn(600, 600, generator=generator)


@pytest.fixture
def edges_solved(monkeypatch):
    """How many edges each sparse problem had; the dense solver is out of reach."""
    counts = []
    # The order is the best either way: only inside is seen how few edges were enough.
    solve = assignment._Problem._solve_sparse

    def counted(self, edges, prices):
        counts.append(len(edges))
        return solve(self, edges, prices)

    # Counted on the way.
    monkeypatch.setattr(assignment._Problem, "_solve_sparse", counted)
    # Would hide that the sparse one failed.
    monkeypatch.setattr(assignment, "_solve_dense", None)
    return counts


@pytest.mark.parametrize("strength", [0, 1, 100, 1000])
def test_few_columns_are_enough_to_prove_the_best_order(strength, edges_solved):
    matrix = rank_one_and_noise(0, strength=strength).double()
    order = assign(matrix).order
    columns = linear_sum_assignment(matrix.numpy(), maximize=True)[1]
    assert order.tolist() == columns.tolist()
    assert max(edges_solved) < 600 * 600 / 5


def test_a_bad_choice_of_columns_is_noticed(monkeypatch):
    matrix = rank_one_and_noise(0).double()
    # No matrix that is known makes the usual choice a bad one.
    monkeypatch.setattr(
        assignment._Problem,
        "_nearest",
        lambda self, *_: np.arange(600) * 601,  # the diagonal
    )
    columns = linear_sum_assignment(matrix.numpy(), maximize=True)[1]
    assert assign(matrix).order.tolist() == columns.tolist()


@pytest.mark.parametrize(("rows", "columns"), [(90, 0), (0, 90), (90, 90), (200, 120)])
@pytest.mark.parametrize("warm", [False, True])
def test_dead_units_take_what_is_left(rows, columns, warm):
    matrix = rank_one_and_noise(0, strength=1).double()
    prices = assign(matrix).prices if warm else None
    matrix[:rows] = 0
    matrix[:, 600 - columns :] = 0
    best = matrix.numpy()[linear_sum_assignment(matrix.numpy(), maximize=True)].sum()
    order = assign(matrix, prices=prices).order
    assert sorted(order.tolist()) == list(range(600))
    assert worth(matrix, order) == pytest.approx(best, rel=1e-12)


def test_prices_of_a_similar_matrix_save_bids(monkeypatch):
    rounds = []
    # The rounds are not returned; time, which they cost, is not steady.
    monkeypatch.setattr(
        auction, "_sell", lambda *a, sell=auction._sell: rounds.append(1) or sell(*a)
    )
    matrix = rank_one_and_noise(0)
    prices = assign(matrix).prices
    first = len(rounds)
    assign(matrix + 0.01 * rank_one_and_noise(1), prices=prices)
    assert len(rounds) - first < first / 2


def test_prices_of_another_matrix_change_nothing():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(600, 600, generator=generator)
    second = torch.randn(600, 600, generator=generator) * 50 + 7
    prices = assign(first).prices
    assert torch.equal(assign(second, prices=prices).order, assign(second).order)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (torch.zeros(2, 3), r"square, got shape \(2, 3\)"),
        (torch.full((2, 2), torch.nan), "NaN"),
        (torch.full((600, 600), torch.inf), "infinity"),
    ],
)
def test_what_is_no_similarity(matrix, words):
    with pytest.raises(ValueError, match=words):
        assign(matrix)


@pytest.mark.parametrize("seed", [1, 7])
@pytest.mark.timeout(60)
def test_rows_that_compete_by_the_smallest_differences_do_not_go_on_for_ever(seed):
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randn(256, 3, generator=generator) @ torch.randn(3, 256, generator=generator)
    similarity = wanted[:32].repeat(8, 1) + 1e-7 * torch.randn(256, 256, generator=generator)
    rows, columns = linear_sum_assignment(similarity.double().numpy(), maximize=True)
    best = similarity.double()[rows, columns].sum()
    found = similarity.double()[rows, assign(similarity).order].sum()
    assert float(found) == pytest.approx(float(best), rel=1e-12)
