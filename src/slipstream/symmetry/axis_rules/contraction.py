"""Operators that multiply and sum over shared axes: linear maps, matrix products, convolutions."""

from collections.abc import Sequence
from functools import reduce
from string import ascii_letters

from slipstream.symmetry.atoms import POSITIONS, Axis, Layout, length, merge, pin
from slipstream.symmetry.axis_rules.elementwise import align, scale
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, Value, rule
from slipstream.symmetry.axis_rules.sliding import is_still


def contract(call: Call, operands: Sequence[tuple[str, Layout]], result: str) -> Layout:
    """Return the axes of an Einstein sum; axes with the same letter are tied.

    The order on an axis may depend on a position on another one only if the two are together in
    every operand that has the first.
    """
    axes: dict[str, Axis] = {}
    for letters, layout in operands:
        for letter, axis in zip(letters, layout, strict=True):
            known = axes.get(letter, ((),))
            if length(known) == 1:
                axes[letter] = axis
            elif length(axis) != 1:
                axes[letter] = call.multiply(known, axis)
    for letter, axis in axes.items():
        if letter not in result:
            call.unsigned(axis)
    terms = [*(letters for letters, _ in operands), result]
    for letter in axes:
        for other in axes:
            if any(letter in term and other not in term for term in terms):
                call.independent(axes[letter], axes[other])
    return tuple(axes[letter] for letter in result)


@rule("linear", signs=True)
def linear(call: Call) -> Layout:
    """Rows of the weight are outputs, columns inputs."""
    inputs, weight = call.axes("input"), call.axes("weight")
    batch = ascii_letters[: len(inputs) - 1]
    result = contract(call, [(batch + "I", inputs), ("OI", weight)], batch + "O")
    _add_bias(call, result[-1], result[:-1])
    return result


def _add_bias(call: Call, outputs: Axis, others: Sequence[Axis]) -> None:
    """Tie the outputs with the bias, which has no sign of any other axis."""
    if isinstance(call["bias"], Value):
        call.tie(outputs, call.axes("bias")[0])
        for axis in others:
            call.unsigned(axis)


@rule("bilinear", signs=True)
def bilinear(call: Call) -> Layout:
    """Rows of the weight are outputs, its two other axes the two inputs."""
    first, second, weight = (call.axes(name) for name in ("input1", "input2", "weight"))
    batch = ascii_letters[: len(first) - 1]
    operands = [(batch + "I", first), (batch + "J", second), ("OIJ", weight)]
    result = contract(call, operands, batch + "O")
    _add_bias(call, result[-1], result[:-1])
    return result


@rule("cdist _cdist_forward _euclidean_dist", signs=True)
def cdist(call: Call) -> Layout:
    """Distances between rows: the columns of both list the same, with the same signs."""
    first, second = call.axes("x1"), call.axes("x2")
    rank = max(len(first), len(second)) - 2
    letters = [ascii_letters[rank + 2 - len(axes) : rank] for axes in (first, second)]
    operands = [(letters[0] + "PM", first), (letters[1] + "RM", second)]
    result = contract(call, operands, ascii_letters[:rank] + "PR")
    for axis in result:
        call.unsigned(axis)
    return result


@rule("_cdist_backward")
def cdist_backward(call: Call) -> Layout:
    """The derivative of distances between rows by the first ones."""
    rank = len(call.axes("x1")) - 2
    letters = {"x1": "PM", "x2": "RM", "grad": "PR", "cdist": "PR"}
    batch = ascii_letters[:rank]
    operands = [(batch + own, call.axes(name)) for name, own in letters.items()]
    return contract(call, operands, batch + "PM")


@rule("pdist _pdist_forward")
def pdist(call: Call) -> Layout:
    """Distances between the rows of one tensor."""
    rows, _ = call.axes("self")
    call.pin(rows, "every two rows have a position in the result")
    return call.places(call.shapes[0])


