"""Several checkpoints as a tree: who is nearest to whom, and where it starts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from slipstream.comparison.pair import PairComparison

UNRELATED = ("independent", "different architectures", "cannot tell")
_SAME = ("identical", "re-saved")


@dataclass(frozen=True)
class _Node:
    """A checkpoint in the tree."""

    name: str
    remark: str
    children: tuple["_Node", ...] = ()

    def lines(self, before: str = "") -> Iterator[str]:
        yield f"{self.name}{self.remark}"
        for n, child in enumerate(self.children):
            last = n == len(self.children) - 1
            first, rest = ("└── ", "    ") if last else ("├── ", "│   ")
            for number, line in enumerate(child.lines()):
                yield (first if number == 0 else rest) + line


def placed(pairs: Sequence[PairComparison]) -> list[PairComparison]:
    """Use each pair to settle the others: what two have in common with a third.

    Where a third came before both, and each is nearer to it than they are to each other, they are
    siblings; also where each was made of it in one operation. What was made of the fine-tune of a
    third is that of the third. Where one is a permutation of a third, it has to others the relation
    of the third.

    Args:
        pairs: All pairs of some checkpoints.

    Returns:
        The same pairs, some with a better verdict.
    """
    settled = {frozenset((pair.first, pair.second)): pair for pair in pairs}
    names = list(dict.fromkeys(name for p in pairs for name in (p.first, p.second)))
    aligned = {k: p for k, p in settled.items() if p.relation not in (*UNRELATED, "permuted")}
    frames = {name: frozenset(_family(name, aligned)) for name in names}
    reordered = [p for p in pairs if p.relation == "permuted"]
    found = []
    for pair in pairs:
        thirds = [name for name in names if name not in (pair.first, pair.second)]
        pair = _reordered(pair, reordered, frames, settled)
        found.append(_through(_siblings(pair, thirds, settled), thirds, settled))
    return found


def _reordered(
    pair: PairComparison,
    reordered: Sequence[PairComparison],
    frames: Mapping[str, frozenset[str]],
    settled: Mapping[frozenset[str], PairComparison],
) -> PairComparison:
    """What looks independent because its neurons are in another order."""
    if pair.relation not in ("independent", "cannot tell"):
        return pair
    for moved in reordered:
        ends = [(moved.first, moved.second), (moved.second, moved.first)]
        for here, there in ends:
            if here in frames[pair.first] and there in frames[pair.second]:
                steps = [(pair.first, here), (there, pair.second)]
                same = all(a == b or settled[frozenset((a, b))].relation in _SAME for a, b in steps)
                return replace(
                    pair,
                    relation="permuted" if same else "fine-tune or siblings",
                    certainty="sure",
                    evidence=(
                        f"{moved.first} is {moved.second} with permuted neurons; {pair.first} has "
                        f"the order of {here}, {pair.second} that of {there}",
                    ),
                    advice="port with matching: the neurons are in another order.",
                )
    return pair


def _siblings(
    pair: PairComparison, thirds: Sequence[str], settled: Mapping[frozenset[str], PairComparison]
) -> PairComparison:
    """What came after a third, which both are nearer to than to each other."""
    if pair.relation != "fine-tune or siblings":
        return pair
    for third in thirds:
        sides = [settled[frozenset((third, name))] for name in (pair.first, pair.second)]
        if not all(side.parent == third for side in sides):
            continue
        at_once = all(_at_once(side) for side in sides)
        if at_once or all(_is_nearer(side, pair) for side in sides):
            text = f"both came after {third}, and are nearer to it than to each other, everywhere"
            if at_once:
                text = f"both were made of {third}, each by one operation"
            return replace(
                pair,
                relation="siblings",
                certainty="sure" if at_once else "likely",
                parent=None,
                evidence=(*pair.evidence, text),
            )
    return pair


def _at_once(pair: PairComparison) -> bool:
    """Whether one was made of the other without training: rounded, cut, a product added."""
    made = pair.relation in ("quantised", "pruned") and pair.certainty == "proven"
    return made or (pair.relation == "fine-tune" and pair.certainty in ("sure", "proven"))


def _through(
    pair: PairComparison, thirds: Sequence[str], settled: Mapping[frozenset[str], PairComparison]
) -> PairComparison:
    """What was made of a third that was made of the first is of the first."""
    if pair.relation != "fine-tune or siblings":
        return pair
    for old, new in ((pair.first, pair.second), (pair.second, pair.first)):
        for third in thirds:
            steps = settled[frozenset((old, third))], settled[frozenset((third, new))]
            known = [
                step.parent == p and _at_once(step)
                for step, p in zip(steps, (old, third), strict=True)
            ]
            tuned = [step.relation == "fine-tune" for step in steps]
            if all(known) and any(tuned):
                text = f"{third} was made of {old}, and {new} of {third}"
                return replace(
                    pair,
                    relation="fine-tune",
                    certainty="sure",
                    parent=old,
                    evidence=(*pair.evidence, text),
                )
    return pair


def _is_nearer(side: PairComparison, pair: PairComparison) -> bool:
    """Whether one pair is closer together than another in every matrix that differs."""
    apart = {layer.name: layer.distance for layer in side.layers}
    matrices = {layer.name: layer.distance for layer in pair.layers if len(layer.shape) > 1}
    return any(matrices.values()) and all(
        apart.get(name, math.inf) < distance or apart.get(name) == distance == 0
        for name, distance in matrices.items()
    )


def tree_of(names: Sequence[str], pairs: Sequence[PairComparison]) -> str:
    """Return a drawing: a tree for each family, the nearest ones joined.

    Args:
        names: All checkpoints, in order.
        pairs: All pairs.

    Returns:
        Some lines.
    """
    near = {frozenset((p.first, p.second)): p for p in pairs if p.relation not in UNRELATED}
    left = list(names)
    lines: list[str] = []
    while left:
        family = _family(left[0], near)
        left = [name for name in left if name not in family]
        root, known = _root([n for n in names if n in family], near)
        remark = "" if known or len(family) == 1 else "  (which one came first is not known)"
        lines += _node(root, remark, _joined(root, family, near), near).lines()
    return "\n".join(lines)


def _family(first: str, near: Mapping[frozenset[str], PairComparison]) -> set[str]:
    family, added = {first}, True
    while added:
        joined = {name for key in near if key & family for name in key} - family
        added = bool(joined)
        family |= joined
    return family


def _root(family: Sequence[str], near: Mapping[frozenset[str], PairComparison]) -> tuple[str, bool]:
    """Where a family starts: the one that came before all, else the one in the middle."""
    later = {
        name
        for pair in near.values()
        if pair.parent is not None
        for name in (pair.first, pair.second)
        if name != pair.parent
    }
    first = [name for name in family if name not in later]
    inside = [pair for key, pair in near.items() if key <= set(family)]

    def spread(name: str) -> float:
        total = sum(p.relative_distance for p in inside if name in (p.first, p.second))
        return float(f"{total:.1g}")  # of equals, the first that was given

    root = min(first or family, key=spread)
    told = {p.parent for p in inside}
    return root, root in told and len(first) == 1


def _joined(
    root: str, family: set[str], near: Mapping[frozenset[str], PairComparison]
) -> dict[str, list[str]]:
    """Parent to children: each is joined to the nearest one that is in the tree already."""
    children: dict[str, list[str]] = {root: []}
    copies: set[str] = set()  # what was made of an original is not drawn below its copy
    while len(children) < len(family):
        left = family - set(children)
        reach = [
            (_waits(name, left, near), known in copies, _length(near[key], known), known, name)
            for known in children
            for name in sorted(left)
            if (key := frozenset((known, name))) in near
        ]
        *_, known, name = min(reach)
        children[known].append(name)
        if near[frozenset((known, name))].relation in _SAME:
            copies.add(name)
        children[name] = []
    return children


def _waits(name: str, left: set[str], near: Mapping[frozenset[str], PairComparison]) -> bool:
    """Whether what a checkpoint was made of is not in the tree yet."""
    pairs = (near.get(frozenset((name, other))) for other in left if other != name)
    return any(p.certainty == "proven" and p.parent not in (None, name) for p in pairs if p)


def _length(pair: PairComparison, parent: str) -> tuple[int, float]:
    """What is proven joins first, then what is near."""
    told = pair.certainty == "proven" and (pair.relation in _SAME or pair.parent == parent)
    return (0 if told else 1, pair.relative_distance)


def _node(
    name: str,
    remark: str,
    children: Mapping[str, Sequence[str]],
    near: Mapping[frozenset[str], PairComparison],
) -> _Node:
    below = []
    for child in children[name]:
        pair = near[frozenset((name, child))]
        told = f"  {pair.relation}, {pair.relative_distance:.2g} away"
        below.append(_node(child, told, children, near))
    return _Node(name, remark, tuple(below))
