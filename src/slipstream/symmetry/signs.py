"""Which neurons may change their sign: the rules are followed once more, for signs.

On this second way through the graph an atom stands for a run of one axis of one weight that may be
multiplied by the signs of a group's neurons. Tying two atoms makes their signs equal, pinning one
leaves it unsigned, and a product of tensors has the product of their signs. With one bit for every
atom (does it change its sign or not?), products are linear equations over GF(2).
"""

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from slipstream.symmetry import atoms
from slipstream.symmetry.atoms import Atom, Axis, Cause, Layout, Product
from slipstream.symmetry.neuron_groups import Block, NeuronGroups

Run = tuple[Block, str]  # a block and a group among its factors
Equation = tuple[Atom, Atom, Atom]  # the bit of the first is the sum of the other two
NEW = Cause("", "", "positions that an operator adds have no sign")


@dataclass(frozen=True)
class SignedRuns:
    """The weights of a model with one atom for every run of neurons on them."""

    groups: NeuronGroups
    layouts: Mapping[str, Layout]
    runs: Mapping[Run, Atom]


def signed_runs(groups: NeuronGroups, weights: Mapping[str, Tensor]) -> SignedRuns:
    """Return the axes of all weights, where what `groups` moves may change its sign.

    Args:
        groups: Groups of the model, signed or not.
        weights: All weights of the model.

    Returns:
        Fresh atoms, to be tied and pinned by the rules.
    """
    runs = {
        (block, name): Atom(groups[name].size)
        for block in groups.blocks
        for name in block.groups
        # A pair of neurons of the same group would have the product of their signs.
        if block.factors.count(name) == 1
        and (weights[block.tensor].is_floating_point() or weights[block.tensor].is_complex())
    }
    layouts = {
        name: tuple(_axis(groups, name, axis, runs) for axis in range(value.dim()))
        for name, value in weights.items()
    }
    return SignedRuns(groups, layouts, runs)


def multiply(first: Axis, second: Axis, cause: Cause, equations: list[Equation]) -> Axis:
    """Return the axis along which two tensors are multiplied: it has the product of their signs.

    Args:
        first: An axis.
        second: An axis of the same length.
        cause: Recorded where their structures differ; there the result has no sign.
        equations: Gets one more for every run that may change its sign on both.

    Returns:
        An axis of the same length.
    """
    first, second = atoms.resolve(first), atoms.resolve(second)
    if atoms.is_fixed(first) or atoms.is_fixed(second):
        return second if atoms.is_fixed(first) else first
    if len(first) == len(second) == 1:
        return _multiply_products(first[0], second[0], cause, equations)
    result: Axis = ()
    while first:
        size = min(atoms.length(first[:1]), atoms.length(second[:1]))
        head, first = atoms.cut(first, size, cause)
        other, second = atoms.cut(second, size, cause)
        result += multiply(head, other, cause, equations)
    return result


def pin_new(
    layouts: Iterable[Layout], known: Iterable[Layout], equations: Sequence[Equation]
) -> None:
    """Pin what a rule made out of nothing: padding, or one entry repeated, has no sign of its own.

    Args:
        layouts: What the rule returned.
        known: The axes of its arguments.
        equations: All there are by now.
    """
    old = {*_atoms(known), *(product for product, _, _ in equations)}
    for atom in _atoms(layouts):
        if atom not in old:
            atom.cause = atom.cause or NEW


def with_signs(found: SignedRuns, equations: Sequence[Equation]) -> NeuronGroups:
    """Return the groups, signed where a change of signs keeps the function.

    There may be several ways: a gain could change its sign with the weights behind it. Of them, as
    many parameters as possible change their sign. Where the sign of each neuron inside a
    part may change, the sign of the part as a whole is not listed again.

    Args:
        found: The runs after all rules were followed.
        equations: What the rules demanded besides.

    Returns:
        The same groups and blocks with their signs.
    """
    _pin_broken(found.runs, equations)
    bound = {run: free for run, atom in found.runs.items() if (free := _free(atom)) is not None}
    changing = _solve(found.groups, bound, equations)
    signs = {
        block: tuple(name for name in block.groups if bound.get((block, name)) in changing)
        for block in found.groups.blocks
    }
    signed = {name for names in signs.values() for name in names}
    return replace(
        found.groups,
        groups=tuple(replace(g, signed=g.name in signed) for g in found.groups.groups),
        blocks=tuple(replace(block, signs=names) for block, names in signs.items()),
    )


