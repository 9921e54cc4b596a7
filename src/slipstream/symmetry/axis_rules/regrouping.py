"""Operators that show the same positions under other axes."""

import math

from slipstream.symmetry.atoms import Axis, Layout, fixed, length, merge, resolve, uniform
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, rule


@rule("view reshape flatten unflatten squeeze unsqueeze", signs=True, keeps=True)
@rule("view_as reshape_as ravel _unsafe_view _reshape_alias", signs=True, keeps=True)
@rule("atleast_1d atleast_2d atleast_3d", signs=True, keeps=True)
def view(call: Call) -> Layout:
    """The same positions in the same order, under other axes."""
    if call["dtype"] is not None:
        raise UnsupportedError("it reads the bytes as another type")
    return call.regroup(call.axes("self"), call.shapes[0])


@rule("permute", signs=True, keeps=True)
def permute(call: Call) -> Layout:
    """Axes in another order."""
    axes = call.axes("self")
    return tuple(axes[dim] for dim in call["dims"])


@rule("transpose swapaxes swapdims t mT numpy_T adjoint mH matrix_H", signs=True, keeps=True)
def transpose(call: Call) -> Layout:
    """Two axes are swapped, or all are reversed."""
    axes = list(call.axes("self"))
    if call.operator == "numpy_T":
        return tuple(reversed(axes))
    if len(axes) < 2:
        return tuple(axes)
    dims = [call[name] for name in ("dim0", "dim1", "axis0", "axis1") if call[name] is not None]
    first, second = dims or (-2, -1)
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


@rule("movedim", "moveaxis", signs=True, keeps=True)
def movedim(call: Call) -> Layout:
    """Some axes move, the others keep their order."""
    axes = call.axes("self")
    source, target = (
        [d % len(axes) for d in ([dims] if isinstance(dims, int) else dims)]
        for dims in (call["source"], call["destination"])
    )
    others = [axis for number, axis in enumerate(axes) if number not in source]
    for place, number in sorted(zip(target, source, strict=True)):
        others.insert(place, axes[number])
    return tuple(others)


@rule("expand", "expand_as", "broadcast_to", signs=True, keeps=True)
def expand(call: Call) -> Layout:
    """Along an axis that repeats one position, all positions are equal."""
    return _expanded(call.axes("self"), call.shapes[0])


@rule("broadcast_tensors", signs=True)
def broadcast_tensors(call: Call) -> list[Layout]:
    """Every tensor is expanded to the same shape."""
    return [_expanded(*pair) for pair in zip(call.tensors(), call.shapes, strict=True)]


@rule("meshgrid", "meshgrid.indexing")
def meshgrid(call: Call) -> list[Layout]:
    """Each tensor along an axis of its own, repeated along the others."""
    lines = [axes[0] if axes else ((),) for axes in call.tensors()]
    turned = [1, 0, *range(2, len(lines))] if call["indexing"] == "xy" else range(len(lines))
    return [
        tuple(line if own == number else uniform(length(lines[own])) for own in turned)
        for number, line in enumerate(lines)
    ]


