"""Operators that take one axis, or several, together, or that see an order along an axis."""

from slipstream.symmetry.atoms import Axis, Layout
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, rule


@rule("prod amax amin aminmax all any var std var_mean std_mean logsumexp")
@rule("max min median nanmedian count_nonzero")
@rule("sum mean nansum nanmean", signs=True)
def reduction(call: Call) -> Layout | list[Layout]:
    """A symmetric function of all places of the reduced axes."""
    return _reduced(call, call.axes("self", "x"))


@rule("norm linalg_vector_norm", signs=True)
def size(call: Call) -> Layout | list[Layout]:
    """The size of numbers, whatever their signs."""
    axes = call.axes("self", "x")
    return _reduced(call, tuple(call.multiply(axis, axis) for axis in axes))


def _reduced(call: Call, axes: Layout) -> Layout | list[Layout]:
    dims = call["dim"]
    reduced = dims_of(dims, len(axes)) if dims is not None else []
    reduced = reduced or list(range(len(axes)))
    for dim in reduced:
        call.unsigned(axes[dim])
    result = without(axes, reduced, keep=bool(call["keepdim"]))
    return result if len(call.shapes) == 1 else [result] * len(call.shapes)


@rule("diff")
def difference(call: Call) -> Layout:
    """Each place along an axis with the next one."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    call.pin(axes[dim], "it takes differences of neighbours")
    return (*axes[:dim], *call.places([call.shapes[0][dim]]), *axes[dim + 1 :])


@rule("triu", "tril")
def triangle(call: Call) -> Layout:
    """Which entries stay depends on the places on the last two axes."""
    axes = call.axes("self")
    for axis in axes[-2:]:
        call.pin(axis, "a triangle is cut out along this axis")
    return axes


@rule("cumprod", "logcumsumexp")
@rule("cumsum", "flip", "roll", signs=True)
def ordered(call: Call) -> Layout:
    """The result depends on the order along an axis, which cannot move then."""
    axes = call.axes("self")
    if not (dims := dims_of(call["dim"] if call["dim"] is not None else call["dims"], len(axes))):
        raise UnsupportedError("it acts on all axes as if they were one")
    for dim in dims:
        call.pin(axes[dim], "it depends on the order along this axis")
    return axes


def dims_of(dims: int | list[int], rank: int) -> list[int]:
    """Return one or several dimensions, counted from the front."""
    listed = [dims] if isinstance(dims, int) else list(dims)
    return [dim % rank for dim in listed] if rank else []


def without(axes: Layout, reduced: list[int], *, keep: bool) -> Layout:
    """Return the axes that are left, or of one place each where they are kept."""
    one: Axis = ((),)
    kept = [one if number in reduced else axis for number, axis in enumerate(axes)]
    return tuple(a for n, a in enumerate(kept) if keep or n not in reduced)
