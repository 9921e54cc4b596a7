"""Operators without a rule, written as operators that have one."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

from slipstream.symmetry.axis_rules.table import find_rule

aten = torch.ops.aten
FORWARD = (
    "native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_functional _batch_norm_with_update"
)


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return a table for `make_fx`, of operators without a rule that torch can take apart.

    Example:
        >>> torch.ops.aten.hstack.default in decompositions()
        True
    """
    table: dict[Any, Callable[..., Any]] = {
        **core_aten_decompositions(),
        **get_decompositions([getattr(aten, name) for name in FORWARD.split()]),
        **{operator: operator.decompose for operator in _composite()},
    }
    kept = {op: function for op, function in table.items() if _is_unknown(op)}
    return kept | {aten.convolution_backward.default: _convolution_backward}


def _is_unknown(operator: torch._ops.OpOverload) -> bool:
    """Whether no rule covers it; the variants for lists of tensors share a name, not a rule."""
    return find_rule(operator) is None or operator._schema.overload_name == "Sequence"


def _composite() -> Iterator[torch._ops.OpOverload]:
    """The operators that torch itself calls nothing but a sequence of others."""
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"):
        namespace, _, name = name.partition("::")
        base, _, overload = name.partition(".")
        packet = getattr(aten, base, None) if namespace == "aten" else None
        if packet is not None and (overload or "default") in packet.overloads():
            yield getattr(packet, overload or "default")


def _convolution_backward(
    slope: Tensor,
    given: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> Any:
    """The derivative by the input of a convolution is a convolution that is transposed."""
    if mask != [True, False, False]:
        return NotImplemented
    if transposed:
        back = aten.convolution(slope, weight, None, stride, padding, dilation, False, [0], groups)
        return back, None, None
    rest = [
        size - ((small - 1) * step - 2 * edge + wide * (kernel - 1) + 1)
        for size, small, step, edge, wide, kernel in zip(
            given.shape[2:],
            slope.shape[2:],
            stride,
            padding,
            dilation,
            weight.shape[2:],
            strict=True,
        )
    ]
    back = aten.convolution(slope, weight, None, stride, padding, dilation, True, rest, groups)
    return back, None, None
