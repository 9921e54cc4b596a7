"""What is taken out of a fused axis is taken before the axis is divided.

A fused projection lists queries, keys and values on one axis; models divide it, `view(3, heads,
features)`, and take pieces, `[0]`. In that order all three would share one order of heads and one
of features. `view(x)[0]` is `view(x[:third])`, and the thirds move on their own.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

MANY = 16  # single positions of longer axes are positions: no axis was fused of so many
SAME = frozenset({"contiguous", "clone", "alias", "detach"})
TURNING = frozenset({"permute", "transpose", "unsqueeze", "squeeze"})
VIEWS = frozenset({"view", "reshape", "_unsafe_view", "unflatten"})
SINGLE = frozenset({"select", "unbind"})
RUNS = frozenset({"slice", "narrow", "split", "split_with_sizes", "chunk", "unsafe_chunk"})
DROPOUTS = frozenset({"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"})
aten = torch.ops.aten


@dataclass(frozen=True)
class _Road:
    """From the tensor with the fused axis to the one that pieces are taken from."""

    source: Node
    axis: int  # the fused one
    inner: int  # positions of it behind each position that may be taken
    view: Node
    dim: int  # where the view puts the positions that may be taken
    turns: tuple[Node, ...]


@dataclass(frozen=True)
class _Piece:
    """The positions that a node stands for."""

    node: Node
    start: int
    size: int


def take_early_(graph: Graph) -> None:
    """Take pieces of an axis before a view divides it, in place; the function stays the same."""
    for node in list(graph.nodes):
        if (name := _name(node)) in SINGLE | RUNS and _is_known(node):
            given = _arguments(node)
            shape = given["self"].meta["val"].shape
            dim = given["dim"] % len(shape)
            if name in SINGLE and shape[dim] > MANY:
                continue
            if (road := _road_back(given["self"], dim)) is not None:
                for piece in list(_pieces(node, name, dim, shape[dim])):
                    _retake_(graph, piece, dim, road, alone=name in SINGLE)


def skip_idle_(graph: Graph) -> None:
    """Take out the dropout of evaluation mode, in place: it passes on what it is given."""
    for node in list(graph.nodes):
        if _name(node).rstrip("_") in DROPOUTS and _is_known(node):
            given = _arguments(node)
            if not given["train"] or given["p"] == 0:
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph.erase_node(node)


def drop_unused_(graph: Graph) -> None:
    """Erase what nothing uses, in place: often a tensor of which only the shape was of interest."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and not is_writing(node):
            graph.erase_node(node)


def is_writing(node: Node) -> bool:
    """Return whether a node changes one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _road_back(node: Node, dim: int) -> _Road | None:
    """Follow a dimension back to the view that made it out of the slowest part of an axis."""
    turns: list[Node] = []
    while (name := _name(node)) in SAME | TURNING and _is_known(node):
        turns.insert(0, node)
        before = dim if name in SAME else _before_turning(node, name, dim)
        if before is None:
            return None
        dim, node = before, node.all_input_nodes[0]
    if name not in VIEWS or not _is_known(node):
        return None
    source = node.all_input_nodes[0]
    found = _slowest_part(source.meta["val"].shape, node.meta["val"].shape, dim)
    return None if found is None else _Road(source, *found, node, dim, tuple(turns))


def _before_turning(node: Node, name: str, dim: int) -> int | None:
    """Which dimension of its input a dimension of the node's result was."""
    given = _arguments(node)
    shape = given["self"].meta["val"].shape
    if name == "permute":
        return int(given["dims"][dim]) % len(shape)
    if name == "transpose":
        first, second = given["dim0"] % len(shape), given["dim1"] % len(shape)
        swapped: dict[int, int] = {first: second, second: first}
        return swapped.get(dim, dim)
    if name == "unsqueeze":
        new = given["dim"] % (len(shape) + 1)
        return None if dim == new else dim - (dim > new)
    if "dim" not in given:  # a squeeze of whatever has one position
        return None
    listed = given["dim"] if isinstance(given["dim"], list | tuple) else [given["dim"]]
    gone = {place % len(shape) for place in listed}
    return [place for place, size in enumerate(shape) if place not in gone or size != 1][dim]


def _slowest_part(old: torch.Size, new: torch.Size, dim: int) -> tuple[int, int] | None:
    """The axis of which a view makes `dim` the slowest part, and the entries behind each of it."""
    for axis, size in enumerate(old):
        if math.prod(old[:axis]) == math.prod(new[:dim]) and size > new[dim] > 1:
            parts = [math.prod(new[dim:end]) for end in range(dim + 1, len(new) + 1)]
            return (axis, size // new[dim]) if size in parts else None
    return None


def _pieces(node: Node, name: str, dim: int, size: int) -> Iterator[_Piece]:
    given = _arguments(node)
    if name == "select":
        yield _Piece(node, given["index"] % size, 1)
    elif name in {"slice", "narrow"}:
        start, taken = given["start"] or 0, node.meta["val"].shape[dim]
        if given.get("step", 1) == 1 and isinstance(start, int) and taken < size:
            yield _Piece(node, start % size, taken)
    else:
        sizes = [1 if name == "unbind" else part.shape[dim] for part in node.meta["val"]]
        for user in list(node.users):
            number = int(user.args[1])  # type: ignore[arg-type]
            yield _Piece(user, sum(sizes[:number]), sizes[number])


def _retake_(graph: Graph, piece: _Piece, dim: int, road: _Road, *, alone: bool) -> None:
    """Let the piece be taken out of the fused axis, and be divided and turned after that."""
    first, last = piece.start * road.inner, (piece.start + piece.size) * road.inner
    shape = list(road.view.meta["val"].shape)
    shape[road.dim] = piece.size
    with graph.inserting_before(piece.node):

        def call(target: Callable[..., Any], *arguments: Any) -> Node:
            node = graph.call_function(target, arguments)
            node.meta["custom"] = piece.node.meta.get("custom")
            node.meta["val"] = target(*torch.fx.map_arg(arguments, lambda n: n.meta["val"]))
            return node

        node = call(aten.slice.Tensor, road.source, road.axis, first, last)
        node = call(aten.reshape.default, node, shape)
        for turn in road.turns:
            node = call(turn.target, node, *turn.args[1:])  # type: ignore[arg-type]
        if alone:
            node = call(aten.select.int, node, dim, 0)
    piece.node.replace_all_uses_with(node)
    graph.erase_node(piece.node)


def _is_known(node: Node) -> bool:
    """Whether the tracer tells the shape of what the node is made from."""
    return all("val" in source.meta for source in node.all_input_nodes)


def _arguments(node: Node) -> dict[str, Any]:
    """The arguments of a call by the names of the operator's schema."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound = {argument.name: argument.default_value for argument in schema.arguments}
    return bound | dict(zip(bound, node.args, strict=False)) | node.kwargs


def _name(node: Node) -> str:
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    namespace, _, name = node.target._schema.name.partition("::")
    return name if namespace == "aten" else ""
