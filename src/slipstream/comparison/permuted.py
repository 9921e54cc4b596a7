"""Whether two networks have the same neurons in another order, or with other signs: exactly.

A permutation keeps the values of every tensor, up to their order and signs. Nothing else does, so
that is looked at first. Then the order of rows and columns is read off tensor by tensor, and must
be the same wherever the same neurons are listed; with the neuron groups of the model it is proven.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slipstream.comparison.layers import Facts
from slipstream.comparison.pair import Pair, Verdict
from slipstream.matching import match_weights
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.weights import is_continuous

_CLOSE = 1e-9  # of sums of squares in float64, in another order
_PROVABLE = 1 << 31  # bytes of weights that are matched in memory
Groups = Callable[[], NeuronGroups | None]


@dataclass(frozen=True)
class Reordered:
    """How the rows and the columns of one tensor became those of another."""

    orders: tuple[Tensor, ...]  # per axis, of the first two: position i holds what was at order[i]
    signed: bool  # whether some changed their sign

    def axes(self) -> dict[int, Tensor]:
        """Return the axes that moved."""
        return {
            axis: order
            for axis, order in enumerate(self.orders)
            if not torch.equal(order, torch.arange(len(order)))
        }


def permuted(pair: Pair, groups: Groups) -> Verdict | None:
    """Return whether the neurons of one are those of the other, in another order.

    Args:
        pair: Two checkpoints.
        groups: Finds the neuron groups of their model, if it is known.

    Returns:
        The verdict, `proven` if a permutation of the neuron groups makes the one of the other to
        the bit; None if the values differ.
    """
    if not pair.changed or not pair.names.same or not all(map(_same_squares, pair.learned)):
        return None
    moved: dict[str, Reordered] = {}
    for own, other in pair.names.pairs:
        first, second = pair.first.read(own), pair.second.read(other)
        if not is_continuous(first) or torch.equal(first, second):
            continue
        if not _same_values(first, second):
            return None
        if (found := _reordered(first, second)) is not None:
            moved[other] = found
    text = "every tensor holds the same values in another order"
    if any(found.signed for found in moved.values()):
        text += ", some with another sign"
    if proof := _proven(pair, groups):
        return Verdict("permuted", "proven", None, (text, proof))
    return _consistent(pair, moved, text)


def _same_squares(fact: Facts) -> bool:
    first, second = fact.squares
    return abs(first - second) <= _CLOSE * max(first, second)


def _same_values(first: Tensor, second: Tensor) -> bool:
    a, b = (value.abs().reshape(-1).sort().values for value in (first, second))
    return torch.equal(a.to(b), b)


def _reordered(first: Tensor, second: Tensor) -> Reordered | None:
    """Read off the order of the rows and of the columns; None if these alone do not explain it."""
    a, b = (value.unsqueeze(1) if value.dim() == 1 else value for value in (first, second))
    rows, columns = _order(a, b), _order(a.transpose(0, 1), b.transpose(0, 1))
    if rows is None or columns is None:
        return None
    moved = a[rows][:, columns]
    if not torch.equal(moved.abs(), b.abs()):
        return None
    orders = (rows,) if first.dim() == 1 else (rows, columns)
    return Reordered(orders, not torch.equal(moved, b))


def _order(first: Tensor, second: Tensor) -> Tensor | None:
    """Which row of the first each row of the second is, by its magnitudes in whatever order."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for row in range(len(first) - 1, -1, -1):
        places[_signature(first[row])].append(row)
    order = []
    for row in second:
        if not (left := places.get(_signature(row))):
            return None
        order.append(left.pop())
    return torch.tensor(order)


def _signature(row: Tensor) -> bytes:
    return row.abs().reshape(-1).sort().values.double().numpy().tobytes()


def _proven(pair: Pair, groups: Groups) -> str | None:
    """Match the neuron groups, if there are any, and look whether nothing is left."""
    if sum(form.bytes for form in pair.first.forms.values()) > _PROVABLE:
        return None
    found = groups()
    if found is None:
        return None
    source = {b: pair.first.read(a) for a, b in pair.names.pairs}
    target = {b: pair.second.read(b) for _, b in pair.names.pairs}
    if any(block.tensor not in source for block in found.blocks):
        return None
    attempts: tuple[dict[str, Any], ...] = ({}, {"start": "frank-wolfe"}, {"restarts": 5})
    for how in attempts:  # the search may end in a local optimum
        matched = match_weights(source, target, groups=found, **how)
        moved = matched.source_to_target.apply(source)
        if all(torch.equal(moved[name], value) for name, value in target.items()):
            share = matched.source_to_target.moved()
            return f"a permutation of its neuron groups that moves {share:.0%} makes it equal"
    return None


def _consistent(pair: Pair, moved: Mapping[str, Reordered], text: str) -> Verdict:
    """Whether each order stands on at least two axes, as that of hidden neurons must."""
    counted: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, found in moved.items():
        for axis, order in found.axes().items():
            counted[tuple(_without_positions(order))].append(f"{name}:{axis}")
    unexplained = len(pair.changed) - len(moved)
    if not unexplained and all(len(places) > 1 for places in counted.values()):
        listed = "; ".join(" and ".join(places[:3]) for places in list(counted.values())[:3])
        why = f"{len(counted)} orders, each wherever its neurons are listed: {listed}"
        if not counted:
            why = "the signs of some neurons differ"
        return Verdict("permuted", "sure", None, (text, why))
    why = "the order of some axes could not be read off, or stands on one axis only: name the model"
    # Where axes are fused, as those of queries, keys and values, not all orders do; most must.
    shared = sum(len(places) for places in counted.values() if len(places) > 1)
    if 2 * shared > sum(map(len, counted.values())):
        return Verdict("permuted", "likely", None, (text, why))
    return Verdict("cannot tell", "open", None, (text, why))


def _without_positions(order: Tensor) -> list[int]:
    """The order of channels, where each stands for a run of positions (a flattened map)."""
    size = len(order)
    for run in (n for n in range(size, 1, -1) if size % n == 0 and n < size):
        blocks = order.view(-1, run)
        if (
            torch.equal(blocks, blocks[:, :1] + torch.arange(run))
            and not (blocks[:, 0] % run).any()
        ):
            return [int(i) // run for i in blocks[:, 0]]
    return order.tolist()