@rule("outer", "ger", signs=True)
def outer(call: Call) -> Layout:
    """Every entry of the first times every entry of the second."""
    return tuple(axes[0] for axes in call.tensors())


@rule("vecdot", "linalg_vecdot", "inner", signs=True)
def inner(call: Call) -> Layout:
    """Sums over one axis of both, the last one by default."""
    first, second = call.tensors()
    if call.operator == "inner":
        letters = (
            ascii_letters[: len(first) - 1],
            ascii_letters[len(first) : len(first + second) - 1],
        )
        operands = [(letters[0] + "K", first), (letters[1] + "K", second)]
        return contract(call, operands, "".join(letters))
    axes = scale(call, [first, second])
    dim = (-1 if call["dim"] is None else call["dim"]) % len(axes)
    call.unsigned(axes[dim])
    return axes[:dim] + axes[dim + 1 :]


@rule("tensordot", signs=True)
def tensordot(call: Call) -> Layout:
    """Sums over some axes of the first with some of the second."""
    first, second = call.axes("self"), call.axes("other")
    names = [list(ascii_letters[: len(first)]), list(ascii_letters[len(first) :][: len(second)])]
    pairs = zip(call["dims_self"], call["dims_other"], strict=True)
    for dim, other in pairs:
        names[1][other % len(second)] = names[0][dim % len(first)]
    result = [n for n in names[0] if n not in names[1]] + [n for n in names[1] if n not in names[0]]
    operands = [("".join(names[0]), first), ("".join(names[1]), second)]
    return contract(call, operands, "".join(result))


@rule("linalg_multi_dot", "chain_matmul", signs=True)
def chain(call: Call) -> Layout:
    """Several matrix products."""
    return reduce(lambda first, second: _product(call, first, second), call.tensors())


@rule("addr", signs=True)
def add_outer(call: Call) -> Layout:
    """An outer product, added to something that broadcasts to it."""
    bias, first, second = call.tensors()
    return align(call, [bias, (first[0], second[0])])


@rule("matmul mm bmm mv dot vdot linalg_matmul", signs=True)
def matmul(call: Call) -> Layout:
    """The last axis of the first meets the last but one of the second; axes before are a batch."""
    return _product(call, *call.tensors())


@rule("inverse linalg_inv pinverse linalg_pinv", signs=True)
def inverse(call: Call) -> Layout:
    """Rows of the inverse meet columns of the matrix."""
    return _inverted(call, call.axes("self", "A", "input"))


@rule("linalg_solve", signs=True)
def solve(call: Call) -> Layout:
    """The inverse of a matrix times a matrix, or a vector."""
    inverted, other = _inverted(call, call.axes("A")), call.axes("B")
    if len(other) > 1 and len(other) != len(inverted):
        raise UnsupportedError("a batch of vectors")
    return _product(call, inverted, other) if call["left"] else _product(call, other, inverted)


@rule("linalg_matrix_exp matrix_exp linalg_matrix_power matrix_power")
def matrix_function(call: Call) -> Layout:
    """A series of powers, where rows meet columns."""
    *batch, rows, columns = call.axes("self", "A")
    call.tie(rows, columns)
    call.independent(rows, columns)
    call.independent(columns, rows)
    return (*batch, rows, columns)


def _inverted(call: Call, axes: Layout) -> Layout:
    *batch, rows, columns = axes
    if call["hermitian"]:
        call.pin(rows, "one triangle is read")
        call.pin(columns, "one triangle is read")
    call.independent(rows, columns)
    call.independent(columns, rows)
    return (*batch, columns, rows)


@rule("addmm", "baddbmm", "addmv", signs=True)
def add_product(call: Call) -> Layout:
    """A matrix product, added to something that broadcasts to it."""
    bias, first, second = call.tensors()
    result = _product(call, first, second)
    return align(call, [bias, result])


