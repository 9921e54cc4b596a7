"""How a rule is written: a small function from a call to the axes of its result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from slipstream.symmetry import atoms
from slipstream.symmetry.atoms import Axis, Cause, Layout
from slipstream.symmetry.parents import Independence
from slipstream.symmetry.signs import Equation, multiply

MAP = "positions of a map"


class UnsupportedError(Exception):
    """An operator, or this use of it, has no rule: everything it touches will be pinned."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its axes."""

    axes: Layout
    points_to: Axis | None = None  # its whole numbers tell positions on this axis
    rows: tuple[Layout, ...] = ()  # of each position on the first axis, where they differ

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of every axis."""
        return tuple(map(atoms.length, self.axes))


@dataclass(frozen=True)
class Call:
    """One operator call in the graph, and what its rule may do to the axes."""

    operator: str  # the name without namespace and overload: "conv2d"
    where: str  # the module it runs in, as a dotted path
    arguments: Mapping[str, Any]  # by the names of the operator's schema, tensors as `Value`
    shapes: tuple[tuple[int, ...], ...]  # of the results
    independences: list[Independence] = field(default_factory=list)
    equations: list[Equation] | None = None  # while signs are followed, not orders
    ties: bool = False  # of a ranking: whether entries may be equal, and their numbers are used

    def __getitem__(self, argument: str) -> Any:
        return self.arguments.get(argument)

    def axes(self, *names: str) -> Layout:
        """Return the axes of the first of the arguments `names` that is a tensor."""
        for name in names:
            if isinstance(value := self[name], Value):
                return value.axes
        raise UnsupportedError(f"{names[0]} is no tensor")

    def points_to(self, name: str) -> Axis | None:
        """Return the axis whose entries the numbers of the argument `name` tell, if any."""
        value = self[name]
        return value.points_to if isinstance(value, Value) else None

    def tensors(self) -> list[Layout]:
        """Return the axes of all tensor arguments, also inside lists."""
        found = []
        for argument in self.arguments.values():
            items = argument if isinstance(argument, list | tuple) else [argument]
            found += [item.axes for item in items if isinstance(item, Value)]
        return found

    def cause(self, reason: str) -> Cause:
        """Return a cause that names this call."""
        return Cause(self.operator, self.where, reason)

    def places(self, sizes: Sequence[int]) -> Layout:
        """Return new axes of positions that stay: positions on a map, numbers of tensors."""
        return tuple(atoms.fixed(size, self.cause(MAP)) for size in sizes)

    def tie(self, first: Axis, second: Axis) -> None:
        """Let two axes list the same positions."""
        atoms.tie(first, second, self.cause("it joins axes of different structure"))

    def multiply(self, first: Axis, second: Axis) -> Axis:
        """Let two axes list the same positions, of tensors that are multiplied there."""
        if self.equations is not None:
            cause = self.cause("it multiplies axes of different structure")
            return multiply(first, second, cause, self.equations)
        self.tie(first, second)
        return first

    def unsigned(self, axis: Axis) -> None:
        """Demand that nothing changes its sign along `axis`; the order stays free."""
        if self.equations is not None:
            self.pin(axis, "signs along this axis would not cancel")

    def tie_rows(self, value: Value) -> None:
        """Let every position of the first axis of `value` list the same."""
        for row in value.rows:
            for axis, own in zip(value.axes[1:], row, strict=True):
                self.tie(axis, own)

    def pin(self, axis: Axis, reason: str) -> None:
        """Fix the positions of `axis`."""
        atoms.pin(axis, self.cause(reason))

    def cut(self, axis: Axis, at: int) -> tuple[Axis, Axis]:
        """Cut `axis` before position `at`."""
        return atoms.cut(axis, at, self.cause("it cuts through parts that move"))

    def regroup(self, layout: Layout, shape: tuple[int, ...]) -> Layout:
        """Return the axes of `layout` viewed as `shape`."""
        if 0 in shape:
            raise UnsupportedError("an axis is empty")
        return atoms.regroup(layout, shape, self.cause("it divides an axis unevenly"))

    def divide(self, axis: Axis, outer: int) -> tuple[Axis, Axis]:
        """Write `axis` as `outer` parts times the positions inside a part."""
        inner = atoms.length(axis) // outer
        return atoms.divide(axis, inner, self.cause("it divides an axis unevenly"))

    def independent(self, axis: Axis, other: Axis) -> None:
        """Demand that no order on `axis` depends on a position on `other`."""
        self.independences.append((axis, other))


Found = Layout | Value | Sequence[Layout | Value]


@dataclass(frozen=True)
class Rule:
    """From a call to the axes of its result."""

    apply: Callable[[Call], Found]
    signs: bool = False  # whether it holds for signs too
    keeps: bool = False  # whether it passes on the numbers of its one tensor
    reads: str = ""  # the argument whose numbers it looks after itself
    ranks: bool = False  # whether it tells positions by the order of what they hold


RULES: dict[str, Rule] = {}
_Function = TypeVar("_Function", bound=Callable[[Call], Found])


def rule(
    *operators: str,
    signs: bool = False,
    keeps: bool = False,
    reads: str = "",
    ranks: bool = False,
) -> Callable[[_Function], _Function]:
    """Register a rule for ATen operators, by name ("sum") or by name and overload ("max.dim").

    The in-place variant of an operator ("relu_") follows the rule of the operator.

    Rules are followed twice: for orders, then for signs. A rule with `signs=True` promises that it
    is right the second time as well, where axes that are tied change their signs together, an axis
    that is pinned has no sign, and what the rule returns tells where the result changes its sign:
    right as it is for whatever is linear or odd and returns the axes it was given. Where tensors
    are multiplied, use `call.multiply` for `call.tie`; where positions are added up, compared, or
    shifted by a constant, call `call.unsigned`. An even function is `call.multiply(axis, axis)`.
    Without `signs=True`, nothing that the operator touches changes its sign. Results that are not
    floating-point numbers, and new axes that the rule makes, have no sign in any case.

    Args:
        *operators: Names, several in one string if they are separated by spaces.
        signs: Whether the rule is right for signs too.
        keeps: Whether it passes on the numbers of its one tensor: where they tell positions on an
            axis, those of the result do too. Otherwise that axis is pinned.
        reads: The argument of which the rule itself says what follows from the positions it tells.
        ranks: Whether it tells positions by the order of what they hold; then `call.ties` says
            whether equal entries are told apart by their position alone.

    Returns:
        A decorator that registers a rule and passes it on.
    """

    def register(function: _Function) -> _Function:
        found = Rule(function, signs, keeps, reads, ranks)
        RULES.update(dict.fromkeys(" ".join(operators).split(), found))
        return function

    return register
