"""From a model to its neuron groups: trace it, follow the axes through every operator, prove it."""

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from slipstream.pretrained import example_input_for
from slipstream.symmetry import atoms
from slipstream.symmetry.atoms import Axis, Cause, Layout
from slipstream.symmetry.axis_rules.registry import (
    MAP,
    Call,
    Rule,
    UnsupportedError,
    Value,
)
from slipstream.symmetry.axis_rules.table import find_rule
from slipstream.symmetry.capture import Capture, ExampleInput, capture
from slipstream.symmetry.eval_copy import evaluation_copy
from slipstream.symmetry.narrow_model import proven_alike, twin_of
from slipstream.symmetry.neuron_groups import Block, NeuronGroup, NeuronGroups, Pin
from slipstream.symmetry.parents import Independence, settle
from slipstream.symmetry.proof import check
from slipstream.symmetry.signs import Equation, pin_new, signed_runs, with_signs
from slipstream.weights import weights_of

INPUT = Cause("input", "", "the order of the model's inputs is given")
OUTPUT = Cause("output", "", "the order of the model's outputs is given")
CONSTANT = Cause("constant", "", "a tensor that is no parameter and no persistent buffer")
UNUSED = Cause("unused", "", "not used in the forward pass, so nothing says what moves with it")
INTEGERS = Cause("integers", "", "a buffer of whole numbers counts or points to places")
MISSING = object()  # a tensor of which the tracer tells nothing


def find_neuron_groups(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    signs: bool = True,
    prove: bool = True,
    seed: int = 0,
) -> NeuronGroups:
    """Find which neurons of `model` may change places without changing its function.

    The model is traced in evaluation mode, without computing anything. Every axis of every value
    is followed through the operators, which tie axes, regroup them, or pin them; an operator
    without a rule pins all it touches and is listed in `pins`. Model and input stay as they are.

    Args:
        model: Any module; it is left as it is.
        example_input: A tensor, a tuple of arguments, or a dictionary of keyword arguments.
        signs: Find also which neurons may change their sign: behind an RMSNorm, a tanh, or nothing
            but linear maps. SGD and Adam train a network with other signs alike.
        prove: Evaluate the model with and without a permutation of the groups, in float64, and
            move the groups that change the output, or cannot be tested, to `dropped`. A model on
            the meta device is proven on a narrow twin of the same configuration.
        seed: Of the proof's permutations and of its disturbed weights.

    Returns:
        The groups in the order of the forward pass, parents before children.

    Raises:
        ValueError: If the model does not accept the input, if no tracer takes the model, if two
            evaluations of it differ, or if it is on the meta device and no twin can prove it.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> groups = find_neuron_groups(model, torch.ones(5, 4))
        >>> [(block.tensor, block.axis) for block in groups.blocks_of("0.weight:0")]
        [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]
    """
    with evaluation_copy(model) as replica:
        captured, weights = capture(replica, example_input), weights_of(model)
    flow = _Flow({name: _weight_axes(value) for name, value in weights.items()})
    _follow(captured, weights, flow)
    groups = _collect(flow)
    if signs:
        found = signed_runs(groups, weights)
        flow = _Flow(dict(found.layouts), equations=[])
        _follow(captured, weights, flow)
        groups = with_signs(found, flow.equations or ())
    if prove and any(value.is_meta for value in weights.values()):
        return _prove_by_twin(model, groups, signs=signs, seed=seed)
    return check(model, groups, example_input, seed=seed) if prove else groups


def _prove_by_twin(
    model: nn.Module, groups: NeuronGroups, *, signs: bool, seed: int
) -> NeuronGroups:
    """The groups of a model without numbers, proven on a narrow one of its configuration."""
    twin = twin_of(model)
    inputs = example_input_for(twin)
    found = find_neuron_groups(twin, inputs, signs=signs, prove=False)
    return proven_alike(groups, found, check(twin, found, inputs, seed=seed))


