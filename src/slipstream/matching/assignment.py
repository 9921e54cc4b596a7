"""One similarity matrix in, one order out."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from slipstream.matching.auction import Indices, Values, auction, chunks

# Measured on similarities of gradients and on noise: up to this size scipy alone is the quicker.
SMALL = 192
STEP = 0.1  # of the first auction, in standard deviations of the similarity
LATER_STEP = 0.01  # with the prices of a similar matrix
NEAREST = 24  # columns of each row that are looked at first
MANY = 128  # columns of each row at which the dense solver is the quicker
LEVELS = 2**30  # of the weights that the sparse solver sees
ATTEMPTS = 8  # at naming the columns that matter; more are needed only where there are many ties


@dataclass(frozen=True)
class Assignment:
    """Result of `assign`."""

    order: Tensor  # (n,) int64: row i of the similarity is given column `order[i]`
    prices: Tensor  # (n,) float64: what the columns cost; speeds up the next, similar assignment


def assign(similarity: Tensor, *, prices: Tensor | None = None) -> Assignment:
    """Find the order that maximises `similarity[arange(n), order].sum()`, exactly.

    Dense exact solvers are slow on what gradients give: matrices that a few common directions
    dominate. Only few columns matter to a row, and prices say which: an auction finds prices, the
    columns nearest to each row's best margin are given to a sparse exact solver, and the dual
    prices of its answer are held against the whole matrix. If no entry is worth more than it costs,
    the order is proven to be the best of all; otherwise those entries join, and it is solved again.

    Args:
        similarity: (n, n) finite values.
        prices: (n,) prices of an earlier assignment of the same neurons.

    Returns:
        The order, exact up to rounding, and the prices for the next call.

    Raises:
        ValueError: If the similarity is not square, or not finite.

    Source: "A distributed algorithm for the assignment problem" (Bertsekas, 1979) for the auction.
    The rest is column generation: solve a part, and let the dual prices say what it lacks.

    Example:
        >>> assign(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).order
        tensor([0, 1])
    """
    if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity must be square, got shape {tuple(similarity.shape)}.")
    wide = torch.promote_types(similarity.dtype, torch.float32)
    matrix = similarity.detach().to("cpu", wide).numpy()
    highest, lowest = matrix.max(1, initial=-np.inf), matrix.min(1, initial=np.inf)
    if not (np.isfinite(highest).all() and np.isfinite(lowest).all()):
        raise ValueError("similarity holds a NaN or an infinity.")
    start = matrix.mean(0) if prices is None else prices.numpy()
    if len(matrix) <= SMALL or not (highest > lowest).any():
        columns, costs = _solve_dense(matrix), start
    else:
        step = STEP if prices is None else LATER_STEP
        columns, costs = _Problem(matrix, highest, lowest).solve(start, step)
    return Assignment(torch.from_numpy(columns), torch.from_numpy(costs.astype(np.float64)))


def _solve_dense(matrix: Values) -> Indices:
    return linear_sum_assignment(matrix, maximize=True)[1].astype(np.int64)


class _Problem:
    """A large assignment: the matrix, and what is small in it."""

    def __init__(self, matrix: Values, highest: Values, lowest: Values) -> None:
        self.matrix = matrix
        self.size = len(matrix)
        # A row without preferences, such as a dead unit's, takes what the others leave.
        self.dead = np.flatnonzero(highest == lowest)
        self.peak = float(max(highest.max(), -lowest.min()))
        self.rounding = 1e-15 * self.peak
        # What all rows or all columns have in common changes no choice.
        sample = matrix[:: max(1, self.size // 64)].astype(np.float64)
        sample -= sample.mean(0)
        sample -= sample.mean(1, keepdims=True)
        self.spread = max(float(sample.std()), 1e-12 * self.peak)

    def solve(self, prices: Values, step: float) -> tuple[Indices, Values]:
        """The best columns, and prices for the next time."""
        values = self.matrix
        if self.spread > 1e-30 and self.peak < 1e30:
            values = values.astype(np.float32, copy=False)
        lively = np.delete(values, self.dead, axis=0) if len(self.dead) else values
        while True:
            prices = auction(lively, prices, step=step * self.spread)
            reach = self._reach(lively, prices) / self.spread
            if not 1e-6 < reach < 3 * step:
                break
            step = min(step, reach) / 3
        return self._solve_exactly(self._nearest(values, prices), prices.astype(np.float64))

    def _reach(self, values: Values, prices: Values) -> float:
        """How far the last of the nearest columns is from the best one, in the middle row."""
        margins = values[:: max(1, len(values) // 32)] - prices
        ranks = [self.size - NEAREST, self.size - 1]
        last, best = np.partition(margins, ranks, axis=1)[:, ranks].T
        return float(np.median(best - last))

    def _solve_exactly(self, edges: Indices, prices: Values) -> tuple[Indices, Values]:
        """Solve with few edges until no other edge is worth its price."""
        columns: Indices | None = None
        for _ in range(ATTEMPTS):
            if len(edges) > MANY * self.size:
                break
            proven = None
            if columns is not None:
                # More edges: often the assignment still stands, and only the prices change.
                proven = self._dual_prices(edges, columns, prices, rounds=20)
            if proven is None:
                columns = self._solve_sparse(edges, prices)
                proven = self._dual_prices(edges, columns, prices, rounds=500)
            if proven is None or columns is None:
                break
            prices = proven
            missing = self._worth_more(columns, prices)
            if not len(missing):
                return columns, prices
            edges = _distinct(edges, missing)
        return _solve_dense(self.matrix - prices), prices

    def _chunks(self) -> list[Indices]:
        return chunks(np.arange(self.size), self.size)

    def _nearest(self, values: Values, prices: Values) -> Indices:
        """The edges of each row with about the best margins, and some that serve everybody."""
        # Every eighth column shows well enough where the best ones begin, at an eighth of the time.
        stride = 8
        found = [np.arange(self.size) * (self.size + 1), self._left_overs(prices)]
        for number, chunk in enumerate(self._chunks()):
            margins = values[chunk] - prices
            seen = np.ascontiguousarray(margins[:, number % stride :: stride])
            rank = max(seen.shape[1] - NEAREST // stride, 0)
            least = np.partition(seen, rank, axis=1)[:, rank : rank + 1]
            least[np.isin(chunk, self.dead)] = np.inf
            rows, columns = np.nonzero(margins >= least)
            found.append(self._edges(chunk[rows], columns))
        return _distinct(*found)

    def _left_overs(self, prices: Values) -> Indices:
        """Edges of the rows without preferences: to the cheapest columns, other ones for each."""
        cheapest = prices.argsort()
        ranks = np.arange(len(self.dead))[:, None] + np.arange(NEAREST)
        return self._edges(self.dead[:, None], cheapest[ranks % self.size]).flatten()

    def _edges(self, rows: Indices, columns: Indices) -> Indices:
        """Pairs as numbers, sorted by column."""
        return columns * self.size + rows

    def _solve_sparse(self, edges: Indices, prices: Values) -> Indices:
        """The best columns if the rows may have these edges only."""
        columns, rows = np.divmod(edges, self.size)
        margins = self.matrix[rows, columns] - prices[columns]
        best = np.full(self.size, -np.inf)
        np.maximum.at(best, rows, margins)
        # The solver takes a zero for no edge. Where rows compete for too few columns, it raises
        # prices by the smallest differences there are: with those of float64 it never ends.
        # What the rounding hides shows in the dual prices.
        weights = best[rows] - margins + self.spread
        weights = np.rint(weights * (LEVELS / weights.max())).clip(1)
        graph = csr_array((weights, (rows, columns)), shape=(self.size, self.size))
        chosen = min_weight_full_bipartite_matching(graph)[1]
        return chosen.astype(np.int64)

    def _dual_prices(
        self, edges: Indices, chosen: Indices, prices: Values, *, rounds: int
    ) -> Values | None:
        """The least prices above `prices` at which each row likes its chosen column best."""
        # They are longest paths (Bellman and Ford); there are none if the choice is not the best.
        columns, rows = np.divmod(edges, self.size)
        mine = chosen[rows]
        wish = self.matrix[rows, columns].astype(np.float64) - self.matrix[rows, mine]
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        wanted = columns[starts]
        prices = prices.copy()
        for _ in range(rounds):
            least = np.maximum.reduceat(prices[mine] + wish, starts)
            rises = least > prices[wanted] + self.rounding
            if not rises.any():
                return prices
            prices[wanted[rises]] = least[rises]
        return None

    def _worth_more(self, chosen: Indices, prices: Values) -> Indices:
        """Edges that some row prefers to its chosen column."""
        own = self.matrix[np.arange(self.size), chosen] - prices[chosen] + 4 * self.rounding
        found = [np.empty(0, dtype=np.int64)]
        for chunk in self._chunks():
            margins = self.matrix[chunk] - prices
            margins -= own[chunk, None]
            if margins.max() > 0:
                rows, columns = np.nonzero(margins > 0)
                if len(rows) > NEAREST * len(margins):
                    rows, columns = np.arange(len(chunk)), margins.argmax(1)
                found.append(self._edges(chunk[rows], columns))
        return np.concatenate(found)


def _distinct(*edges: Indices) -> Indices:
    """All edges in order, each one once; several times quicker than numpy's."""
    every = np.sort(np.concatenate(edges))
    return every[np.diff(every, prepend=-1) > 0]
