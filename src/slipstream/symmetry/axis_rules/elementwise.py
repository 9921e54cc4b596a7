"""Operators that act place by place, with broadcasting."""

from slipstream.symmetry.atoms import Axis, Layout, length
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, rule


# Operators that PyTorch tags as pointwise come here without being listed.
@rule("hardswish dropout alpha_dropout feature_dropout feature_alpha_dropout log_sigmoid")
@rule("softsign tanhshrink rrelu threshold where clamp max.other min.other copy fill")
def broadcast(call: Call) -> Layout:
    """Tie the axes that meet; an axis of one place meets any axis freely."""
    if call["train"] or call["training"]:
        raise UnsupportedError("it draws random numbers")
    return align(call, call.tensors())


def align(call: Call, layouts: list[Layout]) -> Layout:
    """Tie the axes of several tensors that meet, aligned at the last."""
    rank = max(map(len, layouts))
    return tuple(
        _meet(call, [axes[n - rank] for axes in layouts if len(axes) >= rank - n])
        for n in range(rank)
    )


@rule("alias clone contiguous detach lift_fresh lift_fresh_copy lift to _to_copy type_as")
@rule("resolve_conj resolve_neg")
def copy(call: Call) -> Layout:
    """Pass the axes on."""
    return call.tensors()[0]


@rule("prelu")
def prelu(call: Call) -> Layout:
    """Tie the slopes, if there is one for each channel, with the channels."""
    axes, (slopes,) = call.axes("self"), call.axes("weight")
    if length(slopes) > 1:
        call.tie(axes[1], slopes)
    return axes


@rule("glu")
def glu(call: Call) -> Layout:
    """Tie the two halves of the gated axis."""
    axes, dim = call.axes("self"), call["dim"]
    dim %= len(axes)
    value, gate = call.cut(axes[dim], length(axes[dim]) // 2)
    call.tie(value, gate)
    return (*axes[:dim], value, *axes[dim + 1 :])


def _meet(call: Call, axes: list[Axis]) -> Axis:
    wide = [axis for axis in axes if length(axis) != 1]
    for axis in wide[1:]:
        call.tie(wide[0], axis)
    return wide[0] if wide else ((),)
