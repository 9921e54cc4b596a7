"""The axes of everything in a graph, followed from operator to operator."""

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from slipstream.symmetry import atoms
from slipstream.symmetry.atoms import Axis, Cause, Layout
from slipstream.symmetry.axis_rules.registry import Call, Rule, UnsupportedError, Value
from slipstream.symmetry.axis_rules.table import find_rule
from slipstream.symmetry.capture import Capture
from slipstream.symmetry.parents import Independence
from slipstream.symmetry.signs import Equation, pin_new
from slipstream.symmetry.ties import may_tie, number_is_used

INPUT = Cause("input", "", "the order of the model's inputs is given")
OUTPUT = Cause("output", "", "the order of the model's outputs is given")
CONSTANT = Cause("constant", "", "a tensor that is neither a parameter nor a persistent buffer")
UNUSED = Cause("unused", "", "not used in the forward pass, so nothing says what moves with it")
INTEGERS = Cause("integers", "", "a buffer of whole numbers counts or points to positions")
MISSING = object()  # a tensor of which the tracer tells nothing


@dataclass
class Flow:
    """The axes of everything, as far as they have been followed."""

    weights: dict[str, Layout]  # of every weight of the model
    used: dict[str, None] = field(default_factory=dict)  # weights in the order of their first use
    values: dict[torch.fx.Node, Any] = field(default_factory=dict)  # nodes to `Value`s, or lists
    independences: list[Independence] = field(default_factory=list)
    unsupported: dict[Cause, None] = field(default_factory=dict)
    equations: list[Equation] | None = None  # while signs are followed, not orders
    written: set[torch.fx.Node] = field(default_factory=set)  # nodes that may be written to
    changing: set[str] = field(default_factory=set)  # constants that some call writes to


def new_axes(weights: Mapping[str, Tensor]) -> dict[str, Layout]:
    """Return new axes for all weights of a model."""
    return {name: _weight_axes(value) for name, value in weights.items()}


def follow(captures: Iterable[Capture], flow: Flow) -> None:
    """Run the rules over the graphs, then pin the weights that none of them uses."""
    captures = list(captures)
    for captured in captures:
        flow.written.update(_written_to(captured.graph))
        flow.changing.update(c for node, c in captured.constants.items() if node in flow.written)
    for captured in captures:
        for node in captured.graph.nodes:
            _follow_node(node, captured, flow)
    for name, layout in flow.weights.items():
        if name not in flow.used:
            _pin_all(Value(layout), UNUSED)


def _follow_node(node: torch.fx.Node, captured: Capture, flow: Flow) -> None:
    if node.op == "call_function":
        flow.values[node] = _result_of(node, flow)
        names = (captured.weights.get(argument) for argument in node.all_input_nodes)
        flow.used.update(dict.fromkeys(name for name in names if name is not None))
    elif node.op == "output":
        _pin_all(torch.fx.map_arg(node.args[0], flow.values.__getitem__), OUTPUT)
    elif node in captured.weights:
        flow.values[node] = Value(flow.weights[captured.weights[node]])
    else:
        name = captured.constants.get(node, "")
        given = node.op == "placeholder" and node not in captured.constants
        cause = INPUT if given else replace(CONSTANT, where=name.rpartition(".")[0])
        value = _fixed_values(node.meta.get("val", MISSING), cause)
        # What is added or multiplied everywhere alike leaves the order free, but not the signs.
        if flow.equations is None and node in captured.runs and name not in flow.changing:
            value = Value(tuple(_equal(runs, cause) for runs in captured.runs[node]))
        flow.values[node] = value


def _equal(runs: Iterable[int], cause: Cause) -> Axis:
    """An axis of runs of equal positions, and of single positions that stay."""
    axis: Axis = ()
    for size, equally_long in groupby(runs):
        number = len(list(equally_long))
        if size == 1:
            axis += atoms.fixed(number, cause)
        else:
            axis += tuple(product for _ in range(number) for product in atoms.uniform(size))
    return axis


def _weight_axes(value: Tensor) -> Layout:
    if _has_signs(value) or value.dtype == torch.bool:
        axes = tuple(atoms.free(size) for size in value.shape)
        if value.dim() == 3:  # a stack of matrices: the units of each may have their own order
            atoms.propose(axes[0], axes[1:])
        return axes
    return tuple(atoms.fixed(size, INTEGERS) for size in value.shape)


