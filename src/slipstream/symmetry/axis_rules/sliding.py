"""Operators that mix neighbouring positions of a map: pooling, interpolation, sampling."""

from slipstream.symmetry.atoms import Axis, Layout, length
from slipstream.symmetry.axis_rules.elementwise import align
from slipstream.symmetry.axis_rules.registry import Call, rule

SLIDES = "a window slides along this axis"


@rule("max_pool1d max_pool2d max_pool3d")
@rule("max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices")
@rule("avg_pool1d avg_pool2d avg_pool3d", signs=True)
def window(call: Call) -> Layout | list[Layout]:
    """The last axes are positions of a map, the ones before go along."""
    axes = call.axes("self", "input")
    rank = _rank(call)
    sizes = call.shapes[0][-rank:]
    kernel = _each(call["kernel_size"], rank)
    still = [
        len(call.shapes) == 1 and is_still(call, number, kernel[number], axis, size)
        for number, (axis, size) in enumerate(zip(axes[-rank:], sizes, strict=True))
    ]
    return _slid(call, axes, still)


@rule("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d")
@rule("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", signs=True)
@rule("_adaptive_avg_pool2d _adaptive_avg_pool3d", signs=True)
def adaptive(call: Call) -> Layout | list[Layout]:
    """Windows of which there is a given number; one alone sees the whole axis."""
    axes = call.axes("self", "input")
    rank = _rank(call)
    whole = [size == 1 and "avg" in call.operator for size in call.shapes[0][-rank:]]
    for axis, all_of_it in zip(axes[-rank:], whole, strict=True):
        if all_of_it:
            call.unsigned(axis)
    one: Axis = ((),)
    axes = (*axes[:-rank], *(one if w else a for a, w in zip(axes[-rank:], whole, strict=True)))
    return _slid(call, axes, whole)


@rule("max_unpool2d max_unpool3d")
@rule("max_pool2d_with_indices_backward max_pool3d_with_indices_backward")
@rule("adaptive_max_pool2d_backward adaptive_max_pool3d_backward")
@rule("avg_pool2d_backward avg_pool3d_backward")
@rule("_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward")
def spread_back(call: Call) -> Layout:
    """What windows have given goes back to positions of the map that they have seen."""
    rank, layouts = _rank(call), call.tensors()
    for axis in (axis for axes in layouts for axis in axes[-rank:]):
        call.pin(axis, SLIDES)
    kept = align(call, [axes[:-rank] for axes in layouts])
    return (*kept, *call.places(call.shapes[0][-rank:]))


@rule("upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d", signs=True)
@rule("_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d", signs=True)
@rule("upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d", signs=True)
@rule("upsample_bicubic2d _upsample_bicubic2d_aa", signs=True)
def interpolation(call: Call) -> Layout | list[Layout]:
    """The last axes are positions of a map, the ones before go along."""
    return _slid(call, call.axes("self", "input"), [False] * _rank(call))


@rule("grid_sampler grid_sampler_2d grid_sampler_3d", signs=True)
def grid_sampler(call: Call) -> Layout:
    """Positions of a map, looked up by coordinates."""
    batch, channels, *places = call.axes("input")
    first, *others = call.axes("grid")
    call.tie(batch, first)
    call.unsigned(first)
    for axis in (*places, *others):
        call.pin(axis, "positions are looked up by their coordinates")
    return (batch, channels, *call.places(call.shapes[0][2:]))


def is_still(call: Call, number: int, kernel: int, axis: Axis, size: int) -> bool:
    """Return whether a window stays at every position of an axis, so that none is mixed.

    Args:
        call: A pooling or a convolution.
        number: Which of the axes that windows slide along.
        kernel: The length of the window on this axis.
        axis: The axis.
        size: Its length in the result.
    """
    strides, paddings = call["stride"], call["padding"]
    stride = _each(strides, number + 1)[number] if strides not in (None, []) else kernel
    padding = 0 if isinstance(paddings, str) else _each(paddings, number + 1)[number]
    return kernel == stride == 1 and padding == 0 and size == length(axis)


def _slid(call: Call, axes: Layout, still: list[bool]) -> Layout | list[Layout]:
    rank = len(still)
    places = call.places(call.shapes[0][-rank:])
    kept = []
    for axis, stays, place in zip(axes[-rank:], still, places, strict=True):
        if not stays:
            call.pin(axis, SLIDES)
        kept.append(axis if stays else place)
    result = (*axes[:-rank], *kept)
    return result if len(call.shapes) == 1 else [result] * len(call.shapes)


def _rank(call: Call) -> int:
    return next(int(letter) for letter in call.operator if letter.isdigit())


def _each(values: int | list[int], count: int) -> list[int]:
    """One value for each axis; a single one is for all."""
    listed = [values] if isinstance(values, int) else list(values)
    return listed * count if len(listed) == 1 else listed
