"""Operators that tell positions by their numbers, or look positions up by number.

Numbers of entries on an axis that moves change with it: which expert is the best, and its weights.
What computes with such numbers in any other way pins the axis.
"""

from itertools import chain

from slipstream.symmetry.atoms import Axis, Layout, length
from slipstream.symmetry.axis_rules.elementwise import align
from slipstream.symmetry.axis_rules.reduction import dims_of, without
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, Value, rule

LOOKED_UP = "positions on this axis are looked up by number"
TIES = "of equal values, the position decides which one is the largest"


@rule(
    "max.dim",
    "min.dim",
    "median.dim",
    "nanmedian.dim",
    "mode",
    "argmax",
    "argmin",
    "kthvalue",
    ranks=True,
)
def choice(call: Call) -> list[Value] | Value:
    """One position along an axis, and its number."""
    axes = call.axes("self")
    if call["dim"] is None:
        raise UnsupportedError("it tells the position of an element among all")
    (chosen,) = dims_of(call["dim"], len(axes))
    result = without(axes, [chosen], keep=bool(call["keepdim"]))
    if call.ties:
        call.pin(axes[chosen], TIES)
    number = Value(result, points_to=axes[chosen])
    return number if len(call.shapes) == 1 else [Value(result), number]


@rule("topk", "sort", "argsort", "msort", ranks=True)
def ranking(call: Call) -> list[Value] | Value:
    """Positions in the order of what they hold, and their numbers."""
    axes = call.axes("self")
    dim = (-1 if call["dim"] is None else call["dim"]) % len(axes)
    if call.operator == "msort":
        dim = 0
    (ranks,) = call.places([call.shapes[0][dim]])
    result = (*axes[:dim], ranks, *axes[dim + 1 :])
    if call.ties:
        call.pin(axes[dim], TIES)
    number = Value(result, points_to=axes[dim])
    if call.operator == "msort":
        return Value(result)
    return number if len(call.shapes) == 1 else [Value(result), number]


@rule("one_hot", reads="self")
def one_hot(call: Call) -> Layout:
    """A new axis on which the position that a number tells is one."""
    axes, pointed = call.axes("self"), call.points_to("self")
    (marked,) = call.places([call.shapes[0][-1]])
    return (*axes, marked if pointed is None or length(pointed) != length(marked) else pointed)


@rule("bucketize searchsorted")
def bucketize(call: Call) -> Layout:
    """Between which boundaries every position lies."""
    *batch, boundaries = call.axes("boundaries", "sorted_sequence")
    if batch or isinstance(call["sorter"], Value):
        raise UnsupportedError("every row has boundaries of its own")
    call.pin(boundaries, LOOKED_UP)
    return call.axes("self")


@rule("embedding", signs=True, reads="indices")
def embedding(call: Call) -> Layout:
    """Rows of the table, looked up by number."""
    rows, features = call.axes("weight")
    _look_up(call, rows, "indices")
    return (*call.axes("indices"), features)


@rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only", reads="indices")
def embedding_bag(call: Call) -> list[Layout]:
    """Sums, means or maxima of rows of the table, looked up by number."""
    rows, features = call.axes("weight")
    _look_up(call, rows, "indices")
    for axis in chain(*call.tensors()[1:]):
        call.pin(axis, "each of its positions belongs to a bag")
    return [(*call.places(call.shapes[0][:1]), features), *map(call.places, call.shapes[1:])]


@rule("index_select", signs=True, reads="index")
def index_select(call: Call) -> Layout:
    """Positions of one axis, looked up by number."""
    axes, dim = call.axes("self"), call["dim"] % len(call.axes("self"))
    _look_up(call, axes[dim], "index")
    return (*axes[:dim], *call.axes("index"), *axes[dim + 1 :])


@rule("gather", reads="index")
def gather(call: Call) -> Layout:
    """For every position of the index, one position along an axis, looked up by number."""
    axes, index = call.axes("self"), call.axes("index")
    dim = call["dim"] % len(axes)
    _look_up(call, axes[dim], "index")
    _meet(call, axes, index, excluding=dim)
    return index


@rule("take_along_dim", reads="indices")
def take_along_dim(call: Call) -> Layout:
    """As `gather`, where all other axes broadcast."""
    axes, indices = call.axes("self"), call.axes("indices")
    if call["dim"] is None:
        raise UnsupportedError("it looks up positions among all")
    dim = call["dim"] % len(axes)
    _look_up(call, axes[dim], "indices")
    rest = align(call, [without(layout, [dim], keep=True) for layout in (axes, indices)])
    return (*rest[:dim], indices[dim], *rest[dim + 1 :])


@rule("scatter", "scatter_add", "scatter_reduce", reads="index")
def scatter(call: Call) -> Layout:
    """To every position of the index, one position along an axis, looked up by number."""
    axes, index = call.axes("self"), call.axes("index")
    dim = call["dim"] % len(axes)
    _look_up(call, axes[dim], "index")
    _meet(call, axes, index, excluding=dim)
    if isinstance(call["src"], Value):
        _meet(call, call.axes("src"), index, excluding=len(axes))
    return axes


@rule("index_add", "index_copy", "index_fill", "index_reduce", reads="index")
def index_add(call: Call) -> Layout:
    """Positions of one axis, looked up by number, receive something."""
    axes, dim = call.axes("self"), call["dim"] % len(call.axes("self"))
    _look_up(call, axes[dim], "index")
    if isinstance(source := call["source"], Value):
        call.tie(source.axes[dim], call.axes("index")[0])
        _meet(call, axes, source.axes, excluding=dim)
    return axes


@rule("index", signs=True, reads="indices")
@rule("index_put", reads="indices")
def index(call: Call) -> Layout:
    """Positions of one or several axes, looked up by number together."""
    axes, given = call.axes("self"), call["indices"]
    dims = [dim for dim, item in enumerate(given) if item is not None]
    for dim in dims:
        _look_up_by(call, axes[dim], given[dim])
    found = align(call, [given[dim].axes for dim in dims])
    kept = [axis for dim, axis in enumerate(axes) if dim not in dims]
    # Numbers for axes that are no neighbours put theirs in front of all.
    at = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    result = (*kept[:at], *found, *kept[at:])
    if call.operator == "index":
        return result
    align(call, [result, call.axes("values")])
    return axes


def _look_up(call: Call, axis: Axis, name: str) -> None:
    if not isinstance(call[name], Value):
        raise UnsupportedError(f"{name} is no tensor")
    _look_up_by(call, axis, call[name])


def _look_up_by(call: Call, axis: Axis, numbers: Value) -> None:
    """Tie the axis with the one that the numbers point to, or pin it."""
    if numbers.points_to is None or length(numbers.points_to) != length(axis):
        call.pin(axis, LOOKED_UP)
        if numbers.points_to is not None:
            call.pin(numbers.points_to, LOOKED_UP)
    else:
        call.tie(axis, numbers.points_to)


def _meet(call: Call, axes: Layout, index: Layout, *, excluding: int) -> None:
    """Tie axes that are gone along together; the index may stop before the end of an axis."""
    for number, (axis, own) in enumerate(zip(axes, index, strict=True)):
        if number != excluding and length(axis) == length(own):
            call.tie(axis, own)
        elif number != excluding:
            for cut_short in (axis, own):
                call.pin(cut_short, "only its first positions are used")
