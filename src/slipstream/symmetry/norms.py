"""Normalisations whose gain can be moved into the linear layers behind them, found in the graph."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.symmetry.capture import Capture
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.weights import Weights

_NORMS = {"layer_norm", "rms_norm"}
_LINEAR = {"linear": 1, "matmul": 1, "mm": 1, "addmm": 2}  # which argument is the weight
# Operators that treat all features alike, or move them whole.
_ALIKE = {
    "view", "reshape", "flatten", "unflatten", "_unsafe_view", "permute", "transpose", "t", "mT",
    "numpy_T", "select", "slice", "unsqueeze", "squeeze", "expand", "clone", "contiguous", "to",
    "_to_copy", "type_as", "alias", "detach", "dropout", "mean", "sum", "getitem", "unbind",
    "split", "chunk", "index", "index_select", "movedim",
}  # fmt: skip


@dataclass(frozen=True)
class FoldableNorm:
    """A gain, and perhaps a bias, that linear layers can take in: `W (g x + b) = (W g) x + W b`."""

    gain: str
    readers: tuple[tuple[str, int], ...]  # the weights that read what it returns, along which axis
    bias: str | None = None
    biases: tuple[str, ...] = ()  # of the readers, if there is a bias to take in


class CannotFoldError(ValueError):
    """Says which gain cannot be moved into linear layers, and why."""


def foldable_norms(captured: Capture, groups: NeuronGroups, name: str) -> tuple[FoldableNorm, ...]:
    """Find the normalisations that multiply the neurons of a group by a gain each.

    Args:
        captured: The model's graph.
        groups: Its neuron groups.
        name: Of a group.

    Returns:
        The normalisations, in the order of the graph.

    Raises:
        CannotFoldError: If the gain of one is not followed by linear layers alone.
    """
    wanted = {b.tensor for b in groups.blocks_of(name) if len(groups.shapes[b.tensor]) == 1}
    found: dict[str, _Norm] = {}
    for node, weight in captured.weights.items():
        if weight in wanted:
            for user in node.users:
                _add(found, captured, node, user)
    return tuple(_folded(captured, groups, name, norm) for norm in found.values())


def fold(weights: Weights, norms: Sequence[FoldableNorm]) -> dict[str, Tensor]:
    """Return the same function with gains of 1 and biases of 0."""
    return _moved(weights, norms, fold=True)


def unfold(weights: Weights, norms: Sequence[FoldableNorm], values: Weights) -> dict[str, Tensor]:
    """Return folded weights as the same function with the gains and biases in `values`."""
    return _moved({**weights, **values}, norms, fold=False)


def _moved(weights: Weights, norms: Sequence[FoldableNorm], *, fold: bool) -> dict[str, Tensor]:
    moved = dict(weights)
    for norm in norms:
        gain = weights[norm.gain]
        for number, (reader, axis) in enumerate(norm.readers):
            matrix = moved[reader]
            wide = gain.view([-1 if a == axis else 1 for a in range(matrix.dim())])
            moved[reader] = matrix * wide if fold else matrix / wide
            if norm.bias is not None:
                inner = torch.tensordot(
                    (matrix if fold else moved[reader]), weights[norm.bias], dims=([axis], [0])
                )
                sign = 1 if fold else -1
                moved[norm.biases[number]] = moved[norm.biases[number]] + sign * inner
        if fold:
            moved[norm.gain] = torch.ones_like(gain)
            if norm.bias is not None:
                moved[norm.bias] = torch.zeros_like(weights[norm.bias])
    return moved


@dataclass
class _Norm:
    gain: str
    bias: str | None
    outputs: list[torch.fx.Node]


def _add(
    found: dict[str, _Norm], captured: Capture, node: torch.fx.Node, user: torch.fx.Node
) -> None:
    """Note the normalisation, or product, that `user` is, if `node` is its gain."""
    weight, kind = captured.weights[node], _kind(user)
    if kind == "batch_norm":
        raise CannotFoldError(
            f"{weight!r} belongs to a batch normalisation, which takes each neuron by itself"
        )
    bias = None
    if kind in _NORMS:
        if len(user.args) < 3 or user.args[2] is not node:
            return
        if len(user.args) > 3 and isinstance(user.args[3], torch.fx.Node):
            bias = captured.weights[user.args[3]]
    elif kind != "mul":
        return
    found.setdefault(weight, _Norm(weight, bias, [])).outputs.append(user)


def _folded(captured: Capture, groups: NeuronGroups, name: str, norm: _Norm) -> FoldableNorm:
    linear: list[torch.fx.Node] = []
    for output in norm.outputs:
        linear += _linear_behind(output, norm.gain)
    readers: dict[str, tuple[int, str | None]] = {}
    for node in linear:
        weight, bias = _weight_of(captured, node), _bias_of(captured, node)
        if weight is None:
            raise _refusal(norm.gain, "is followed by a product with something else than a weight")
        _check_read_here(captured, weight, linear, norm.gain)
        if bias is not None:
            _check_read_here(captured, bias, linear, norm.gain)
        readers[weight] = (_axis(groups, name, weight, node, norm.gain), bias)
    if norm.bias is not None and (bare := [w for w, (_, bias) in readers.items() if bias is None]):
        raise _refusal(
            norm.gain, f"comes with the bias {norm.bias!r}, for which {bare[0]!r} has no bias"
        )
    places = tuple((weight, axis) for weight, (axis, _) in readers.items())
    if norm.bias is None:
        return FoldableNorm(norm.gain, places)
    biases = tuple(bias for _, bias in readers.values() if bias is not None)
    return FoldableNorm(norm.gain, places, norm.bias, biases)


def _linear_behind(output: torch.fx.Node, gain: str) -> Iterator[torch.fx.Node]:
    """The linear layers that read an output, through operators that treat all features alike."""
    waiting, seen = [output], {output}
    while waiting:
        node = waiting.pop(0)
        for user in node.users:
            kind = _kind(user)
            if kind in _LINEAR and user.args[_LINEAR[kind]] is not node:
                yield user
            elif kind not in _ALIKE:
                what = "the output of the model" if user.op == "output" else f"{kind}"
                raise _refusal(gain, f"is followed by {what}, not by linear layers alone")
            elif user not in seen:
                seen.add(user)
                waiting.append(user)


def _weight_of(captured: Capture, node: torch.fx.Node) -> str | None:
    return _named(captured, node.args[_LINEAR[_kind(node)]])


def _bias_of(captured: Capture, node: torch.fx.Node) -> str | None:
    place = {"linear": 2, "addmm": 0}.get(_kind(node))
    return None if place is None or len(node.args) <= place else _named(captured, node.args[place])


def _named(captured: Capture, node: object) -> str | None:
    """The weight that a node is, turned or not."""
    while isinstance(node, torch.fx.Node) and node not in captured.weights:
        if _kind(node) not in ("t", "transpose", "permute", "mT", "numpy_T", "to", "_to_copy"):
            return None
        node = node.args[0]
    return captured.weights[node] if isinstance(node, torch.fx.Node) else None


def _check_read_here(
    captured: Capture, weight: str, linear: Sequence[torch.fx.Node], gain: str
) -> None:
    """A weight that something else reads too would change there."""
    for node, name in captured.weights.items():
        waiting = list(node.users) if name == weight else []
        while waiting:
            user = waiting.pop()
            if user in linear:
                continue
            if _named(captured, user) != weight:
                raise _refusal(
                    gain,
                    f"would change {weight!r}, which {_kind(user)} uses too; give each its own "
                    "weights (untie them), which changes the architecture",
                )
            waiting += user.users


def _axis(groups: NeuronGroups, name: str, weight: str, node: torch.fx.Node, gain: str) -> int:
    """The axis of a weight along which it reads the neurons of the group."""
    blocks = [b for b in groups.blocks_on(weight) if b.factors == (name,)]
    if _kind(node) == "linear":
        blocks = [b for b in blocks if b.axis == 1]
    if len(blocks) != 1 or groups.shapes[weight][blocks[0].axis] != groups[name].size:
        raise _refusal(gain, f"is followed by {weight!r}, which lists other neurons too")
    return blocks[0].axis


def _refusal(gain: str, reason: str) -> CannotFoldError:
    return CannotFoldError(f"the gain {gain!r} cannot be moved into linear layers: it {reason}")


def _kind(node: torch.fx.Node) -> str:
    if node.op != "call_function":
        return node.op
    name = str(node.target).removeprefix("<built-in function ").removesuffix(">")
    return name.split(".")[1] if name.startswith("aten.") else name
