import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from slipstream.matching import assign, assignment


def worth(matrix, order):
    return matrix[torch.arange(len(matrix)), order].sum().item()


def test_best_of_all_orders():
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    best = max(itertools.permutations(range(6)), key=lambda o: worth(matrix, torch.tensor(o)))
    assert assign(matrix).order.tolist() == list(best)


@pytest.mark.parametrize("size", [2, 512, 513, 600])
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


def rank_one_and_noise(seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, 600, generator=generator)
    return 100 * torch.outer(left, right) + torch.randn(600, 600, generator=generator)


def test_prices_leave_the_exact_solver_little_to_do(monkeypatch):
    handed = []

    def solver(matrix, **options):
        handed.append(torch.from_numpy(matrix))
        return linear_sum_assignment(matrix, **options)

    monkeypatch.setattr("slipstream.matching.assignment.linear_sum_assignment", solver)
    matrix = rank_one_and_noise(0).double()
    order = assign(matrix).order
    # What the rows would like to have beyond what they can get.
    without, left = (m.amax(1).sum().item() - worth(m, order) for m in (matrix, handed[0]))
    assert left < without / 50


def test_prices_of_a_similar_matrix_save_bids(monkeypatch):
    rounds = []
    monkeypatch.setattr(
        assignment, "_bid", lambda *a, bid=assignment._bid: rounds.append(1) or bid(*a)
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
