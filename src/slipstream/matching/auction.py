"""Prices of columns at which almost every row gets the column it likes best."""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]
Indices = NDArray[np.int64]

ROUNDS = 200  # of bids for one step, at most
CHUNK = 1 << 17  # values handled at once
LEFT_OVER = 0.1  # the share of rows that may stay without a column: they would bid for long


def auction(values: Values, prices: Values, *, step: float) -> Values:
    """Let rows bid for columns until almost all of them are served.

    Args:
        values: (rows, columns) what each column is worth to each row.
        prices: (columns,) where the bidding starts; those of a coarser step save time.
        step: Nobody bids less.

    Returns:
        (columns,) prices with which most rows can have a column that is within a step of what they
        like best.

    Source: "A distributed algorithm for the assignment problem" (Bertsekas, 1979).
    """
    prices = prices.astype(values.dtype)
    owner = np.full(len(prices), -1)  # of each column
    served = np.zeros(len(values), dtype=bool)  # each row
    for _ in range(ROUNDS):
        rows = np.flatnonzero(~served)
        if len(rows) <= LEFT_OVER * len(values):
            break
        bids = [_bids(values[part] - prices) for part in chunks(rows, len(prices))]
        wanted, raises = (np.concatenate(side) for side in zip(*bids, strict=True))
        _sell(rows, wanted, raises + step, prices, owner, served)
    return prices


def chunks(rows: Indices, columns: int) -> list[Indices]:
    """Return the rows in parts of so few values that they stay in the cache."""
    height = max(1, CHUNK // columns)
    return [rows[at : at + height] for at in range(0, len(rows), height)]


def _bids(margins: Values) -> tuple[Indices, Values]:
    """The column that each row wants, and how much more than any other; spoils `margins`."""
    every = np.arange(len(margins))
    wanted = margins.argmax(1)
    best = margins[every, wanted]
    margins[every, wanted] = -np.inf
    return wanted, best - margins.max(1)


def _sell(
    rows: Indices,
    wanted: Indices,
    bids: Values,
    prices: Values,
    owner: Indices,
    served: NDArray[np.bool_],
) -> None:
    """Give each wanted column to its highest bidder; updates prices, owner and served."""
    by_bid = bids.argsort(kind="stable")  # of several bidders the last one written is the highest
    winner = np.full_like(owner, -1)
    raised = np.zeros_like(prices)
    winner[wanted[by_bid]] = rows[by_bid]
    raised[wanted[by_bid]] = bids[by_bid]
    sold = np.flatnonzero(winner >= 0)
    before = owner[sold]
    served[before[before >= 0]] = False
    served[winner[sold]] = True
    prices += raised
    owner[sold] = winner[sold]
