"""From atoms that are still free to neuron groups, blocks and what was pinned."""

from collections.abc import Iterable, Mapping

from torch.utils._pytree import tree_leaves

from slipstream.symmetry import atoms
from slipstream.symmetry.atoms import Axis, Cause, Layout
from slipstream.symmetry.axis_rules.registry import MAP, Value
from slipstream.symmetry.following import Flow
from slipstream.symmetry.neuron_groups import Block, NeuronGroup, NeuronGroups, Pin
from slipstream.symmetry.parents import settle


def collect(flow: Flow) -> NeuronGroups:
    """Turn the atoms that are still free into groups and blocks."""
    values = [v for v in tree_leaves(flow.values) if isinstance(v, Value)]
    layouts = [*flow.weights.values(), *(value.axes for value in values)]
    parents = settle(layouts, flow.independences)
    weights = {
        name: tuple(atoms.resolve(axis) for axis in layout) for name, layout in flow.weights.items()
    }
    names = _name_atoms((name, weights[name]) for name in flow.used)
    ordered = sorted(names, key=lambda atom: len(parents[atom]))
    return NeuronGroups(
        groups=tuple(
            NeuronGroup(
                names[atom], atom.size, tuple(names[p] for p in ordered if p in parents[atom])
            )
            for atom in _parents_first(names, parents)
        ),
        blocks=tuple(b for name in flow.used for b in _blocks(name, weights[name], names)),
        shapes={name: tuple(map(atoms.length, layout)) for name, layout in weights.items()},
        pins=_pins(flow, weights),
    )


def _parents_first(
    names: Mapping[atoms.Atom, str], parents: Mapping[atoms.Atom, list[atoms.Atom]]
) -> list[atoms.Atom]:
    ordered: dict[atoms.Atom, None] = {}
    for atom in names:
        above = sorted(parents[atom], key=lambda parent: len(parents[parent]))
        ordered.update(dict.fromkeys([*above, atom]))
    return list(ordered)


def _name_atoms(weights: Iterable[tuple[str, Layout]]) -> dict[atoms.Atom, str]:
    """Name every moving atom after the tensor and the axis that first list it."""
    names: dict[atoms.Atom, str] = {}
    for tensor, layout in weights:
        for number, axis in enumerate(layout):
            offset = 0
            for product in axis:
                size = atoms.length((product,))
                place = f"{tensor}:{number}"
                place += f"[{offset}:{offset + size}]" if len(axis) > 1 else ""
                _name_product(product, place, names)
                offset += size
    return names


def _name_product(product: atoms.Product, place: str, names: dict[atoms.Atom, str]) -> None:
    moving = list(dict.fromkeys(atom for atom in product if atom.cause is None))
    for number, atom in enumerate(moving):
        suffix = "" if len(moving) == 1 else "/inside" * number or "/groups"
        names.setdefault(atom, place + suffix)


def _blocks(tensor: str, layout: Layout, names: Mapping[atoms.Atom, str]) -> Iterable[Block]:
    for number, axis in enumerate(layout):
        offset = 0
        for product in axis:
            if any(atom in names for atom in product):
                factors = tuple(names.get(atom, atom.size) for atom in product)
                yield Block(tensor, number, offset, factors)
            offset += atoms.length((product,))


def _pins(flow: Flow, weights: Mapping[str, Layout]) -> tuple[Pin, ...]:
    """What fixed axes of weights, one entry for every cause; unsupported operators in any case."""
    fixed: dict[Cause, list[str]] = {cause: [] for cause in flow.unsupported}
    for name, layout in weights.items():
        for number, axis in enumerate(layout):
            for cause in _causes(axis):
                fixed.setdefault(cause, []).append(f"{name}:{number}")
    return tuple(Pin(c.operator, c.where, c.reason, tuple(axes)) for c, axes in fixed.items())


def _causes(axis: Axis) -> list[Cause]:
    """What fixed the parts of an axis that cannot move, if only inside of what can."""
    causes = dict.fromkeys(
        atom.cause
        for product in axis
        for atom in product
        # That a flattened map has positions is nothing to report, unless nothing else is there.
        if atoms.is_fixed((product,)) or (atom.cause and atom.cause.reason != MAP)
    )
    return [cause for cause in causes if cause is not None and cause is not atoms.POSITIONS]
