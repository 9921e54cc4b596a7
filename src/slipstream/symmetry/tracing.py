"""From a model to its neuron groups: trace it, follow the axes through every operator, prove it."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import Tensor, nn

from slipstream.pretrained import example_input_for, other_inputs_for, with_masks
from slipstream.symmetry.atoms import Layout
from slipstream.symmetry.capture import Capture, ExampleInput, capture, same_graph
from slipstream.symmetry.collecting import collect
from slipstream.symmetry.eval_copy import evaluation_copy
from slipstream.symmetry.following import Flow, follow, new_axes
from slipstream.symmetry.narrow_model import narrow_model, proven_alike
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.proof import check_found
from slipstream.symmetry.refusals import refuse_untraceable
from slipstream.symmetry.shared_memory import tie_shared
from slipstream.symmetry.signs import Equation, signed_runs, with_signs
from slipstream.symmetry.untouched import Memory, left_as_it_was
from slipstream.weights import unwrapped, weights_of

logger = logging.getLogger(__name__)
ONLY_EVALUATION = "the groups hold in evaluation mode: training mode could not be traced"


def find_neuron_groups(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    signs: bool = True,
    prove: bool = True,
    seed: int = 0,
) -> NeuronGroups:
    """Find which neurons of `model` are permutable: their order does not change its function.

    The model is traced in evaluation and in training mode, without computing anything. Every axis
    of every value is followed through the operators, which tie axes, regroup them, or pin them; an
    operator that has no rule, nor its parts, pins all it touches and is listed in `pins`. All
    tensors that the model returns count as its output. Model and input stay as they are.

    Args:
        model: Any module; it is left as it is.
        example_input: A tensor, a tuple of arguments, or a dictionary of keyword arguments.
        signs: Find also which neurons may change their sign: behind an RMSNorm, a tanh, or nothing
            but linear maps. SGD and Adam train a network with other signs alike.
        prove: Evaluate the model with and without a permutation of the groups, in float64, and
            move the groups that change the output, or cannot be tested, to `dropped`. A model on
            the meta device is proven on a narrow model of the same configuration.
        seed: Of the proof's permutations and of its disturbed weights.

    Returns:
        The groups in the order of the forward pass, parents before children. `caveats` says which
        calls they hold for, and what the example could not test.

    Raises:
        ValueError: If the model does not accept the input, if it cannot be traced, if two
            evaluations of it differ, or if it is on the meta device and no narrow model can prove
            it.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> groups = find_neuron_groups(model, torch.ones(5, 4))
        >>> [(block.tensor, block.axis) for block in groups.blocks_of("0.weight:0")]
        [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]
    """
    if isinstance(model, nn.Module):
        model = unwrapped(model)
    refuse_untraceable(model, example_input)
    groups, training = _found(model, example_input, signs=signs)
    if not prove:
        return groups
    if any(value.is_meta for value in weights_of(model).values()):
        return _prove_on_narrow_model(model, groups, signs=signs, seed=seed)
    return check_found(model, groups, example_input, seed=seed, training=training)


def _found(
    model: nn.Module, example_input: ExampleInput, *, signs: bool, constants: bool = True
) -> tuple[NeuronGroups, bool]:
    """What the rules find, and whether the model computes something else in training mode."""
    weights = weights_of(model)
    traces = _traces(model, example_input)
    if not constants:
        traces = replace(traces, captures=[replace(c, runs={}) for c in traces.captures])
    groups = replace(collect(traces.followed(new_axes(weights), None)), caveats=traces.caveats)
    if signs:
        found = signed_runs(groups, weights)
        flow = traces.followed(found.layouts, [])
        groups = with_signs(found, flow.equations or ())
    return groups, traces.training


def _prove_on_narrow_model(
    model: nn.Module, groups: NeuronGroups, *, signs: bool, seed: int
) -> NeuronGroups:
    """The groups of a model without values, proven on a narrow one of its configuration."""
    narrow = narrow_model(model)
    inputs = example_input_for(narrow)
    # Of a model without values, nothing says which of its constants are the same everywhere.
    found, _ = _found(narrow, inputs, signs=signs, constants=False)
    return proven_alike(groups, found, check_found(narrow, found, inputs, seed=seed))


@dataclass(frozen=True)
class _Traces:
    """What was seen of a model in its modes and with other optional inputs."""

    captures: Sequence[Capture]
    weights: Sequence[Mapping[str, Tensor]]  # of the model, and of its copy that was traced
    caveats: tuple[str, ...]
    training: bool  # whether the model computes something else in training mode

    def followed(self, layouts: Mapping[str, Layout], equations: list[Equation] | None) -> Flow:
        """Follow the rules through all graphs, from these axes of the weights."""
        held = [tensor for captured in self.captures for tensor in captured.held]
        for weights in self.weights:
            tie_shared(layouts, weights, held)
        flow = Flow(dict(layouts), equations=equations)
        follow(self.captures, flow)
        return flow


def _traces(model: nn.Module, example_input: ExampleInput) -> _Traces:
    with evaluation_copy(model) as replica:
        memory = Memory(replica)

        def trace(given: ExampleInput, *, training: bool = False) -> Capture:
            with left_as_it_was(memory):
                return capture(replica, given, training=training)

        try:
            captures = [trace(example_input)]
        except ValueError as refusal:
            if not (example_input := with_masks(model, example_input)):
                raise
            try:
                captures = [trace(example_input)]
            except ValueError:
                raise refusal from None  # of the input that the user gave
        caveats = _not_counted(captures[0])
        try:
            captures += _new([trace(example_input, training=True)], captures)
        except Exception as error:  # ruff: ignore[blind-except] - evaluation mode is enough
            caveats.append(f"{ONLY_EVALUATION}: {str(error)[:200]}")
        weights, training = weights_of(model), len(captures) > 1
        for other in other_inputs_for(model, example_input):
            if _unused(weights, captures):
                with suppress(Exception):
                    captures += _new([trace(other)], captures)
        if unused := _unused(weights, captures):
            caveats.append(_take_no_part(unused))
            logger.warning("%s: %s", type(model).__name__, "; ".join(caveats))
    return _Traces(captures, (weights, weights_of(replica)), tuple(caveats), training)


def _not_counted(captured: Capture) -> list[str]:
    names = ", ".join(captured.not_counted)
    return [f"{names} are not counted as outputs: groups may permute them"] if names else []


def _new(captures: Iterable[Capture], known: Iterable[Capture]) -> list[Capture]:
    """Those of which no graph is known yet."""
    return [new for new in captures if not any(same_graph(new, old) for old in known)]


def _unused(weights: Mapping[str, Tensor], captures: Iterable[Capture]) -> list[str]:
    used = {name for captured in captures for n, name in captured.weights.items() if n.users}
    return [n for n, value in weights.items() if n not in used and value.is_floating_point()]


def _take_no_part(unused: Sequence[str]) -> str:
    shown = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
    return (
        f"{shown} take no part in a call with this example, in neither mode: a call that uses them "
        "together with the neurons of a group may not keep its function"
    )
