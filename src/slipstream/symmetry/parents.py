"""Which order may depend on the position of which other atom.

Dividing an axis into groups proposes that the order inside a group is free for every group. The
proposal holds if every tensor that lists the inner atom says, at every entry, in which group that
position is; and if no operator sums, or compares, over groups whose orders differ.
"""

from collections.abc import Iterable, Sequence

from slipstream.symmetry.atoms import Atom, Axis, Layout, Product, resolve

Parents = dict[Atom, list[Atom]]
Independence = tuple[Axis, Axis]  # no order on the first axis depends on a position on the second


def settle(layouts: Iterable[Layout], independences: Iterable[Independence]) -> Parents:
    """Return for every moving atom the atoms on whose positions its order may depend.

    Args:
        layouts: The axes of every tensor and every value of the graph.
        independences: What the operators demand besides.

    Returns:
        Parents by atom, in order of first appearance; a parent's parents are parents too.
    """
    resolved = _resolve_all(list(layouts))
    parents: Parents = {atom: [] for layout in resolved for atom in _moving(*layout)}
    for atom in parents:
        proposed = dict.fromkeys(p for parent in atom.parents for p in _stands_for(parent))
        parents[atom] = [p for p in proposed if p in parents and p is not atom]
    for axis, other in independences:
        outer = set(_moving(resolve(other)))
        for atom in _moving(resolve(axis)):
            parents[atom] = [p for p in parents.get(atom, []) if p not in outer]
    for layout in resolved:
        _keep_visible(layout, parents)
    while any(_drop_broken_chain(atom, parents) for atom in parents):
        pass
    return parents


def _resolve_all(layouts: Sequence[Layout]) -> list[Layout]:
    """Resolve until resolving pins nothing more."""
    before = -1
    while True:
        resolved = [tuple(resolve(axis) for axis in layout) for layout in layouts]
        moving = sum(len(_moving(*layout)) for layout in resolved)
        if moving == before:
            return resolved
        before = moving


def _moving(*axes: Axis) -> list[Atom]:
    return [a for axis in axes for product in axis for a in product if a.cause is None]


def _stands_for(parent: Atom) -> list[Atom]:
    """The factors that a proposed parent became; a concatenation cannot be a parent."""
    axis = resolve(((parent,),))
    return _moving(axis) if len(axis) == 1 else []


def _keep_visible(layout: Layout, parents: Parents) -> None:
    """Drop the parents whose position cannot be read off the layout wherever the atom is listed."""
    for number, axis in enumerate(layout):
        others = [other for n, other in enumerate(layout) if n != number]
        for product in axis:
            for atom in _moving((product,)):
                parents[atom] = [p for p in parents[atom] if _is_visible(p, product, others)]


def _is_visible(parent: Atom, product: Product, others: list[Axis]) -> bool:
    if parent in product:
        return product.count(parent) == 1
    listing = [axis for axis in others if parent in _moving(axis)]
    return len(listing) == 1 and len(listing[0]) == 1 and listing[0][0].count(parent) == 1


def _drop_broken_chain(atom: Atom, parents: Parents) -> bool:
    """Drop a parent that is the atom's own child or has a parent that the atom lacks."""
    for parent in parents[atom]:
        if any(p is atom or p not in parents[atom] for p in parents[parent]):
            parents[atom].remove(parent)
            return True
    return False
