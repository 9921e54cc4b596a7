"""From what the tensors of two checkpoints show to what the two are to each other."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from slipstream.comparison.chance import CHANCE, Surprise
from slipstream.comparison.direction import made_of
from slipstream.comparison.pair import Pair, Relation, Verdict
from slipstream.comparison.provenance import by_provenance

_HALF = 0.5  # of the parameters: below, two checkpoints are not of one architecture
_FEW_ZEROS = 0.01  # a share of new zeros that no training leaves by chance
_MANY = 100  # values, of which the largest shows between which bounds they were drawn
_POWER = 12.0  # deviations that a pair must be able to reach, for none to mean something


def judge(pair: Pair, permuted: Callable[[Pair], Verdict | None]) -> Verdict:
    """Return what two checkpoints are to each other.

    Args:
        pair: Both, measured.
        permuted: Tells whether the neurons of one are those of the other in another order.

    Returns:
        The first verdict that holds, the surest first.
    """
    if not pair.learned or pair.names.share < _HALF:
        return Verdict("different architectures", "proven", None, pair.names.differences)
    for rule in (_equal, _cast, by_provenance, _made_of):
        if found := rule(pair):
            return found
    return permuted(pair) or _by_chance(pair)


def _equal(pair: Pair) -> Verdict | None:
    if not all(fact.layer.frozen for fact in pair.facts):
        return None
    if pair.names.differences:
        return Verdict(
            "fine-tune or siblings",
            "sure",
            None,
            ("all tensors that both have are equal", *pair.names.differences),
        )
    how = [*pair.names.notes]
    if other := [fact for fact in pair.facts if not fact.same_type]:
        how.append(f"{other[0].layer.name} and {len(other) - 1} more are stored in another type")
    files = [set(side.stored.files) for side in pair.sides]
    if all(files) and [len(f) for f in files] != [len(files[0])] * 2:
        how.append(f"{len(files[0])} and {len(files[1])} files")
    relation: Relation = "re-saved" if how else "identical"
    return Verdict(relation, "proven", None, ("all values are equal", *how))


def _cast(pair: Pair) -> Verdict | None:
    """One is the other in a narrower type, or both are one in two types."""
    changed = [fact for fact in pair.facts if not fact.layer.frozen]
    if pair.names.differences or not changed or any(fact.counters for fact in changed):
        return None
    for n in (0, 1):
        types = {fact.casts[n] for fact in changed}
        if None not in types:
            made = ", ".join(sorted(str(t).removeprefix("torch.") for t in types))
            text = f"{pair.sides[1 - n].name} is {pair.sides[n].name} rounded to {made}"
            return Verdict("re-saved", "proven", pair.sides[n].name, (text, *pair.names.notes))
    if all(fact.rounding or None not in fact.casts for fact in changed):
        text = "the values differ by rounding to two types, of a common original"
        return Verdict("re-saved", "sure", None, (text, *pair.names.notes))
    return None


def _made_of(pair: Pair) -> Verdict | None:
    """One is the other with few levels, or with zeros."""
    if pair.names.differences:  # what they share may be of a third
        return None
    for n, (parent, made) in enumerate((pair.sides, pair.sides[::-1])):
        left = any(fact.squares[1 - n] for fact in pair.changed if len(fact.layer.shape) > 1)
        pruned = left and all(fact.pruned[n] for fact in pair.changed)
        if pruned and any(fact.new_zeros[n] for fact in pair.changed):
            share = _share_of_zeros(pair, n)
            text = f"{made.name} is {parent.name} with {share:.1%} of its weights set to zero"
            return Verdict("pruned", "proven", parent.name, (text,))
        levels = [
            fact
            for fact in pair.changed
            if fact.quantised[n] and not fact.quantised[1 - n] and len(fact.layer.shape) > 1
        ]
        others = [f for f in pair.changed if not f.quantised[n] and f.casts[n] is None]
        if levels and not others:
            text = (
                f"each value of {levels[0].layer.name} and {len(levels) - 1} other tensors of "
                f"{parent.name} is rounded to the nearest of at most 256 levels"
            )
            return Verdict("quantised", "proven", parent.name, (text,))
    return None


def _share_of_zeros(pair: Pair, side: int) -> float:
    values = sum(fact.values for fact in pair.learned) or 1
    return sum(fact.new_zeros[side] * fact.values for fact in pair.changed) / values


def _by_chance(pair: Pair) -> Verdict:
    """Whether two have more in common than unrelated networks."""
    tested = [f for f in pair.learned if f.surprise is not None]
    if len(tested) < 2:
        return _too_little(pair, "it has fewer than two matrices of at least 8 neurons each way")
    found = [f.surprise for f in tested if f.surprise is not None]
    total = math.fsum(one.deviations for one in found) / math.sqrt(len(found))
    power = math.fsum(one.highest for one in found) / math.sqrt(len(found))
    above = [f for f in tested if f.surprise is not None and f.surprise.deviations > CHANCE]
    share = sum(f.values for f in above) / sum(f.values for f in tested)
    figures = (
        f"the inner product is {total:.1f} standard deviations above that of unrelated networks "
        f"({power:.0f} if they were equal); {len(above)} of {len(tested)} matrices are above "
        f"{CHANCE:.0f} by themselves, with {share:.0%} of the weights"
    )
    if total > CHANCE and share > _HALF:
        unlike = [f.layer.name for f in tested if f.surprise is not None and _nothing(f.surprise)]
        return replace(_related(pair, figures), apart=tuple(unlike))
    if power < _POWER:
        return _too_little(pair, figures)
    if not above and abs(total) < CHANCE - 1:
        return Verdict("independent", "sure", None, (figures,))
    if above and share < 0.1:
        alike = f"only {above[0].layer.name} has something in common"
        return Verdict("independent", "likely", None, (figures, alike))
    return Verdict("cannot tell", "open", None, (figures,))


def _nothing(found: Surprise) -> bool:
    """Whether two matrices have nothing in common, and it would show."""
    return found.deviations < CHANCE / 2 and found.highest > _POWER


def _too_little(pair: Pair, why: str) -> Verdict:
    """Equal tensors still tell."""
    frozen = [f for f in pair.learned if f.layer.frozen and f.values > 1 and not all(f.constant)]
    if frozen:
        text = f"{frozen[0].layer.name} and {len(frozen) - 1} more tensors are equal"
        return _related(pair, text)
    return Verdict("cannot tell", "open", None, (why,))


def _related(pair: Pair, figures: str) -> Verdict:
    """Two that share a history: which of them came first?"""
    evidence = [figures, *_traits(pair)]
    changed = [fact.errors for fact in pair.changed]
    if not pair.names.differences and (side := made_of(changed)) is not None:
        parent, made = pair.sides[side].name, pair.sides[1 - side].name
        text = f"{made} is {parent} with products of these ranks added, and rounded once"
        return Verdict("fine-tune", "sure", parent, (*evidence, text))
    if start := _initial(pair):
        text = f"{start} is as it was initialised, or nearly: the other one is not"
        return Verdict("fine-tune", "likely", start, (*evidence, text))
    counted = [fact.counters for fact in pair.facts if fact.counters is not None]
    earlier, text = _earlier(pair, counted)
    return Verdict("fine-tune or siblings", "sure", earlier, (*evidence, *([text] if text else [])))


def _traits(pair: Pair) -> Iterator[str]:
    """What is special about a difference."""
    frozen = [f.layer.name for f in pair.learned if f.layer.frozen]
    if frozen:
        values = sum(f.values for f in pair.learned if f.layer.frozen)
        share = values / (sum(f.values for f in pair.learned) or 1)
        yield f"{len(frozen)} tensors with {share:.0%} of the weights are equal (frozen)"
    matrices = [f.layer for f in pair.changed if f.layer.full_rank]
    ranks = [layer.rank or 0 for layer in matrices]
    if matrices and all(4 * (layer.rank or 0) <= (layer.full_rank or 0) for layer in matrices):
        yield (
            f"the difference of all {len(matrices)} changed matrices has a rank of at most "
            f"{max(ranks)}: a merged LoRA, or few steps of SGD"
        )


def _initial(pair: Pair) -> str | None:
    """Which of the two is as it was initialised, if one is."""
    vectors = [f for f in pair.changed if len(f.layer.shape) == 1 and f.values > 1]
    fresh = [f.fresh for f in pair.changed if f.fresh is not None and f.values >= _MANY]
    for n in (0, 1):
        drawn = len(fresh) > 1 and all(one[n] for one in fresh)
        constant = len(vectors) > 1 and all(f.constant[n] for f in vectors)
        if drawn and not all(one[1 - n] for one in fresh):
            return pair.sides[n].name
        if constant and not any(f.constant[1 - n] for f in vectors):
            return pair.sides[n].name
    return None


def _earlier(pair: Pair, counted: Sequence[tuple[int, int]]) -> tuple[str | None, str]:
    """The one that came first, if the numbers tell."""
    for n, side in enumerate(pair.sides):
        if counted and all(c[n] < c[1 - n] for c in counted):
            few, many = counted[0][n], counted[0][1 - n]
            return side.name, f"BatchNorm counted {few} batches in {side.name}, {many} in the other"
    for n, side in enumerate(pair.sides):
        if _share_of_zeros(pair, n) > _FEW_ZEROS and not _share_of_zeros(pair, 1 - n):
            return side.name, f"{_share_of_zeros(pair, n):.1%} of the weights are zero in the other"
    factors = [fact.factor for fact in pair.changed if fact.factor is not None]
    for n, side in enumerate(pair.sides):
        if factors and all((factor < 1) == (n == 0) for factor in factors):
            small = min(factors[0], 1 / factors[0])
            text = f"parts of {side.name} are in the other, multiplied by {small:.6g}: weight decay"
            return side.name, text
    frozen = [f for f in pair.learned if f.layer.frozen and f.values > 1 and not all(f.constant)]
    kept = {f.narrow[0] for f in frozen}
    if not frozen or None in kept:
        return None, ""
    for n, side in enumerate(pair.sides):
        narrow = [f.narrow[n] for f in pair.changed]
        wide = [f.narrow[1 - n] for f in pair.changed if f.values > 1]
        if None not in narrow and not any(wide):
            return side.name, f"all of {side.name} and what is frozen fits into {next(iter(kept))}"
    return None, ""
