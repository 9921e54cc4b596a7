"""Operators that take one axis, or several, together, or that see an order along an axis."""

from slipstream.symmetry.atoms import Axis, Layout
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, rule


@rule("prod amax amin aminmax all any var std var_mean std_mean logsumexp")
@rule("norm linalg_vector_norm max min median nanmedian count_nonzero")
@rule("sum mean nansum nanmean", signs=True)
def reduction(call: Call) -> Layout | list[Layout]:
    """A symmetric function of all places of the reduced axes."""
    axes = call.axes("self", "x")
    dims = call["dim"]
    reduced = _dims(dims, len(axes)) if dims is not None else []
    reduced = reduced or list(range(len(axes)))
    for dim in reduced:
        call.unsigned(axes[dim])
    result = _without(axes, reduced, keep=bool(call["keepdim"]))
    return result if len(call.shapes) == 1 else [result] * len(call.shapes)


@rule("max.dim", "min.dim", "median.dim", "mode", "argmax", "argmin", "kthvalue")
def choice(call: Call) -> Layout | list[Layout]:
    """The place that is chosen along an axis is told, so the axis cannot move."""
    axes = call.axes("self")
    if call["dim"] is None:
        raise UnsupportedError("it tells the place of an element")
    chosen = _dims(call["dim"], len(axes))
    for dim in chosen:
        call.pin(axes[dim], "it tells places along this axis")
    result = _without(axes, chosen, keep=bool(call["keepdim"]))
    return result if len(call.shapes) == 1 else [result] * len(call.shapes)


@rule("cumprod", "logcumsumexp")
@rule("cumsum", "flip", "roll", signs=True)
def ordered(call: Call) -> Layout:
    """The result depends on the order along an axis, which cannot move then."""
    axes = call.axes("self")
    if not (dims := _dims(call["dim"] if call["dim"] is not None else call["dims"], len(axes))):
        raise UnsupportedError("it acts on all axes as if they were one")
    for dim in dims:
        call.pin(axes[dim], "it depends on the order along this axis")
    return axes


def _dims(dims: int | list[int], rank: int) -> list[int]:
    listed = [dims] if isinstance(dims, int) else list(dims)
    return [dim % rank for dim in listed] if rank else []


def _without(axes: Layout, reduced: list[int], *, keep: bool) -> Layout:
    one: Axis = ((),)
    kept = [one if number in reduced else axis for number, axis in enumerate(axes)]
    return tuple(a for n, a in enumerate(kept) if keep or n not in reduced)
