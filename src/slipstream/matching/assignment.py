"""One similarity matrix in, one order out."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# Up to this size scipy alone is as fast as finding prices first (measured on gradients).
SMALL = 512


@dataclass(frozen=True)
class Assignment:
    """Result of `assign`."""

    order: Tensor  # (n,) int64: row i of the similarity is given column `order[i]`
    prices: Tensor  # (n,) float32: what the columns cost; speeds up the next, similar assignment


def assign(similarity: Tensor, *, prices: Tensor | None = None) -> Assignment:
    """Find the order that maximises `similarity[arange(n), order].sum()`, exactly.

    scipy's shortest augmenting paths are exact, but slow on what gradients give: matrices that a
    few common directions dominate. Subtracting any price from a column changes no argmax, and with
    prices near the dual optimum each path is one step long. An auction finds such prices in the
    time of about ten passes over the matrix, fewer when it starts from those of a similar matrix.

    Args:
        similarity: (n, n) finite numbers.
        prices: (n,) prices of an earlier assignment of the same neurons.

    Returns:
        The order, and the prices for the next call.

    Raises:
        ValueError: If the similarity is not square, or not finite.

    Source: "A distributed algorithm for the assignment problem" (Bertsekas, 1979) for the auction.

    Example:
        >>> assign(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).order
        tensor([0, 1])
    """
    if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity must be square, got shape {tuple(similarity.shape)}.")
    matrix = similarity.detach().to("cpu", torch.float64)
    if not torch.isfinite(matrix).all():
        raise ValueError("similarity holds a NaN or an infinity.")
    size = len(matrix)
    if size <= SMALL:
        prices = torch.zeros(size)
    else:
        spread = float(matrix.std())
        steps = [0.1, 0.03, 0.01, 0.003] if prices is None else [0.003]
        prices = _auction(matrix.float(), prices, [step * spread for step in steps])
        matrix = matrix - prices.double()
    _, columns = linear_sum_assignment(matrix.numpy(), maximize=True)
    return Assignment(torch.from_numpy(columns.astype(np.int64)), prices)


def _auction(values: Tensor, prices: Tensor | None, steps: list[float]) -> Tensor:
    """Prices after rounds of bidding in which nobody bids less than the round's step."""
    size = len(values)
    if prices is None:
        prices = values.mean(0)
    prices = prices.clone()
    for step in steps:
        if step <= 0:  # all equal
            break
        owner = torch.full((size,), -1)  # of each column
        served = torch.zeros(size, dtype=torch.bool)  # each row
        for _ in range(50):
            rows = torch.nonzero(~served).flatten()
            # The last few bid against each other for long; the exact solver serves them quickly.
            if len(rows) <= size // 50:
                break
            _bid(values[rows] - prices, rows, step, prices, owner, served)
    return prices


def _bid(
    margins: Tensor, rows: Tensor, step: float, prices: Tensor, owner: Tensor, served: Tensor
) -> None:
    """Let the unserved `rows` bid once, all together; updates prices, owner and served."""
    best, columns = margins.topk(2, dim=1)
    bids = best[:, 0] - best[:, 1] + step
    wanted = columns[:, 0]
    raised = torch.zeros_like(prices).scatter_reduce_(0, wanted, bids, "amax")
    sold = torch.nonzero(raised).flatten()
    by_bid = bids.argsort()  # of several bidders the last one written is the highest
    winner = torch.full_like(owner, -1)
    winner.numpy()[wanted[by_bid].numpy()] = rows[by_bid].numpy()
    before = owner[sold]
    served[before[before >= 0]] = False
    prices[sold] += raised[sold]
    owner[sold] = winner[sold]
    served[winner[sold]] = True