def _written_to(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """The nodes that an operator writes to, and whatever they might be views of."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            for argument, given in _given(node):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    while isinstance(given, torch.fx.Node):
                        yield given
                        given = next(iter(given.all_input_nodes), None)


def _given(node: torch.fx.Node) -> Iterator[tuple[torch._C.Argument, Any]]:
    """The arguments of a call, with what the operator's schema says about them."""
    for argument, given in zip(node.target._schema.arguments, node.args, strict=False):  # type: ignore[union-attr]
        yield argument, given
    for argument in node.target._schema.arguments:  # type: ignore[union-attr]
        if argument.name in node.kwargs:
            yield argument, node.kwargs[argument.name]


def _result_of(node: torch.fx.Node, flow: Flow) -> Any:
    """The axes of what a node computes; of nothing but fixed positions if no rule says more."""
    arguments: Any = torch.fx.map_arg((node.args, dict(node.kwargs)), flow.values.__getitem__)
    if node.target is operator.getitem:
        return arguments[0][0][arguments[0][1]]
    arguments = tree_map(_for_one_use, arguments)
    outputs = node.meta.get("val")
    try:
        result = _apply_rule(node, arguments, outputs, flow)
    except UnsupportedError as error:
        cause = Cause(_operator_of(node), _where(node), str(error))
        result = _fixed_values(outputs, cause)
        if any(isinstance(leaf, Value) for leaf in tree_leaves((arguments, result))):
            flow.unsupported[cause] = None
        _pin_all(arguments, cause)
    if node in flow.written:
        for value in tree_leaves(result):
            if isinstance(value, Value):
                atoms.differ(value.axes)
    return result


def _for_one_use(leaf: Any) -> Any:
    return replace(leaf, axes=atoms.renewed(leaf.axes)) if isinstance(leaf, Value) else leaf


def _apply_rule(node: torch.fx.Node, arguments: Any, outputs: Any, flow: Flow) -> Any:
    target = node.target
    rule = find_rule(target) if isinstance(target, torch._ops.OpOverload) else None
    if rule is None or not isinstance(target, torch._ops.OpOverload):
        raise UnsupportedError("no rule says how this operator moves neurons")
    leaves = tree_leaves(arguments)
    results = [outputs] if isinstance(outputs, Tensor) else list(outputs or ())
    if MISSING in leaves or not all(isinstance(result, Tensor) for result in results):
        raise UnsupportedError("it takes or gives something other than tensors")
    if flow.equations is not None and not (rule.signs and all(map(_has_signs, results))):
        raise UnsupportedError("no rule says how this operator changes signs")
    shapes = tuple(tuple(result.shape) for result in results)
    bound = {argument.name: argument.default_value for argument in target._schema.arguments}
    bound |= dict(zip(bound, arguments[0], strict=False)) | arguments[1]
    given: list[Any] = [bound.pop(a.name) for a in target._schema.arguments if a.is_out]
    call = Call(_operator_of(node), _where(node), bound, shapes, flow.independences, flow.equations)
    if rule.ranks and number_is_used(node):
        call = replace(call, ties=may_tie(node.all_input_nodes[0], _operator_of))
    kept = _settle_numbers(call, rule)
    try:
        found: Any = rule.apply(call)
    except UnsupportedError:
        raise
    except Exception as error:
        raise UnsupportedError(f"its rule does not cover this use: {error}") from error
    values = [
        item if isinstance(item, Value) else Value(item, points_to=kept)
        for item in (found if isinstance(found, list) else [found])
    ]
    if tuple(value.shape for value in values) != shapes:
        raise UnsupportedError(f"its rule expects other shapes than {shapes}")
    _tie_given(call, given, values)
    if flow.equations is not None:
        pin_new((value.axes for value in values), call.tensors(), flow.equations)
        _keep_written(call, target._schema, values[0])
    return values if isinstance(found, list) else values[0]


def _tie_given(call: Call, given: list[Value], values: list[Value]) -> None:
    """Tie the results that a call was given with what is written to them."""
    for result, value in zip(given, values, strict=False):
        if result.shape != value.shape:
            raise UnsupportedError("it changes the shape of the result that it is given")
        for axis, own in zip(result.axes, value.axes, strict=True):
            call.tie(axis, own)


def _keep_written(call: Call, schema: torch._C.FunctionSchema, result: Value) -> None:
    """What is written to keeps its signs, for other views of it that are read later."""
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            written = Value(call.axes(argument.name))
            if written.shape != result.shape:
                raise UnsupportedError(f"it writes to {argument.name}, but returns something else")
            for axis, own in zip(written.axes, result.axes, strict=True):
                call.tie(axis, own)


def _settle_numbers(call: Call, rule: Rule) -> Axis | None:
    """Pin what numbers point to if the rule might change them; else return what they point to."""
    others = {name: given for name, given in call.arguments.items() if name != rule.reads}
    leaves = [leaf for leaf in tree_leaves(others) if isinstance(leaf, Value)]
    for value in leaves:
        call.tie_rows(value)
    pointing = [leaf.points_to for leaf in leaves if leaf.points_to is not None]
    if rule.keeps and len(leaves) == 1 and pointing:
        return pointing[0]
    for axis in pointing:
        call.pin(axis, "it computes with the numbers of positions on this axis")
    return None


def _has_signs(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _operator_of(node: torch.fx.Node) -> str:
    """The operator's name without namespace and overload; the in-place variant has the same."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", str(node.target))
    return node.target._schema.name.removeprefix("aten::").rstrip("_")


def _where(node: torch.fx.Node) -> str:
    return str((node.meta.get("custom") or {}).get("where", ""))


def _fixed_values(outputs: Any, cause: Cause) -> Any:
    if isinstance(outputs, Tensor):
        return Value(tuple(atoms.fixed(size, cause) for size in outputs.shape))
    if isinstance(outputs, list | tuple):
        return [_fixed_values(output, cause) for output in outputs]
    return outputs


def _pin_all(values: Any, cause: Cause) -> None:
    for value in tree_leaves(values):
        if isinstance(value, Value):
            rows = [axis for row in value.rows for axis in row]
            pointed = [value.points_to] if value.points_to is not None else []
            for axis in (*value.axes, *rows, *pointed):
                atoms.pin(axis, cause)
