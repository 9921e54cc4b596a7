"""Whether entries of a tensor may be equal, so that the first one of them is the largest.

A network with `x.relu().argmax()` depends on the order of the units that are zero together.
"""

import operator
from collections.abc import Callable

import torch
from torch import Tensor

# What gives many different values the same one.
_FLAT = frozenset({
    *("relu", "relu6", "threshold", "clamp", "clamp_min", "clamp_max", "clip", "hardtanh"),
    *("hardsigmoid", "hardswish", "hardshrink", "softshrink", "sign", "sgn", "heaviside"),
    *("round", "floor", "ceil", "trunc", "floor_divide", "one_hot", "maximum", "minimum"),
    *("zeros_like", "ones_like", "full_like"),
})  # fmt: skip
# What mixes entries with weights: results are equal by chance only.
_MIXING = frozenset({
    *("linear", "addmm", "mm", "bmm", "matmul", "mv", "dot", "einsum", "addmv", "baddbmm"),
    *("bilinear", "convolution", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("layer_norm", "native_layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm"),
    *("scaled_dot_product_attention", "lstm", "gru", "lstm_cell", "gru_cell"),
    *("rnn_tanh_cell", "rnn_relu_cell", "embedding", "embedding_bag"),
})  # fmt: skip
_ADDING = frozenset({"add", "sub", "rsub"})  # something that differs makes sums differ
# A mask of what is compared with a bound makes those beyond it equal; one of what was chosen, as
# experts are, leaves the ranking to the others.
_COMPARING = frozenset({"eq", "ne", "gt", "ge", "lt", "le", "isclose"})


def may_tie(node: torch.fx.Node, name: Callable[[torch.fx.Node], str]) -> bool:
    """Return whether entries of what a node computes may be equal, and not by chance.

    Args:
        node: Computes a tensor.
        name: Returns the name of a node's operator.

    Returns:
        False where the operators that led to it exclude that.
    """
    if not _is_floating(node):
        return True
    ties: dict[torch.fx.Node, bool] = {}
    for here in node.graph.nodes:
        ties[here] = here.op == "call_function" and _ties(here, name(here), ties)
        if here is node:
            break
    return ties[node]


def _ties(node: torch.fx.Node, name: str, ties: dict[torch.fx.Node, bool]) -> bool:
    """Whether numbers are equal; of a mask, whether it makes numbers equal."""
    masks = [one for one in node.all_input_nodes if _is_mask(one)]
    if _is_mask(node):
        return name in _COMPARING or any(ties[one] for one in masks)
    if name in _FLAT:
        return True
    if name in _MIXING:
        return False
    numbers = [one for one in node.all_input_nodes if _is_floating(one)]
    given = [ties[one] for one in (*numbers, *masks)]
    if not given:
        return bool(node.all_input_nodes)  # whole numbers
    return all(given) if name in _ADDING else any(given)


def _is_mask(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.bool


def _is_floating(node: torch.fx.Node) -> bool:
    """Whether it computes numbers of floating point, or several tensors."""
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex()


def number_is_used(node: torch.fx.Node) -> bool:
    """Return whether anything reads the positions that a ranking tells, beside its values."""
    if isinstance(node.meta.get("val"), Tensor):
        return bool(node.users)
    return any(
        user.target is not operator.getitem or (user.args[1] == 1 and bool(user.users))
        for user in node.users
    )
