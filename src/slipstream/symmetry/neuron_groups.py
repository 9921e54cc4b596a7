"""Which axes of which tensors list the same neurons: plain data, printed, checked and saved."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from slipstream.storage.reading import parsing
from slipstream.storage.strict_json import read_json
from slipstream.storage.writing import write_whole

FORMAT = 2  # 1 had no signs


@dataclass(frozen=True)
class NeuronGroup:
    """Permutable neurons, which move together in every block that lists them."""

    name: str  # the tensor and axis that first lists them, e.g. "conv1.weight:0"
    size: int
    parents: tuple[str, ...] = ()  # groups for each of whose neurons there is an order
    signed: bool = False  # whether each neuron may change its sign too


@dataclass(frozen=True)
class Block:
    """A run of positions on one axis of one tensor: the product of its factors, last one fastest.

    A factor is the name of a neuron group, or a number of positions that stay. The
    input axis of a linear layer behind a flattened 7 x 7 map is `("conv.weight:0", 49)`. A signed
    group may be listed without its sign: the gain of a normalisation, a running variance.
    """

    tensor: str
    axis: int
    offset: int
    factors: tuple[str | int, ...]
    signs: tuple[str, ...] = ()  # the factors whose neurons bring their sign along here

    @property
    def groups(self) -> tuple[str, ...]:
        """The neuron groups among the factors."""
        return tuple(factor for factor in self.factors if isinstance(factor, str))


@dataclass(frozen=True)
class Pin:
    """An operator that fixed the order of neurons, and why."""

    operator: str
    where: str  # the module it ran in, as a dotted path
    reason: str
    tensors: tuple[str, ...] = ()  # "name:axis" of the axes that could not move because of it


@dataclass(frozen=True)
class Coverage:
    """How much of a model its neuron groups move, as shares of its parameters."""

    moved: float  # listed by a group along some axis
    everywhere: float  # listed by groups along all axes; the positions inside a kernel do not count


@dataclass(frozen=True)
class NeuronGroups:
    """All neuron groups of a model, with what stays fixed and why."""

    groups: tuple[NeuronGroup, ...]
    blocks: tuple[Block, ...]
    shapes: Mapping[str, tuple[int, ...]]  # every tensor of the model
    pins: tuple[Pin, ...] = ()
    dropped: tuple[Pin, ...] = ()  # groups that failed the proof, with how far the output moved
    caveats: tuple[str, ...] = ()  # which calls the groups hold for, and what was not tested

    def __post_init__(self) -> None:
        self._check()

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> NeuronGroup:
        if name not in self._by_name:
            raise KeyError(f"No neuron group is named {name!r}.")
        return self._by_name[name]

    def sizes(self) -> dict[str, int]:
        """Return the size of every group by name."""
        return {group.name: group.size for group in self.groups}

    def blocks_of(self, group: str) -> tuple[Block, ...]:
        """Return the blocks that list the neurons of `group`."""
        return tuple(block for block in self.blocks if group in block.factors)

    def blocks_on(self, tensor: str, axis: int | None = None) -> tuple[Block, ...]:
        """Return the blocks on `tensor`, or on one axis of it."""
        blocks = self._by_tensor.get(tensor, ())
        return tuple(block for block in blocks if axis is None or block.axis == axis)

    def length(self, block: Block) -> int:
        """Return how many positions of its axis `block` covers."""
        return math.prod(self._by_name[f].size if isinstance(f, str) else f for f in block.factors)

    def children_of(self, group: str) -> tuple[str, ...]:
        """Return the groups whose order may differ for each neuron of `group`."""
        return tuple(child.name for child in self.groups if group in child.parents)

    def keep(self, names: Iterable[str]) -> "NeuronGroups":
        """Return only the named groups; a block's other factors become positions that stay.

        A group that is left without one of its parents keeps one order for all of that parent's
        neurons, which is a subset of what was allowed.
        """
        kept = set(names)
        sizes = self.sizes()
        groups = tuple(
            replace(group, parents=tuple(p for p in group.parents if p in kept))
            for group in self.groups
            if group.name in kept
        )
        blocks = (
            replace(
                block,
                factors=tuple(
                    sizes[f] if isinstance(f, str) and f not in kept else f for f in block.factors
                ),
                signs=tuple(name for name in block.signs if name in kept),
            )
            for block in self.blocks
        )
        moving = tuple(b for b in blocks if any(isinstance(f, str) for f in b.factors))
        return replace(self, groups=groups, blocks=moving)

    def without_signs(self, names: Iterable[str] | None = None) -> "NeuronGroups":
        """Return the same groups, of which those named, or all, keep their signs."""
        fixed = {group.name for group in self.groups} if names is None else set(names)
        return replace(
            self,
            groups=tuple(replace(g, signed=g.signed and g.name not in fixed) for g in self.groups),
            blocks=tuple(
                replace(b, signs=tuple(name for name in b.signs if name not in fixed))
                for b in self.blocks
            ),
        )

    def coverage(self) -> Coverage:
        """Return which share of the model's parameters the groups move."""
        pinned = {axis for pin in self.pins for axis in pin.tensors}
        moved = everywhere = 0.0
        for name in self._by_tensor:
            shape = self.shapes[name]
            shares = [
                sum(map(self.length, self.blocks_on(name, axis))) / size
                for axis, size in enumerate(shape)
            ]
            counted = [s for axis, s in enumerate(shares) if s or f"{name}:{axis}" in pinned]
            moved += math.prod(shape) * (1 - math.prod(1 - share for share in shares))
            everywhere += math.prod(shape) * math.prod(counted)
        total = max(sum(math.prod(shape) for shape in self.shapes.values()), 1)
        return Coverage(moved / total, everywhere / total)

    def __str__(self) -> str:
        return _table(self)

    def to_json(self) -> str:
        """Return the groups as JSON text that `from_json` reads."""
        data = {"format": FORMAT, **asdict(self)}
        if not self.caveats:
            del data["caveats"]
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "NeuronGroups":
        """Read what `to_json` wrote.

        Args:
            text: JSON text.

        Returns:
            The groups, checked for consistency.

        Raises:
            ValueError: If the text is not such JSON, or is of a newer format.
        """
        try:
            data = read_json(text.encode())
            if data["format"] > FORMAT:
                raise ValueError(
                    f"Neuron groups of format {data['format']} are newer than {FORMAT}."
                )
            return cls(
                groups=tuple(_group_from(g) for g in data["groups"]),
                blocks=tuple(_block_from(b) for b in data["blocks"]),
                shapes={n: tuple(map(_whole, shape)) for n, shape in data["shapes"].items()},
                pins=tuple(_pin_from(p) for p in data["pins"]),
                dropped=tuple(_pin_from(p) for p in data["dropped"]),
                caveats=_texts(data.get("caveats", ())),
            )
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"This is not the JSON of neuron groups: {error!r}.") from error

    def save(self, path: str | Path) -> None:
        """Write the groups to a JSON file."""
        write_whole(Path(path), [self.to_json().encode()])

    @classmethod
    def load(cls, path: str | Path) -> "NeuronGroups":
        """Read the groups from a JSON file that `save`, or a user's hand, wrote.

        Args:
            path: The JSON file.

        Returns:
            The groups, checked for consistency.

        Raises:
            OSError: If the file is missing.
            ValueError: If it holds something else, or is of a newer format.
        """
        with parsing(path, "neuron groups"):
            return cls.from_json(Path(path).read_text(encoding="utf-8"))

    @cached_property
    def _by_name(self) -> dict[str, NeuronGroup]:
        return {group.name: group for group in self.groups}

    @cached_property
    def _by_tensor(self) -> dict[str, list[Block]]:
        blocks: dict[str, list[Block]] = {}
        for block in self.blocks:
            blocks.setdefault(block.tensor, []).append(block)
        return blocks

    def _check(self) -> None:
        sizes = self.sizes()
        if len(sizes) != len(self.groups):
            raise ValueError("Two neuron groups have the same name.")
        _check_parents(self.groups)
        taken: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for block in self.blocks:
            if unknown := [f for f in block.factors if isinstance(f, str) and f not in sizes]:
                raise ValueError(
                    f"A block of {block.tensor!r} names no known group: {unknown[0]!r}."
                )
            if bad := [f for f in block.signs if f not in block.factors or not self[f].signed]:
                raise ValueError(
                    f"A block of {block.tensor!r} has the sign of {bad[0]!r}, which is not a "
                    "signed group among its factors."
                )
            if block.tensor not in self.shapes:
                raise ValueError(
                    f"A block lies on {block.tensor!r}, which is not a tensor of the model."
                )
            shape = self.shapes[block.tensor]
            end = block.offset + self.length(block)
            if not (
                0 <= block.axis < len(shape) and block.offset >= 0 and end <= shape[block.axis]
            ):
                raise ValueError(
                    f"A block covers positions {block.offset} to {end} on axis {block.axis} of "
                    f"{block.tensor!r}, which has shape {tuple(shape)}."
                )
            spans = taken.setdefault((block.tensor, block.axis), [])
            if any(start < end and block.offset < stop for start, stop in spans):
                raise ValueError(f"Two blocks overlap on axis {block.axis} of {block.tensor!r}.")
            spans.append((block.offset, end))


