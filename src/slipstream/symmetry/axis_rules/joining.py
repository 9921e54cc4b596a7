"""Operators that put axes one behind the other, or take pieces of them."""

from itertools import accumulate

from slipstream.symmetry.atoms import Axis, Layout, is_fixed, length, resolve, uniform
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, Value, rule


@rule("cat", "concat", "concatenate", signs=True)
def cat(call: Call) -> Layout:
    """One axis lists the positions of all, the others are shared."""
    # What has no position at all has been left over from an empty cache, or an empty remainder.
    full = [axes for axes in call.tensors() if all(map(length, axes))]
    first, *others = layouts = full or call.tensors()
    if any(len(axes) != len(first) for axes in others):
        raise UnsupportedError("its tensors differ in rank")
    dim = call["dim"] % len(first)
    for axes in others:
        for number, axis in enumerate(axes):
            if number != dim:
                call.tie(first[number], axis)
    return _replaced(first, dim, tuple(run for axes in layouts for run in axes[dim]))


@rule("stack", signs=True)
def stack(call: Call) -> Layout:
    """A new axis numbers the tensors, the others are shared."""
    first, *others = layouts = call.tensors()
    for axes in others:
        for axis, own in zip(first, axes, strict=True):
            call.tie(axis, own)
    dim = call["dim"] % (len(first) + 1)
    return (*first[:dim], *call.places([len(layouts)]), *first[dim:])


@rule("split chunk split_with_sizes tensor_split", signs=True, keeps=True)
@rule("unsafe_chunk unsafe_split", signs=True, keeps=True)
def split(call: Call) -> list[Layout]:
    """Consecutive pieces of an axis."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    sizes = [shape[dim] for shape in call.shapes]
    starts = [0, *accumulate(sizes)]
    return [
        _piece(call, axes, dim, start, size) for start, size in zip(starts, sizes, strict=False)
    ]


@rule("unbind", signs=True, keeps=True)
def unbind(call: Call) -> list[Layout]:
    """Every position of an axis alone."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    return [_dropped(_piece(call, axes, dim, place, 1), dim) for place in range(length(axes[dim]))]


@rule("slice", signs=True, keeps=True)
def slice_(call: Call) -> Layout:
    """A run of positions, or positions at equal distances."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    size = length(axes[dim])
    start, stop, step = slice(call["start"], call["end"], call["step"]).indices(size)
    if step == 1:
        return _piece(call, axes, dim, start, max(stop - start, 0))
    if start < step and call.shapes[0][dim] * step == size:
        places, inside = call.divide(axes[dim], size // step)
        call.pin(inside, "it takes one of every few positions of this axis")
        return _replaced(axes, dim, places)
    call.pin(axes[dim], "it takes single positions of this axis")
    return _replaced(axes, dim, *call.places([call.shapes[0][dim]]))


@rule("slice_scatter", signs=True)
def slice_scatter(call: Call) -> Layout:
    """A run of positions is replaced."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    start, _, step = slice(call["start"], call["end"], call["step"]).indices(length(axes[dim]))
    if step != 1:
        raise UnsupportedError("it replaces single positions of an axis")
    return _replacing(call, axes, call.axes("src"), dim, start)


@rule("select_scatter", signs=True)
def select_scatter(call: Call) -> Layout:
    """One position of an axis is replaced."""
    axes, written, one = call.axes("self"), call.axes("src"), ((),)
    dim = call["dim"] % len(axes)
    place = call["index"] % length(axes[dim])
    return _replacing(call, axes, (*written[:dim], one, *written[dim:]), dim, place)


@rule("narrow", signs=True, keeps=True)
def narrow(call: Call) -> Layout:
    """A run of positions."""
    axes, start = call.axes("self"), call["start"]
    if not isinstance(start, int):
        raise UnsupportedError("where it starts depends on data")
    dim = call["dim"] % len(axes)
    return _piece(call, axes, dim, start % length(axes[dim]), call["length"])


@rule("select", signs=True, reads="self")
def select(call: Call) -> Value:
    """One position of an axis."""
    value = call["self"]
    dim = call["dim"] % len(value.axes)
    place = call["index"] % value.shape[dim]
    if dim == 0 and value.rows:
        return Value(value.rows[place])
    call.tie_rows(value)
    axes = _piece(call, value.axes, dim, place, 1)
    return Value(_dropped(axes, dim), points_to=value.points_to)


@rule("pad", "constant_pad_nd", signs=True)
def pad(call: Call) -> Layout:
    """Constant positions before and after; any other filling depends on the order of the axis."""
    axes = list(call.axes("self"))
    amounts = call["pad"]
    if call["value"]:
        for axis in axes:
            call.unsigned(axis)
    for number in range(len(amounts) // 2):
        before, after = amounts[2 * number : 2 * number + 2]
        dim = len(axes) - 1 - number
        size = call.shapes[0][dim]
        if before == after == 0:
            continue
        if call["mode"] not in {None, "constant"} or min(before, after) < 0:
            call.pin(axes[dim], "it pads by neighbours")
        if is_fixed(resolve(axes[dim])):
            (axes[dim],) = call.places([size])
        else:
            axes[dim] = uniform(before) * (before > 0) + axes[dim] + uniform(after) * (after > 0)
    return tuple(axes)


def _piece(call: Call, axes: Layout, dim: int, start: int, size: int) -> Layout:
    _, tail = call.cut(axes[dim], start)
    piece, _ = call.cut(tail, size)
    return _replaced(axes, dim, piece)


def _replacing(call: Call, axes: Layout, written: Layout, dim: int, start: int) -> Layout:
    """The axes of `axes` after a piece of one of them was replaced."""
    for number, (axis, own) in enumerate(zip(axes, written, strict=True)):
        if number != dim:
            call.tie(axis, own)
    before, rest = call.cut(axes[dim], start)
    _, after = call.cut(rest, length(written[dim]))
    return _replaced(axes, dim, (*before, *written[dim], *after))


def _replaced(axes: Layout, dim: int, axis: Axis) -> Layout:
    return (*axes[:dim], axis, *axes[dim + 1 :])


def _dropped(axes: Layout, dim: int) -> Layout:
    return (*axes[:dim], *axes[dim + 1 :])
