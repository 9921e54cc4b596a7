"""Operators that act position by position, with broadcasting."""

from functools import reduce

from slipstream.symmetry.atoms import Axis, Layout, length
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, Value, rule


# Operators that PyTorch tags as pointwise come here without being listed; odd ones keep signs.
@rule("hardswish log_sigmoid rrelu threshold where clamp max.other min.other copy fill polar")
@rule("__and __or __xor __lshift __rshift")
@rule("dropout alpha_dropout feature_dropout feature_alpha_dropout", signs=True)
@rule("neg negative sign sgn tanh sinh asinh arcsinh atanh arctanh", signs=True)
@rule("sin tan asin arcsin atan arctan erf erfinv trunc fix round", signs=True)
@rule("softsign tanhshrink softshrink hardshrink reciprocal", signs=True)
def broadcast(call: Call) -> Layout:
    """Tie the axes that meet; an axis of one position meets any axis freely."""
    if call["train"] or call["training"]:
        raise UnsupportedError("it draws random numbers")
    return align(call, call.tensors())


def align(call: Call, layouts: list[Layout]) -> Layout:
    """Tie the axes of several tensors that meet, aligned at the last: the tensors are added."""
    return tuple(_add(call, axes) for axes in _meeting(layouts))


def scale(call: Call, layouts: list[Layout]) -> Layout:
    """Tie the axes of several tensors that meet, aligned at the last: they are multiplied."""
    # A vector among larger tensors is a gain. It could change its sign with the weights before or
    # behind it, but trained gains hardly do, so that this would only let a matching err.
    vectors = [[axis for axis in axes if length(axis) != 1] for axes in layouts]
    if max(map(len, vectors)) > 1:
        for axis in (wide[0] for wide in vectors if len(wide) == 1):
            call.unsigned(axis)
    return tuple(_multiply(call, axes) for axes in _meeting(layouts))


@rule("complex", signs=True)
def as_complex(call: Call) -> Layout:
    """A real and an imaginary part."""
    return align(call, call.tensors())


@rule("add sub subtract rsub", signs=True)
def add(call: Call) -> Layout:
    """A sum or a difference, of tensors or with a constant."""
    axes = align(call, call.tensors())
    if not isinstance(call["other"], Value):
        _without_signs(call, axes)
    return axes


@rule("mul multiply div.Tensor div.Scalar divide.Tensor divide.Scalar true_divide", signs=True)
def product(call: Call) -> Layout:
    """A product or a quotient, of tensors or with a constant."""
    return scale(call, call.tensors())


@rule("masked_fill", signs=True)
def masked_fill(call: Call) -> Layout:
    """One number wherever the mask says so."""
    axes, value = call.axes("self"), call["value"]
    if isinstance(value, Value) or value != 0:
        _without_signs(call, axes)
    return scale(call, [call.axes("mask"), axes])


@rule("where.self where.ScalarSelf where.ScalarOther", signs=True)
def where(call: Call) -> Layout:
    """One of two tensors or constants at every position."""
    options = [call[name] for name in ("self", "other")]
    axes = align(call, [option.axes for option in options if isinstance(option, Value)])
    if not all(isinstance(option, Value) for option in options):
        _without_signs(call, axes)
    return scale(call, [call.axes("condition"), axes])


@rule("abs absolute square cos cosh", signs=True)
def even(call: Call) -> Layout:
    """The same for both signs, as a product of a tensor with itself is."""
    return tuple(call.multiply(axis, axis) for axis in call.axes("self"))


@rule("pow.Tensor_Scalar", signs=True)
def power(call: Call) -> Layout:
    """An even, an odd, or a broken power."""
    axes, exponent = call.axes("self"), call["exponent"]
    if exponent % 2 == 0:
        return even(call)
    if exponent % 2 != 1:
        _without_signs(call, axes)
    return axes


@rule("real imag conj _conj conj_physical _conj_physical _neg_view", signs=True)
@rule("alias clone contiguous detach lift_fresh lift_fresh_copy lift", signs=True, keeps=True)
@rule("to _to_copy type_as resolve_conj resolve_neg", signs=True, keeps=True)
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


@rule("glu", signs=True)
def glu(call: Call) -> Layout:
    """Tie the two halves of the gated axis."""
    axes, dim = call.axes("self"), call["dim"]
    dim %= len(axes)
    value, gate = call.cut(axes[dim], length(axes[dim]) // 2)
    for axis in (*axes[:dim], gate, *axes[dim + 1 :]):
        call.unsigned(axis)
    return (*axes[:dim], call.multiply(value, gate), *axes[dim + 1 :])


def _meeting(layouts: list[Layout]) -> list[list[Axis]]:
    """For each axis of the result, the axis of every tensor; one of one position if it has none."""
    rank = max(map(len, layouts))
    one: Axis = ((),)
    padded = [(one,) * (rank - len(axes)) + axes for axes in layouts]
    return [list(axes) for axes in zip(*padded, strict=True)]


def _without_signs(call: Call, axes: Layout) -> None:
    for axis in axes:
        call.unsigned(axis)


def _add(call: Call, axes: list[Axis]) -> Axis:
    wide = [axis for axis in axes if length(axis) != 1]
    for axis in wide[1:]:
        call.tie(wide[0], axis)
    if wide and len(wide) < len(axes):
        call.unsigned(wide[0])  # the same number is added at all positions of this axis
    return wide[0] if wide else ((),)


def _multiply(call: Call, axes: list[Axis]) -> Axis:
    wide = [axis for axis in axes if length(axis) != 1]
    return reduce(call.multiply, wide) if wide else ((),)
