"""Operators that take one axis, or several, together, or that see an order along an axis."""

from itertools import permutations

from slipstream.symmetry.atoms import Axis, Layout
from slipstream.symmetry.axis_rules.elementwise import align
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, Value, rule


@rule("prod amax amin aminmax all any var std var_mean std_mean logsumexp")
@rule("max min median nanmedian count_nonzero")
@rule("sum mean nansum nanmean", signs=True)
def reduction(call: Call) -> Layout | list[Layout]:
    """A symmetric function of all positions of the reduced axes."""
    return _reduced(call, call.axes("self", "x"))


@rule("norm linalg_vector_norm", signs=True)
def size(call: Call) -> Layout | list[Layout]:
    """The size of numbers, whatever their signs."""
    axes = call.axes("self", "x", "A")
    return _reduced(call, tuple(call.multiply(axis, axis) for axis in axes))


@rule("linalg_norm linalg_matrix_norm", signs=True)
def matrix_norm(call: Call) -> Layout | list[Layout]:
    """The size of a vector, or of a matrix whose rows and columns move as they are."""
    axes = call.axes("self", "A")
    if len(axes) - len(call.shapes[0]) != 1:
        dims = range(len(axes)) if call["dim"] is None else dims_of(call["dim"], len(axes))
        for first, second in permutations(dims, 2):
            call.independent(axes[first], axes[second])
    return size(call)


@rule("linalg_svdvals")
def singular_values(call: Call) -> Layout:
    """Rows and columns of the matrix move as they are."""
    *batch, rows, columns = call.axes("A")
    call.independent(rows, columns)
    call.independent(columns, rows)
    return (*batch, *call.places(call.shapes[0][-1:]))


@rule("quantile nanquantile")
def quantile(call: Call) -> Layout:
    """A symmetric function, for each of several shares on a first axis."""
    result = _reduced(call, call.axes("self"))
    return (*(call.axes("q") if isinstance(call["q"], Value) else ()), *result)


def _reduced(call: Call, axes: Layout) -> Layout | list[Layout]:
    dims = call["dim"]
    reduced = dims_of(dims, len(axes)) if dims is not None else []
    reduced = reduced or list(range(len(axes)))
    for dim in reduced:
        call.unsigned(axes[dim])
    result = without(axes, reduced, keep=bool(call["keepdim"]))
    return result if len(call.shapes) == 1 else [result] * len(call.shapes)


@rule("dist mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss kl_div poisson_nll_loss")
@rule("binary_cross_entropy binary_cross_entropy_with_logits gaussian_nll_loss")
def loss(call: Call) -> Layout:
    """A sum over all positions of what is compared there."""
    axes = align(call, call.tensors())
    return axes if len(call.shapes[0]) == len(axes) else ()


@rule("cosine_similarity")
def cosine_similarity(call: Call) -> Layout:
    """Two tensors are compared along one axis."""
    axes = align(call, call.tensors())
    return without(axes, [call["dim"] % len(axes)], keep=False)


@rule("pairwise_distance")
def pairwise_distance(call: Call) -> Layout:
    """Two tensors are compared along the last axis."""
    axes = align(call, call.tensors())
    return without(axes, [len(axes) - 1], keep=bool(call["keepdim"]))


@rule("diff")
def difference(call: Call) -> Layout:
    """Each position along an axis with the next one."""
    layouts = call.tensors()
    dim = call["dim"] % len(layouts[0])
    for axes in layouts:
        call.pin(axes[dim], "it takes differences of neighbours")
    axes = align(call, [without(axes, [dim], keep=True) for axes in layouts])
    return (*axes[:dim], *call.places([call.shapes[0][dim]]), *axes[dim + 1 :])


@rule("triu", "tril")
def triangle(call: Call) -> Layout:
    """Which entries stay depends on the positions on the last two axes."""
    axes = call.axes("self")
    for axis in axes[-2:]:
        call.pin(axis, "a triangle is cut out along this axis")
    return axes


@rule("fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft", signs=True)
@rule("fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 fft_ihfft2", signs=True)
@rule("fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn", signs=True)
@rule("fft_fftshift fft_ifftshift", signs=True)
def spectrum(call: Call) -> Layout:
    """Frequencies along some axes; the others go along."""
    axes, shape = call.axes("self"), call.shapes[0]
    count = len(call["s"]) if call["s"] is not None else len(axes)
    dims = range(len(axes) - count, len(axes)) if call["dim"] is None else call["dim"]
    changed = dims_of(dims if isinstance(dims, int) else list(dims), len(axes))
    for dim in changed:
        call.pin(axes[dim], "a Fourier transform runs along this axis")
    return tuple(
        call.places([shape[dim]])[0] if dim in changed else axis for dim, axis in enumerate(axes)
    )


@rule("stft", signs=True)
def stft(call: Call) -> Layout:
    """Frequencies and times of a signal, which is the last axis."""
    *batch, time = call.axes("self")
    window = call.axes("window") if isinstance(call["window"], Value) else ()
    for axis in (time, *window):
        call.pin(axis, "a Fourier transform runs along this axis")
    return (*batch, *call.places(call.shapes[0][len(batch) :]))


@rule("cummax", "cummin")
@rule("cumprod", "logcumsumexp")
@rule("cumsum", "flip", "roll", signs=True)
def ordered(call: Call) -> Layout | list[Layout]:
    """The result depends on the order along an axis, which cannot move then."""
    axes = call.axes("self")
    if not (dims := dims_of(call["dim"] if call["dim"] is not None else call["dims"], len(axes))):
        raise UnsupportedError("it acts on all axes as if they were one")
    for dim in dims:
        call.pin(axes[dim], "it depends on the order along this axis")
    return axes if len(call.shapes) == 1 else [axes] * len(call.shapes)


def dims_of(dims: int | list[int], rank: int) -> list[int]:
    """Return one or several dimensions, counted from the front."""
    listed = [dims] if isinstance(dims, int) else list(dims)
    return [dim % rank for dim in listed] if rank else []


def without(axes: Layout, reduced: list[int], *, keep: bool) -> Layout:
    """Return the axes that are left, or of one position each where they are kept."""
    one: Axis = ((),)
    kept = [one if number in reduced else axis for number, axis in enumerate(axes)]
    return tuple(a for n, a in enumerate(kept) if keep or n not in reduced)