@rule("einsum", signs=True)
def einsum(call: Call) -> Layout:
    """An Einstein sum by its equation."""
    terms, result = _spelled_out(call["equation"].replace(" ", ""), call.tensors())
    operands = [
        _without_repeats(call, term, axes) for term, axes in zip(terms, call.tensors(), strict=True)
    ]
    return contract(call, operands, result)


def _spelled_out(equation: str, tensors: Sequence[Layout]) -> tuple[list[str], str]:
    """The terms and the result, with a letter for every axis that `...` stands for."""
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    rank = max(
        len(axes) - len(term.replace("...", ""))
        for term, axes in zip(terms, tensors, strict=True)
        if len(axes) >= len(term.replace("...", ""))
    )
    spare = "".join(letter for letter in ascii_letters if letter not in equation)[:rank]
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        single = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        result = ("..." if "..." in left else "") + "".join(single)
    full = [
        term.replace("...", spare[rank - (len(axes) - len(term.replace("...", ""))) :])
        for term, axes in zip(terms, tensors, strict=True)
    ]
    return full, result.replace("...", spare)


def _without_repeats(call: Call, term: str, axes: Layout) -> tuple[str, Layout]:
    """The diagonal along axes with the same letter, which list the same."""
    kept: dict[str, Axis] = {}
    for letter, axis in zip(term, axes, strict=True):
        if letter in kept:
            call.tie(kept[letter], axis)
            call.unsigned(axis)
            for other in axes:
                call.independent(axis, other)
        kept.setdefault(letter, axis)
    return "".join(kept), tuple(kept.values())


@rule("conv1d", "conv2d", "conv3d", signs=True)
def convolution(call: Call) -> Layout:
    """Output channels are groups times positions inside; each group sees its own input channels."""
    return _convolve(call, call.axes("weight"))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", signs=True)
def transposed_convolution(call: Call) -> Layout:
    """As a convolution, but the weight lists groups and inputs first, then outputs of a group."""
    inputs, outputs, *kernel = call.axes("weight")
    groups, inside = call.divide(inputs, call["groups"])
    return _convolve(call, (merge([groups, outputs]), inside, *kernel))


@rule("convolution", signs=True)
def any_convolution(call: Call) -> Layout:
    """As it is called below autograd."""
    return transposed_convolution(call) if call["transposed"] else convolution(call)


def _convolve(call: Call, weight: Layout) -> Layout:
    outputs, inside, *kernel = weight
    inputs = call.axes("input")
    rank = len(inputs) - len(kernel)
    *batch, channels = inputs[:rank]
    for axis in kernel:
        pin(axis, POSITIONS)
    sizes = call.shapes[0][rank:]
    places = [
        axis if is_still(call, number, length(kernel[number]), axis, size) else None
        for number, (axis, size) in enumerate(zip(inputs[rank:], sizes, strict=True))
    ]
    for axis, still in zip(inputs[rank:], places, strict=True):
        if still is None:
            call.pin(axis, "a window slides along this axis")
    letters = ascii_letters[: len(batch) + len(kernel)]
    *rest, groups, outside = contract(
        call,
        [
            (letters + "GI", (*batch, *inputs[rank:], *call.divide(channels, call["groups"]))),
            ("GOI", (*call.divide(outputs, call["groups"]), inside)),
        ],
        letters + "GO",
    )
    result = merge([groups, outside])
    _add_bias(call, result, rest)
    moving = zip(places, call.places(sizes), strict=True)
    return (
        *rest[: len(batch)],
        result,
        *(new if still is None else still for still, new in moving),
    )


def _product(call: Call, first: Layout, second: Layout) -> Layout:
    rows, columns = "R" * (len(first) > 1), "C" * (len(second) > 1)
    batches = [axes[: max(len(axes) - 2, 0)] for axes in (first, second)]
    rank = max(map(len, batches))
    letters = [ascii_letters[rank - len(batch) : rank] for batch in batches]
    operands = [(f"{letters[0]}{rows}K", first), (f"{letters[1]}K{columns}", second)]
    return contract(call, operands, ascii_letters[:rank] + rows + columns)
