"""What is known of two checkpoints from where they are stored, and proven by their values."""

import re

import torch

from slipstream.comparison.chance import CHANCE
from slipstream.comparison.opening import Opened, snapshot_like
from slipstream.comparison.pair import Pair, Verdict


def by_provenance(pair: Pair) -> Verdict | None:
    """Return what runs and adapters tell of a pair, None if they tell nothing.

    Args:
        pair: Two checkpoints that are not the same.

    Returns:
        Snapshots of one run, fine-tunes or siblings.
    """
    return _of_adapters(pair) or _of_one_run(pair) or _start_of_a_run(pair) or _same_start(pair)


def _of_adapters(pair: Pair) -> Verdict | None:
    for side, other in (pair.sides, pair.sides[::-1]):
        if side.kind == "adapter" and side.base in (other.name, str(other.stored.path)):
            rank = max((side.ranks or {"": 0}).values(), default=0)
            text = f"{side.name} is a LoRA adapter of rank {rank}, merged into {other.name}"
            return Verdict("fine-tune", "proven", other.name, (text,))
    first, second = pair.sides
    if first.kind == second.kind == "adapter" and first.base == second.base:
        return Verdict("siblings", "proven", None, (f"both are LoRA adapters of {first.base}",))
    return None


def _of_one_run(pair: Pair) -> Verdict | None:
    first, second = pair.sides
    if first.home is None or first.home != second.home or None in (first.step, second.step):
        return None
    if first.step == second.step:
        return None
    earlier, later = sorted(pair.sides, key=lambda side: side.step or 0)
    text = f"steps {earlier.step} and {later.step} of {first.home.name}"
    if first.kind == second.kind == "run":
        return Verdict("snapshots of one run", "proven", earlier.name, (text,))
    if _stem(first) != _stem(second) or not _alike(pair):
        return None
    text = f"by their names {text}; the weights have a common history"
    return Verdict("snapshots of one run", "likely", earlier.name, (text,))


def _stem(side: Opened) -> str:
    """The name of a file without the numbers in it."""
    return re.sub(r"\d+", "0", side.stored.path.name)


def _alike(pair: Pair) -> bool:
    found = [f.surprise.deviations for f in pair.learned if f.surprise is not None]
    return bool(found) and sum(found) / len(found) ** 0.5 > CHANCE


def _start_of_a_run(pair: Pair) -> Verdict | None:
    """One is a snapshot of the other's run."""
    names = dict(pair.names.pairs)
    for names_of, (side, other) in (
        (names, pair.sides),
        ({b: a for a, b in names.items()}, pair.sides[::-1]),
    ):
        if side.run is None or len(side.run) < 2:
            continue
        step = snapshot_like(side.run, other, names_of)
        if step is None:
            continue
        if step == side.run.steps[0]:
            text = f"the run {side.name} starts at {other.name}"
            return Verdict("fine-tune", "proven", other.name, (text,))
        earlier = other.name if step < (side.step or 0) else side.name
        text = f"{other.name} is the snapshot of step {step} of {side.name}"
        return Verdict("snapshots of one run", "proven", earlier, (text,))
    return None


def _same_start(pair: Pair) -> Verdict | None:
    """Both are of runs that start at the same weights."""
    first, second = pair.sides
    if first.run is None or second.run is None or first.home == second.home:
        return None
    starts = first.run[0], second.run[0]
    if not all(torch.equal(starts[0][a], starts[1][b]) for a, b in pair.names.pairs):
        return None
    return Verdict("siblings", "proven", None, ("both runs start at the same weights",))
