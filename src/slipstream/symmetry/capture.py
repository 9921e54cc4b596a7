"""A model as a graph of ATen operators over its weights, with the module each operator ran in."""

import inspect
import logging
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from slipstream.pretrained import lacking_input
from slipstream.symmetry.decompositions import decompositions
from slipstream.symmetry.eval_copy import in_mode, traceable
from slipstream.symmetry.outputs import OutputError, left_out, output_tensors
from slipstream.symmetry.selections import MANY, drop_unused_, is_writing, skip_idle_, take_early_
from slipstream.weights import weights_of

ExampleInput = Any  # a tensor, a tuple of arguments, or a dictionary of keyword arguments


@dataclass(frozen=True)
class Capture:
    """What a tracer saw of a model."""

    graph: torch.fx.Graph
    weights: Mapping[torch.fx.Node, str]  # the placeholders that are weights, by name
    constants: Mapping[torch.fx.Node, str]  # those that are buffers outside of the state dict
    held: tuple[Tensor, ...] = ()  # the values of constants, and of tensors that are attributes
    # Of constants, the lengths of the runs of equal positions along every axis: a bias of zeros
    # that is no parameter, or a factor for each part of a fused projection
    runs: Mapping[torch.fx.Node, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    not_counted: tuple[str, ...] = ()  # what the model returned besides its outputs


def arguments_of(example_input: ExampleInput) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that `example_input` stands for.

    Example:
        >>> arguments_of({"mask": None})
        ((), {'mask': None})
    """
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    if isinstance(example_input, tuple | list):
        return tuple(example_input), {}
    return (example_input,), {}


def call_with(model: nn.Module, tensors: Mapping[str, Tensor], example_input: ExampleInput) -> Any:
    """Return what `model` returns for `example_input` with `tensors` for its own."""
    args, kwargs = arguments_of(example_input)
    return torch.func.functional_call(model, dict(tensors), args, kwargs)


def capture(model: nn.Module, example_input: ExampleInput, *, training: bool = False) -> Capture:
    """Trace `model` without computing anything.

    Args:
        model: Any module.
        example_input: A tensor, a tuple of arguments, or a dictionary of keyword arguments.
        training: In training mode, where dropout and other noise are left out.

    Returns:
        The graph of high-level ATen operators; nothing is decomposed.

    Raises:
        OutputError: If the model returns something in which no tensors can be found.
        ValueError: If the model does not accept the input, or cannot be traced.
    """
    failures: list[Exception] = []
    with in_mode(model, training=training):
        for tracer in (_by_make_fx, _by_export, _below_autograd):
            try:
                with _silent(logging.getLogger("torch._subclasses.fake_tensor")), traceable(model):
                    captured = tracer(model, example_input)
                _check_shapes_known(captured.graph)
                _check_no_transforms(captured.graph)
                break
            except OutputError:
                raise
            except Exception as error:  # ruff: ignore[blind-except] - tracers fail in many ways
                failures.append(error)
        else:
            raise ValueError(_refusal(model, example_input, failures[0])) from failures[0]
    skip_idle_(captured.graph)
    take_early_(captured.graph)
    _return_what_is_stored_(captured)
    drop_unused_(captured.graph)
    return captured


def _return_what_is_stored_(captured: Capture) -> None:
    """Let the graph return what is computed and not returned: a stored loss, an own head."""
    # Of other weights than the outputs, or a single number; anything else may be inside the model.
    output = captured.graph.output_node()
    live = _above([output, *filter(is_writing, captured.graph.nodes)])
    seen = {captured.weights.get(node) for node in live}
    stored = []
    for node in reversed(list(captured.graph.nodes)):
        if node.op == "call_function" and node not in live:
            above = _above([node])
            names = {captured.weights[n] for n in above if n in captured.weights}
            live |= above
            value = node.meta.get("val")
            if isinstance(value, Tensor) and (names - seen or (names and _is_a_number(value))):
                stored.append(node)
                seen |= names
    output.args = ([*tree_flatten(output.args[0])[0], *stored],)


def _is_a_number(value: Tensor) -> bool:
    return value.dim() == 0 and value.is_floating_point()


def _above(nodes: Iterable[torch.fx.Node]) -> set[torch.fx.Node]:
    """The nodes, and all that they are computed from."""
    found: set[torch.fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def same_graph(first: Capture, second: Capture) -> bool:
    """Return whether two captures of a model are of the same operators on the same weights."""
    return _text_of(first) == _text_of(second)


def _text_of(captured: Capture) -> list[tuple[str, ...]]:
    number = {node: str(n) for n, node in enumerate(captured.graph.nodes)}
    return [
        (
            node.op,
            str(node.target) if node.op == "call_function" else "",
            captured.weights.get(node, ""),
            str(torch.fx.map_arg((node.args, dict(node.kwargs)), number.__getitem__)),
        )
        for node in captured.graph.nodes
    ]


def _check_shapes_known(graph: torch.fx.Graph) -> None:
    """A shape that depends on values is a symbol, of which no axis can be made."""
    for node in graph.nodes:
        for leaf in tree_flatten(node.meta.get("val"))[0]:
            sizes = leaf.shape if isinstance(leaf, Tensor) else (leaf,)
            if any(
                isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) for size in sizes
            ):
                raise ValueError(
                    f"the shape of what {node.target} returns depends on the values of a tensor, "
                    "as with a boolean mask, nonzero or unique"
                )


def _check_no_transforms(graph: torch.fx.Graph) -> None:
    """What torch.func does to a batch, or to gradients, is seen below it, as plain operators."""
    for node in graph.nodes:
        if str(getattr(node.target, "__module__", "")).startswith("torch._functorch"):
            raise ValueError(f"{node.name} of torch.func is no operator.")


def _below_autograd(model: nn.Module, example_input: ExampleInput) -> Capture:
    """Trace what is computed once gradients and torch.func have done their work."""
    return _by_make_fx(model, example_input, pre_dispatch=False)


def _by_make_fx(
    model: nn.Module, example_input: ExampleInput, *, pre_dispatch: bool = True
) -> Capture:
    tensors = dict(weights_of(model))
    names = tuple(tensors)
    tensors |= {name: b for name, b in model.named_buffers() if name not in tensors}
    leaves, structure = tree_flatten(example_input)
    if any(tensor.is_meta for tensor in tensors.values()):
        tensors, leaves = _as_if_on_cpu((tensors, leaves))
    places = [number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    not_counted: list[str] = []

    def run(*values: Tensor) -> Any:
        given = leaves.copy()
        for place, value in zip(places, values[len(tensors) :], strict=True):
            given[place] = value
        own = dict(zip(tensors, values, strict=False))
        result = call_with(model, own, tree_unflatten(given, structure))
        not_counted[:] = left_out(result) if isinstance(result, Mapping) else []
        return list(output_tensors(result).values())

    trace = make_fx(
        run,
        decomposition_table=decompositions(),
        tracing_mode="fake",
        pre_dispatch=pre_dispatch,
        _allow_non_fake_inputs=True,
    )
    with torch.no_grad(), _noting_modules(model):
        graph = trace(*tensors.values(), *(leaves[place] for place in places)).graph
    own = dict(zip(graph.find_nodes(op="placeholder"), tensors, strict=False))
    constants = {node: tensors[name] for node, name in own.items() if name not in names}
    held = [value for node, value in constants.items() if node.users]
    attributes = [getattr(graph.owning_module, n.target) for n in graph.find_nodes(op="get_attr")]
    held += [value for value in attributes if isinstance(value, Tensor)]
    if any(map(_was_computed, attributes)):
        raise ValueError("an operator hides from the tracer what its result depends on.")
    found = _captured(graph, own, names)
    runs = {
        node: tuple(_runs(value, dim) for dim in range(value.dim()))
        for node, value in constants.items()
        if node.users and not value.is_meta and not isinstance(value, FakeTensor)
    }
    return replace(found, held=tuple(held), runs=runs, not_counted=tuple(not_counted))


def _runs(value: Tensor, dim: int) -> tuple[int, ...]:
    """The lengths of the runs of equal positions along an axis; of one each if there are many."""
    size = value.shape[dim]
    if size < 2 or not value.numel():
        return (1,) * size
    changes = (value.narrow(dim, 1, size - 1) != value.narrow(dim, 0, size - 1)).movedim(dim, 0)
    starts = [0, *(changes.reshape(size - 1, -1).any(1).nonzero().flatten() + 1).tolist(), size]
    if len(starts) > MANY:
        return (1,) * size
    return tuple(end - start for start, end in pairwise(starts))


def _was_computed(value: Any) -> bool:
    """Whether a constant of the graph is no constant: it was computed while the model ran."""
    return isinstance(value, FakeTensor) or (
        isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def _as_if_on_cpu(tree: Any) -> Any:
    """Shapes without values of tensors on the meta device, where a model finds its input too."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def imagine(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        with mode:
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype)

    return tree_map(imagine, tree)


