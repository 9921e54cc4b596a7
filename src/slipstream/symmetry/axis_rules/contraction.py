"""Operators that multiply and sum over shared axes: linear maps, matrix products, convolutions."""

from collections.abc import Sequence
from string import ascii_letters

from slipstream.symmetry.atoms import POSITIONS, Axis, Layout, length, merge, pin
from slipstream.symmetry.axis_rules.elementwise import align
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, rule


def contract(call: Call, operands: Sequence[tuple[str, Layout]], result: str) -> Layout:
    """Return the axes of an Einstein sum; axes with the same letter are tied.

    The order on an axis may depend on a place on another one only if the two are together in
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
    if call["bias"] is not None:
        call.tie(result[-1], call.axes("bias")[0])
    return result


@rule("matmul", "mm", "bmm", "mv", "dot", signs=True)
def matmul(call: Call) -> Layout:
    """The last axis of the first meets the last but one of the second; axes before are a batch."""
    return _product(call, *call.tensors())


@rule("addmm", "baddbmm", "addmv", signs=True)
def add_product(call: Call) -> Layout:
    """A matrix product, added to something that broadcasts to it."""
    bias, first, second = call.tensors()
    result = _product(call, first, second)
    return align(call, [bias, result])


@rule("einsum", signs=True)
def einsum(call: Call) -> Layout:
    """An Einstein sum by its equation."""
    equation = call["equation"].replace(" ", "")
    if "." in equation or "->" not in equation:
        raise UnsupportedError("an equation without '->', or with '...', has no rule")
    terms, result = equation.split("->")
    if any(len(set(term)) < len(term) for term in terms.split(",")):
        raise UnsupportedError("a repeated letter takes a diagonal")
    return contract(call, list(zip(terms.split(","), call.tensors(), strict=True)), result)


@rule("conv1d", "conv2d", "conv3d", signs=True)
def convolution(call: Call) -> Layout:
    """Output channels are groups times places inside; each group sees its own input channels."""
    return _convolve(call, call.axes("weight"))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", signs=True)
def transposed_convolution(call: Call) -> Layout:
    """As a convolution, but the weight lists groups and inputs first, then outputs of a group."""
    inputs, outputs, *kernel = call.axes("weight")
    groups, inside = call.divide(inputs, call["groups"])
    return _convolve(call, (merge([groups, outputs]), inside, *kernel))


def _convolve(call: Call, weight: Layout) -> Layout:
    outputs, inside, *kernel = weight
    inputs = call.axes("input")
    *batch, channels = inputs[: len(inputs) - len(kernel)]
    for axis in inputs[len(inputs) - len(kernel) :]:
        call.pin(axis, "a window slides along this axis")
    for axis in kernel:
        pin(axis, POSITIONS)
    letters = ascii_letters[: len(batch)]
    *rest, groups, outside = contract(
        call,
        [
            (letters + "GI", (*batch, *call.divide(channels, call["groups"]))),
            ("GOI", (*call.divide(outputs, call["groups"]), inside)),
        ],
        letters + "GO",
    )
    result = merge([groups, outside])
    if call["bias"] is not None:
        call.tie(result, call.axes("bias")[0])
    return (*rest, result, *call.places(call.shapes[0][len(batch) + 1 :]))


def _product(call: Call, first: Layout, second: Layout) -> Layout:
    rows, columns = "R" * (len(first) > 1), "C" * (len(second) > 1)
    batches = [axes[: max(len(axes) - 2, 0)] for axes in (first, second)]
    rank = max(map(len, batches))
    letters = [ascii_letters[rank - len(batch) : rank] for batch in batches]
    operands = [(f"{letters[0]}{rows}K", first), (f"{letters[1]}K{columns}", second)]
    return contract(call, operands, ascii_letters[:rank] + rows + columns)