@rule("repeat", "tile", signs=True, keeps=True)
def repeat(call: Call) -> Layout:
    """Whole copies one after another."""
    axes = call.axes("self")
    shape = call.shapes[0]
    padded = (((),),) * (len(shape) - len(axes)) + axes
    return tuple(_copies(a, n // length(a)) for a, n in zip(padded, shape, strict=True))


@rule("repeat_interleave.self_int", signs=True)
def repeat_interleave(call: Call) -> Layout:
    """Every position becomes a run of equal positions."""
    axes, dim = call.axes("self"), call["dim"]
    if dim is None:
        raise UnsupportedError("it flattens its input")
    dim %= len(axes)
    return (*axes[:dim], merge([axes[dim], uniform(call["repeats"])]), *axes[dim + 1 :])


@rule("pixel_shuffle", signs=True)
def pixel_shuffle(call: Call) -> Layout:
    """The fastest part of the channels becomes positions of the map."""
    *batch, channels, height, width = call.axes("self")
    kept, moved = call.divide(channels, math.prod(call.shapes[0][-3:-2]))
    for axis in (moved, height, width):
        call.pin(axis, "it turns this axis into positions of a map")
    return (*batch, kept, *call.places(call.shapes[0][-2:]))


@rule("pixel_unshuffle", signs=True)
def pixel_unshuffle(call: Call) -> Layout:
    """Positions of the map become the fastest part of the channels."""
    *batch, channels, height, width = call.axes("self")
    for axis in (height, width):
        call.pin(axis, "it divides this axis into small squares")
    inside = fixed(call["downscale_factor"] ** 2)
    return (*batch, merge([channels, inside]), *call.places(call.shapes[0][-2:]))


@rule("channel_shuffle", signs=True)
def channel_shuffle(call: Call) -> Layout:
    """Groups and the positions inside them swap roles."""
    axes = call.axes("self")
    groups, inside = call.divide(axes[1], call["groups"])
    return (axes[0], merge([inside, groups]), *axes[2:])


@rule("view_as_complex", signs=True)
def view_as_complex(call: Call) -> Layout:
    """Pairs on the last axis become complex numbers."""
    *axes, pair = call.axes("self")
    call.pin(pair, "it holds real and imaginary parts")
    return tuple(axes)


@rule("view_as_real", signs=True)
def view_as_real(call: Call) -> Layout:
    """A new last axis with the real and the imaginary part."""
    return (*call.axes("self"), *call.places([2]))


@rule("im2col", signs=True)
def im2col(call: Call) -> Layout:
    """Channels times the positions of a window, at every position of the window."""
    *batch, channels, height, width = call.axes("input", "self")
    for axis in (height, width):
        call.pin(axis, "a window slides along this axis")
    inside = fixed(math.prod(call["kernel_size"]))
    return (*batch, merge([channels, inside]), *call.places(call.shapes[0][-1:]))


@rule("col2im", signs=True)
def col2im(call: Call) -> Layout:
    """Channels times the positions of a window are added up on a map."""
    *batch, columns, windows = call.axes("input", "self")
    channels, inside = call.divide(columns, call.shapes[0][-3])
    for axis in (inside, windows):
        call.pin(axis, "a window slides along this axis")
    return (*batch, channels, *call.places(call.shapes[0][-2:]))


@rule("unfold", signs=True)
def unfold(call: Call) -> Layout:
    """Windows along one axis, and a new axis for the positions inside a window."""
    axes = call.axes("self")
    dim = call["dimension"] % len(axes)
    call.pin(axes[dim], "a window slides along this axis")
    windows, inside = call.places([call.shapes[0][dim], call["size"]])
    return (*axes[:dim], windows, *axes[dim + 1 :], inside)


@rule("kron", signs=True)
def kron(call: Call) -> Layout:
    """Every axis is the product of the axes of both."""
    first, second = call.axes("self"), call.axes("other")
    rank = max(len(first), len(second))
    padded = ((((),),) * (rank - len(axes)) + axes for axes in (first, second))
    return tuple(merge(pair) for pair in zip(*padded, strict=True))


@rule("diagonal linalg_diagonal trace diag", signs=True)
def diagonal(call: Call) -> Layout:
    """Both axes list the same; the diagonal lists it once."""
    axes = list(call.axes("self", "A"))
    dims = [
        0 if call["dim1"] is None else call["dim1"],
        1 if call["dim2"] is None else call["dim2"],
    ]
    first, second = (axes[dim % len(axes)] for dim in dims)
    kept = [axis for n, axis in enumerate(axes) if n not in [dim % len(axes) for dim in dims]]
    if call["offset"] or call["diagonal"] or length(first) != length(second):
        for axis in (first, second):
            call.pin(axis, "it takes a diagonal beside the main one")
        return (*kept, *call.places(call.shapes[0][-1:]))
    call.tie(first, second)
    call.unsigned(first)
    for axis in kept:
        call.independent(first, axis)
        call.independent(axis, first)
    return tuple(kept) if call.operator == "trace" else (*kept, first)


@rule("diag_embed", signs=True)
def diag_embed(call: Call) -> Layout:
    """The last axis becomes two, which list the same."""
    *others, axis = call.axes("self")
    if call["offset"] or {dim % len(call.shapes[0]) for dim in (call["dim1"], call["dim2"])} != {
        len(others),
        len(others) + 1,
    }:
        raise UnsupportedError("it fills another diagonal than that of the last axes")
    call.unsigned(axis)
    for other in others:
        call.independent(axis, other)
    return (*others, axis, axis)


def _expanded(axes: Layout, shape: tuple[int, ...]) -> Layout:
    padded = (((),),) * (len(shape) - len(axes)) + axes
    return tuple(a if length(a) == n else uniform(n) for a, n in zip(padded, shape, strict=True))


def _copies(axis: Axis, count: int) -> Axis:
    """The axis several times; a concatenation cannot be inside of a product."""
    return merge([uniform(count), axis]) if len(resolve(axis)) == 1 else axis * count