def _pin_broken(runs: Mapping[Run, Atom], equations: Iterable[Equation]) -> None:
    """Pin the atoms that an operator took apart, or tied across groups: that is not understood."""
    for atom in [*runs.values(), *(atom for equation in equations for atom in equation)]:
        if len(atoms.resolve(((atom,),))) > 1 or len(atoms.resolve(((atom,),))[0]) > 1:
            atoms.pin(((atom,),), NEW)
    owners: dict[Atom, str] = {}
    for (_, name), atom in runs.items():
        free = _free(atom)
        if free is not None and owners.setdefault(free, name) != name:
            free.cause = NEW


def _free(atom: Atom) -> Atom | None:
    """What an atom is tied to, if that may change its sign."""
    ((representative,),) = atoms.resolve(((atom,),))
    return representative if representative.cause is None else None


def _solve(
    groups: NeuronGroups, bound: Mapping[Run, Atom], equations: Iterable[Equation]
) -> set[Atom]:
    """The atoms that change their sign: the first ones as they like, the others as they must."""
    variables = _by_preference(groups, bound, equations)
    number = {atom: n for n, atom in enumerate(variables)}
    rows: dict[int, int] = {}  # by its last variable, the bits of all variables of an equation
    for equation in equations:
        row = 0
        for free in filter(None, map(_free, equation)):
            row ^= 1 << number[free]
        while row and (last := row.bit_length() - 1) in rows:
            row ^= rows[last]
        if row:
            rows[last] = row
    bits = 0
    changing: set[Atom] = set()
    for n, atom in enumerate(variables):
        if (rows[n] & bits).bit_count() % 2 if n in rows else _adds(atom, groups, bound, changing):
            bits |= 1 << n
            changing.add(atom)
    return changing


def _by_preference(
    groups: NeuronGroups, bound: Mapping[Run, Atom], equations: Iterable[Equation]
) -> list[Atom]:
    """The free atoms: inner groups before outer ones, then those with most parameters."""
    depths: dict[Atom, int] = {}
    numbers: dict[Atom, int] = {}
    for (block, name), atom in bound.items():
        shape = groups.shapes[block.tensor]
        depths[atom] = len(groups[name].parents)
        numbers[atom] = numbers.get(atom, 0) + (
            math.prod(shape) // shape[block.axis] * groups.length(block)
        )
    ordered = sorted(numbers, key=lambda atom: (-depths[atom], -numbers[atom]))
    results = (free for atom, _, _ in equations if (free := _free(atom)) is not None)
    return list(dict.fromkeys([*ordered, *results]))


def _adds(
    atom: Atom, groups: NeuronGroups, bound: Mapping[Run, Atom], changing: Container[Atom]
) -> bool:
    """Whether the sign of an atom says more than those of the groups inside it do already."""
    return not any(
        name in groups[inner].parents and bound.get((block, inner)) in changing
        for (block, name), own in bound.items()
        if own is atom
        for inner in block.groups
    )


def _axis(found: NeuronGroups, name: str, axis: int, runs: Mapping[Run, Atom]) -> Axis:
    """The axis of a weight, with the atoms of its runs and fixed positions between them."""
    result: Axis = ()
    for block in sorted(found.blocks_on(name, axis), key=lambda block: block.offset):
        result += _fixed(block.offset - atoms.length(result))
        sizes = (f if isinstance(f, int) else found[f].size for f in block.factors)
        result += (
            tuple(
                runs[block, factor]
                if isinstance(factor, str) and (block, factor) in runs
                else Atom(size, atoms.POSITIONS)
                for factor, size in zip(block.factors, sizes, strict=True)
            ),
        )
    return result + _fixed(found.shapes[name][axis] - atoms.length(result))


def _fixed(size: int) -> Axis:
    return atoms.fixed(size) if size else ()


def _multiply_products(
    first: Product, second: Product, cause: Cause, equations: list[Equation]
) -> Axis:
    if [atom.size for atom in first] != [atom.size for atom in second]:
        atoms.pin((first, second), cause)
        return atoms.fixed(atoms.length((first,)), cause)
    result = []
    for one, other in zip(first, second, strict=True):
        if one.cause is not None or other.cause is not None:
            result.append(one if other.cause is not None else other)
        else:
            result.append(Atom(one.size))
            equations.append((result[-1], one, other))
    return (tuple(result),)


def _atoms(layouts: Iterable[Layout]) -> Iterator[Atom]:
    for layout in layouts:
        for axis in layout:
            for product in atoms.resolve(axis):
                yield from product