def _check_parents(groups: tuple[NeuronGroup, ...]) -> None:
    """Parents come before their children, and a child names the parents of its parents too."""
    known: dict[str, NeuronGroup] = {}
    for group in groups:
        for parent in group.parents:
            if parent not in known:
                raise ValueError(
                    f"Group {group.name!r} names {parent!r}, which is not a group before it."
                )
            if missing := [p for p in known[parent].parents if p not in group.parents]:
                raise ValueError(f"Group {group.name!r} must name {missing[0]!r} as a parent too.")
        known[group.name] = group


def _group_from(data: Mapping[str, Any]) -> NeuronGroup:
    signed = bool(data.get("signed", False))
    (name,) = _texts([data["name"]])
    return NeuronGroup(name, _whole(data["size"]), _texts(data["parents"]), signed)


def _block_from(data: Mapping[str, Any]) -> Block:
    (tensor,) = _texts([data["tensor"]])
    factors = tuple(f if isinstance(f, str) else _whole(f) for f in data["factors"])
    signs = _texts(data.get("signs", ()))
    return Block(tensor, _whole(data["axis"]), _whole(data["offset"]), factors, signs)


def _pin_from(data: Mapping[str, Any]) -> Pin:
    operator, where, reason = _texts([data["operator"], data["where"], data["reason"]])
    return Pin(operator, where, reason, _texts(data["tensors"]))


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"texts are expected, not {str(values)[:80]}")
    return tuple(values)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise TypeError(f"a whole number from 0 on is expected, not {str(value)[:80]}")
    return value


def _table(groups: NeuronGroups) -> str:
    rows = [("group", "size", "in", "listed on")]
    for group in groups.groups:
        places = [
            f"{'±' * (group.name in b.signs)}{b.tensor}:{b.axis}"
            for b in groups.blocks_of(group.name)
        ]
        shown = ", ".join(places[:4]) + (f", +{len(places) - 4} more" if len(places) > 4 else "")
        rows.append((group.name, str(group.size), " x ".join(group.parents) or "-", shown))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[3]]) for r in rows
    ]
    coverage = groups.coverage()
    lines.append(
        f"{len(groups)} groups move {coverage.moved:.1%} of the parameters, "
        f"{coverage.everywhere:.1%} along every axis"
    )
    if any(group.signed for group in groups.groups):
        lines.append("where ± stands, a neuron may also change its sign")
    for title, pins in (("pinned", groups.pins), ("failed the proof", groups.dropped)):
        lines += [
            f"{title} by {pin.operator} in {pin.where or 'the model'}: {pin.reason}"
            + (f" ({', '.join(pin.tensors[:4])})" if pin.tensors else "")
            for pin in pins
        ]
    lines += [f"note: {caveat}" for caveat in groups.caveats]
    return "\n".join(lines)