@dataclass
class _Flow:
    """The axes of everything, as far as they have been followed."""

    weights: dict[str, Layout]  # of every weight of the model
    used: dict[str, None] = field(default_factory=dict)  # weights in the order of their first use
    values: dict[torch.fx.Node, Any] = field(default_factory=dict)  # nodes to `Value`s, or lists
    independences: list[Independence] = field(default_factory=list)
    unsupported: dict[Cause, None] = field(default_factory=dict)
    equations: list[Equation] | None = None  # while signs are followed, not orders
    written: set[torch.fx.Node] = field(default_factory=set)  # nodes whose places may be written to


def _follow(captured: Capture, weights: Mapping[str, Tensor], flow: _Flow) -> None:
    """Run the rules over the graph."""
    _tie_shared(flow, weights)
    flow.written.update(_written_to(captured.graph))
    for node in captured.graph.nodes:
        if node.op == "call_function":
            flow.values[node] = _result_of(node, flow)
            names = (captured.weights.get(argument) for argument in node.all_input_nodes)
            flow.used.update(dict.fromkeys(name for name in names if name is not None))
        elif node.op == "output":
            _pin_all(torch.fx.map_arg(node.args[0], flow.values.__getitem__), OUTPUT)
        elif node in captured.weights:
            flow.values[node] = Value(flow.weights[captured.weights[node]])
        else:
            module = captured.constants.get(node, "").rpartition(".")[0]
            given = node.op == "placeholder" and node not in captured.constants
            cause = INPUT if given else replace(CONSTANT, where=module)
            flow.values[node] = _fixed_values(node.meta.get("val", MISSING), cause)
    for name, layout in flow.weights.items():
        if name not in flow.used:
            _pin_all(Value(layout), UNUSED)


def _weight_axes(value: Tensor) -> Layout:
    if _has_signs(value) or value.dtype == torch.bool:
        axes = tuple(atoms.free(size) for size in value.shape)
        if value.dim() == 3:  # a stack of matrices: the units of each may have their own order
            atoms.propose(axes[0], axes[1:])
        return axes
    return tuple(atoms.fixed(size, INTEGERS) for size in value.shape)


def _tie_shared(flow: _Flow, weights: Mapping[str, Tensor]) -> None:
    """Tie parameters that are different objects over the same memory."""
    first: dict[tuple[Any, ...], str] = {}
    for name, value in weights.items():
        if value.device.type != "meta" and value.numel() > 1:
            place = (value.data_ptr(), value.shape, value.stride())
            known = first.setdefault(place, name)
            for axis, other in zip(flow.weights[known], flow.weights[name], strict=True):
                atoms.tie(axis, other, OUTPUT)


def _written_to(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """The nodes that an in-place operator writes to, and whatever they might be views of."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            for argument, given in zip(node.target._schema.arguments, node.args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    while isinstance(given, torch.fx.Node):
                        yield given
                        given = next(iter(given.all_input_nodes), None)


def _result_of(node: torch.fx.Node, flow: _Flow) -> Any:
    """The axes of what a node computes; of nothing but fixed places if no rule says more."""
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


def _apply_rule(node: torch.fx.Node, arguments: Any, outputs: Any, flow: _Flow) -> Any:
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
    call = Call(_operator_of(node), _where(node), bound, shapes, flow.independences, flow.equations)
    kept = _settle_numbers(call, rule)
    try:
        found: Any = rule.apply(call)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UnsupportedError(f"its rule does not cover this use: {error}") from error
    values = [
        item if isinstance(item, Value) else Value(item, points_to=kept)
        for item in (found if isinstance(found, list) else [found])
    ]
    if tuple(value.shape for value in values) != shapes:
        raise UnsupportedError(f"its rule expects other shapes than {shapes}")
    if flow.equations is not None:
        pin_new((value.axes for value in values), call.tensors(), flow.equations)
        _keep_written(call, target._schema, values[0])
    return values if isinstance(found, list) else values[0]


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
        call.pin(axis, "it computes with the numbers of places on this axis")
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


def _collect(flow: _Flow) -> NeuronGroups:
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


def _pins(flow: _Flow, weights: Mapping[str, Layout]) -> tuple[Pin, ...]:
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
        # That a flattened map has places is nothing to report, unless nothing else is there.
        if atoms.is_fixed((product,)) or (atom.cause and atom.cause.reason != MAP)
    )
    return [cause for cause in causes if cause is not None and cause is not atoms.POSITIONS]