class _Returning(nn.Module):
    """A model that returns nothing but its output tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return list(output_tensors(self.model(*args, **kwargs)).values())


def _by_export(model: nn.Module, example_input: ExampleInput) -> Capture:
    args, kwargs = arguments_of(example_input)
    wrapper = _Returning(model)
    wrapper.training = model.training
    program = torch.export.export(wrapper, args, kwargs, strict=False)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {node: name.removeprefix("model.") for node, name in names.items()}
    canonical = {id(value): name for name, value in _all_tensors(model, remove_duplicate=True)}
    known = {
        name: canonical[id(value)] for name, value in _all_tensors(model, remove_duplicate=False)
    }
    own = {
        node: known[names[node.name]]
        for node in program.graph.find_nodes(op="placeholder")
        if node.name in names
    }
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        path = next((path for path, _ in reversed(stack.values())), "")
        node.meta["custom"] = {"where": path.removeprefix("model").removeprefix(".")}
    return _captured(program.graph, own, weights_of(model))


def _captured(
    graph: torch.fx.Graph, own: Mapping[torch.fx.Node, str], weights: Container[str]
) -> Capture:
    return Capture(
        graph,
        weights={node: name for node, name in own.items() if name in weights},
        constants={node: name for node, name in own.items() if name not in weights},
    )


def _all_tensors(model: nn.Module, *, remove_duplicate: bool) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=remove_duplicate)
    yield from model.named_buffers(remove_duplicate=remove_duplicate)


@contextmanager
def _noting_modules(model: nn.Module) -> Generator[None]:
    """Write the path of the running module into every node that a tracer makes."""
    paths = [""]

    def entering(path: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            paths.append(path)
            traceback.current_meta["custom"] = {"where": path}

        return hook

    def leave(*_: object) -> None:
        paths.pop()
        traceback.current_meta["custom"] = {"where": paths[-1]}

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(entering(path), prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with traceback.preserve_node_meta():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _silent(logger: logging.Logger) -> Generator[None]:
    """Keep the tracer's own report of a failure off the screen: it is raised as well."""
    before = logger.disabled
    logger.disabled = True
    try:
        with redirect_stderr(StringIO()):  # torch.export prints all of its unfinished graph
            yield
    finally:
        logger.disabled = before


