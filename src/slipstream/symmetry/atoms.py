"""Axes as sums of products of atoms: what operators tie together, regroup and pin.

An axis is a concatenation of runs; a run is a product of atoms, the last one fastest. A flattened
feature map is `((channels, positions),)`, a concatenation of two branches `((left,), (right,))`.
An atom is a set of positions that can be permuted until something pins it. What
an operator teaches about an atom (it is another atom, a product, a sum) is written into the atom,
so every axis that holds it learns the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cause:
    """Why an atom cannot move."""

    operator: str
    where: str
    reason: str


POSITIONS = Cause("", "", "positions of a kernel")  # not worth a report
NESTED = Cause("cat", "", "a concatenation inside every part of a moving axis")
LONGEST = 4096  # runs into which an axis of fixed positions is unrolled at most


@dataclass(eq=False)
class Atom:
    """Positions that belong together: `size` of them."""

    size: int
    cause: Cause | None = None  # why it cannot move
    parents: list["Atom"] = field(default_factory=list)  # on which its order might depend
    becomes: "Axis | None" = None  # what it was found to be
    uniform: bool = False  # everything is equal along it, so that no two uses of it need agree


Product = tuple[Atom, ...]
Axis = tuple[Product, ...]
Layout = tuple[Axis, ...]


def free(size: int) -> Axis:
    """Return a new axis whose positions may move in any way."""
    return _axis(size, None, [])


def fixed(size: int, cause: Cause = POSITIONS) -> Axis:
    """Return a new axis whose positions stay."""
    return _axis(size, cause, [])


def uniform(size: int) -> Axis:
    """Return a new axis along which all positions are equal: zeros, or one position repeated."""
    return _axis(size, None, [], uniform=True)


def propose(parent: Axis, axes: Layout) -> None:
    """Note that the orders on new `axes` might depend on the position on `parent`."""
    outer = [atom for product in parent for atom in product]
    for axis in axes:
        for product in axis:
            for atom in product:
                atom.parents += outer


def renewed(layout: Layout) -> Layout:
    """Return `layout` for one use of it: its uniform atoms are new, so no uses are tied."""
    new: dict[Atom, Atom] = {}

    def renew(atom: Atom) -> Atom:
        if not atom.uniform or atom.cause is not None:
            return atom
        return new.setdefault(atom, Atom(atom.size, uniform=True))

    return tuple(
        tuple(tuple(renew(atom) for atom in product) for product in resolve(axis))
        for axis in layout
    )


def differ(layout: Layout) -> None:
    """Take back that positions along uniform atoms of `layout` are equal: they are written to."""
    for axis in layout:
        for product in resolve(axis):
            for atom in product:
                atom.uniform = False


def length(axis: Axis) -> int:
    """Return the number of positions of `axis`."""
    return sum(math.prod(atom.size for atom in product) for product in axis)


def is_fixed(axis: Axis) -> bool:
    """Return whether no atom of the resolved `axis` can move."""
    return all(atom.cause is not None for product in axis for atom in product)


def resolve(axis: Axis) -> Axis:
    """Return `axis` in terms of what its atoms have become; fixed neighbours are joined."""
    joined: list[Product] = []
    for product in (term for run in axis for term in _expand(run)):
        if joined and is_fixed((product,)) and is_fixed((joined[-1],)):
            both = (joined.pop(), product)
            joined.append(fixed(length(both), _cause_of(both))[0])
        else:
            joined.append(product)
    return tuple(joined)


def pin(axis: Axis, cause: Cause) -> None:
    """Fix every position of `axis`; what was fixed before keeps its cause."""
    for product in resolve(axis):
        for atom in product:
            atom.cause = atom.cause or cause


def tie(first: Axis, second: Axis, cause: Cause) -> None:
    """Let two axes of equal length list the same positions.

    Args:
        first: An axis.
        second: An axis of the same length.
        cause: Recorded where their structures cannot be brought together.

    Raises:
        ValueError: If the lengths differ.
    """
    if length(first) != length(second):
        raise ValueError(f"Axes of {length(first)} and {length(second)} positions cannot be tied.")
    first, second = resolve(first), resolve(second)
    if len(first) == len(second) == 1:
        _tie_products(first[0], second[0], cause)
        return
    while first:
        size = min(length(first[:1]), length(second[:1]))
        (head, first), (other, second) = cut(first, size, cause), cut(second, size, cause)
        tie(head, other, cause)


def cut(axis: Axis, at: int, cause: Cause) -> tuple[Axis, Axis]:
    """Cut `axis` before position `at`, and every axis that holds the same atom with it.

    Args:
        axis: An axis.
        at: Number of positions on the left side.
        cause: Recorded where the cut goes through the inside of a product.

    Returns:
        The two sides.
    """
    left: Axis = ()
    right = resolve(axis)
    while right and at >= length(right[:1]):
        at -= length(right[:1])
        left, right = left + right[:1], right[1:]
    if at == 0:
        return left, right
    (product, *_), rest = right, right[1:]
    if is_fixed((product,)):
        why = _cause_of((product,))
        return left + fixed(at, why), fixed(length((product,)) - at, why) + rest
    head, inner = product[0], product[1:]
    if at % length((inner,)) == 0:
        near, far = _divide_into_sum(head, at // length((inner,)))
        return (*left, (*near, *inner)), ((*far, *inner), *rest)
    if head.cause is not None and head.size <= LONGEST:
        near_side, far_side = cut((inner,) * head.size, at, cause)
    else:
        pin((product,), cause)
        near_side, far_side = cut((product,), at, cause)
    return left + near_side, far_side + rest


def merge(axes: Sequence[Axis]) -> Axis:
    """Return the product of `axes`, the last one fastest, as one axis."""
    terms: Axis = ((),)
    for axis in axes:
        terms = _times(terms, resolve(axis))
    return terms


def divide(axis: Axis, inner: int, cause: Cause) -> tuple[Axis, Axis]:
    """Write `axis` as a product of two axes, of which the faster has `inner` positions.

    Args:
        axis: An axis whose length `inner` divides.
        inner: Positions of the faster axis.
        cause: Recorded where the structure of `axis` does not allow it.

    Returns:
        The slower and the faster axis.
    """
    axis = resolve(axis)
    size = length(axis)
    if inner == 1:
        return axis, ((),)
    if inner == size:
        return ((),), axis
    for product in axis:
        _divide_product(resolve((product,))[0], inner)
    # One atom can be in several products: each is read again now that every atom is divided.
    pairs = [_divide_product(product, inner) for product in resolve(axis)]
    if any(length((fast,)) != inner for _, fast in pairs):
        pin(axis, cause)
        why = _cause_of(resolve(axis))
        return fixed(size // inner, why), fixed(inner, why)
    for _, fast in pairs[1:]:
        tie((pairs[0][1],), (fast,), cause)
    return tuple(slow for slow, _ in pairs), (pairs[0][1],)


def regroup(layout: Layout, shape: Sequence[int], cause: Cause) -> Layout:
    """Return the axes after a view as `shape`: runs of axes are merged and divided.

    Args:
        layout: The axes before.
        shape: The sizes after; the same number of positions in all, none of size 0.
        cause: Recorded where an axis cannot be divided.

    Returns:
        One axis for each size.
    """
    old = [axis for axis in layout if length(axis) != 1]
    sizes = [size for size in shape if size != 1]
    new: list[Axis] = []
    while old:
        run, wanted = [old.pop(0)], [sizes.pop(0)]
        while (have := math.prod(map(length, run))) != (want := math.prod(wanted)):
            if have < want:
                run.append(old.pop(0))
            else:
                wanted.append(sizes.pop(0))
        new += _divide_all(merge(run), wanted, cause)
    return tuple(((),) if size == 1 else new.pop(0) for size in shape)


def _axis(size: int, cause: Cause | None, parents: list[Atom], *, uniform: bool = False) -> Axis:
    if size < 2:
        return ((),) * size
    return ((Atom(size, cause, parents, uniform=uniform),),)


def _cause_of(axis: Axis) -> Cause:
    """The first cause in a resolved axis, one worth reporting if there is one."""
    causes = [atom.cause for product in axis for atom in product if atom.cause is not None]
    return next((cause for cause in causes if cause is not POSITIONS), POSITIONS)


def _expand(product: Product) -> Axis:
    if all(atom.becomes is None for atom in product):
        return (_join(product),)
    terms: Axis = ((),)
    for atom in product:
        inner = ((atom,),) if atom.becomes is None else resolve(atom.becomes)
        terms = _times(terms, inner)
    return tuple(_join(term) for term in terms)


def _join(product: Product) -> Product:
    """The product with neighbouring fixed atoms made one."""
    joined: list[Atom] = []
    for atom in product:
        if joined and atom.cause is not None and joined[-1].cause is not None:
            both = (joined.pop(), atom)
            joined.append(Atom(both[0].size * atom.size, _cause_of((both,))))
        else:
            joined.append(atom)
    return tuple(joined)


def _times(outer: Axis, inner: Axis) -> Axis:
    """The product of two axes; a moving one cannot hold a concatenation inside."""
    if len(inner) == 1:
        return tuple(term + inner[0] for term in outer)
    if outer == ((),):
        return inner
    if is_fixed(outer) and length(outer) * len(inner) <= LONGEST:
        return inner * length(outer)
    pin(inner, NESTED)
    return tuple(term + fixed(length(inner), NESTED)[0] for term in outer)


def _divide_into_sum(atom: Atom, at: int) -> tuple[Product, Product]:
    """Let `atom` become two runs, the first of `at` positions."""
    (near,), (far,) = (
        _axis(size, atom.cause, list(atom.parents), uniform=atom.uniform)
        for size in (at, atom.size - at)
    )
    atom.becomes = (near, far)
    return near, far


def _divide_all(axis: Axis, sizes: Sequence[int], cause: Cause) -> list[Axis]:
    if len(sizes) == 1:
        return [axis]
    slow, fast = divide(axis, sizes[-1], cause)
    return [*_divide_all(slow, sizes[:-1], cause), fast]


def _divide_product(product: Product, inner: int) -> tuple[Product, Product]:
    """Split a product so that the faster part has `inner` positions, as far as that is possible."""
    slow: Product = product
    fast: Product = ()
    while inner > 1 and slow:
        slow, atom = slow[:-1], slow[-1]
        if inner % atom.size == 0:
            fast, inner = (atom, *fast), inner // atom.size
        elif atom.size % inner == 0:
            outer, last = _peel(atom, inner)
            slow, fast, inner = slow + outer, (last, *fast), 1
        else:
            break
    return slow, fast


def _peel(atom: Atom, inner: int) -> tuple[Product, Atom]:
    """Write `atom` as a product whose last factor has `inner` positions."""
    if atom.size == inner:
        return (), atom
    slow = Atom(atom.size // inner, atom.cause, list(atom.parents), uniform=atom.uniform)
    fast = Atom(inner, atom.cause, [*atom.parents, slow], uniform=atom.uniform)
    if atom.cause is None:
        atom.becomes = ((slow, fast),)
    return (slow,), fast


def _tie_products(first: Product, second: Product, cause: Cause) -> None:
    for one, other in ((first, second), (second, first)):
        if is_fixed((one,)):
            pin((other,), _cause_of((one,)))
            return
    size, larger = sorted((first[-1].size, second[-1].size))
    if larger % size != 0:
        pin((first, second), cause)
        return
    (outer, a), (other_outer, b) = _peel(first[-1], size), _peel(second[-1], size)
    _unify(a, b)
    rest, other_rest = first[:-1] + outer, second[:-1] + other_outer
    if rest:
        tie((rest,), (other_rest,), cause)


def _unify(atom: Atom, other: Atom) -> None:
    if atom is other:
        return
    if (cause := atom.cause or other.cause) is not None:
        atom.cause = other.cause = cause
        return
    if atom.uniform:
        atom, other = other, atom
    other.becomes = ((atom,),)
    atom.parents += other.parents