def _refusal(model: nn.Module, example_input: ExampleInput, failure: Exception) -> str:
    """What to tell the user: first of all whether the model accepts the input at all."""
    _check_runs(model, example_input)
    return (
        f"{type(model).__name__} cannot be traced: {_first_line(failure)} Most often a branch "
        "or a shape depends on the values of a tensor. Either move that out of `forward`, or write "
        "the neuron groups by hand: NeuronGroups.load('groups.json'), then check them with "
        "slipstream.symmetry.proof.check(model, groups, example_input)."
    )


def _check_runs(model: nn.Module, example_input: ExampleInput) -> None:
    args, kwargs = arguments_of(example_input)
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        names = ", ".join(inspect.signature(model.forward).parameters)
        raise ValueError(
            f"{type(model).__name__}.forward({names}) does not accept example_input "
            f"({_describe(example_input)}): {_first_line(error)} Several arguments are given as a "
            f"tuple, keyword arguments as a dictionary.{lacking_input(model, example_input)}"
        ) from error


def _describe(example_input: ExampleInput) -> str:
    leaves = tree_flatten(example_input)[0]
    shown = [str(tuple(leaf.shape)) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves]
    return f"{type(example_input).__name__}: {', '.join(shown)}"


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if text.endswith(".") else text + "."
