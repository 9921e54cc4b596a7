"""Whether one tensor is another, rounded: to a narrower type, to a few levels, or to zero."""

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 1 << 18
CASTS = (torch.float32, torch.bfloat16, torch.float16)
_SAMPLED = 64  # rows of a matrix in which levels are looked for
_LEVELS = 256  # of eight bits
_SOME = 4096  # values that show that there are more than 256 levels
_GROUPS = (128, 64, 32)  # weights that share a scale in the usual formats
FEWEST_VALUES = 8  # in a row: fewer lie on some grid by chance
_SHORT = 32  # values in a row: the kernels of depthwise convolutions and of patches
_ON_GRID = 5e-3  # of a step: a chance of 1 in 100 for each value
_WHOLE = 1 << 22  # values of a tensor with one scale; of larger ones, rows will do


def blocks(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield two tensors side by side, some at a time: wider copies stay small."""
    a, b = first.reshape(-1), second.reshape(-1)
    for start in range(0, len(a), _BLOCK):
        yield a[start : start + _BLOCK], b[start : start + _BLOCK]


def cast_of(first: Tensor, second: Tensor) -> torch.dtype | None:
    """Return the type whose rounding makes the second of the first, if one does.

    Args:
        first: Any floating type.
        second: The same shape.

    Returns:
        The type; None if there is none.
    """
    for dtype in CASTS:
        if all(torch.equal(a.to(dtype).double(), b.double()) for a, b in blocks(first, second)):
            return dtype
    return None


def fits(value: Tensor) -> torch.dtype | None:
    """Return the narrowest type that holds the values of a tensor exactly, None if it is wide."""
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(a.to(dtype).double(), a.double()) for a, _ in blocks(value, value)):
            return dtype
    return None


def same_before_rounding(
    first: Tensor, second: Tensor, narrow: tuple[torch.dtype | None, torch.dtype | None]
) -> bool:
    """Return whether both may be one tensor that was rounded to two different types.

    Args:
        first: A tensor.
        second: The same shape.
        narrow: The types that hold them exactly; None for their own.

    Returns:
        Whether no value is further from its counterpart than half a unit in the last place of each.
    """
    types = [n or value.dtype for n, value in zip(narrow, (first, second), strict=True)]
    if types[0] == types[1]:
        return False
    spacing = sum(torch.finfo(dtype).eps / 2 for dtype in types)
    smallest = sum(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in types)
    for a, b in blocks(first, second):
        a, b = a.double(), b.double()
        binade = torch.frexp(torch.maximum(a.abs(), b.abs())).exponent - 1
        bound = torch.ldexp(torch.full_like(a, spacing), binade) + smallest
        if not bool(((a - b).abs() <= bound).all()):
            return False
    return True


def is_quantised(first: Tensor, second: Tensor) -> bool:
    """Return whether the second is the first rounded to a few levels.

    Every value of the first must be nearest to its own value in the second, among the levels of its
    row, of its group, or of the whole tensor; and there must be few: on a uniform grid of at most
    256 levels, or at most half as many as there are values.

    Args:
        first: A matrix, a kernel of a convolution, or a vector, which is one row.
        second: The same shape.

    Returns:
        Whether it is, in a sample of the rows.

    Example:
        >>> weight = torch.linspace(-1, 1, 128).view(4, 32).sin()
        >>> scale = weight.abs().amax(1, keepdim=True) / 127
        >>> is_quantised(weight, (weight / scale).round() * scale)
        True
        >>> is_quantised(weight, weight * 1.01)
        False
    """
    if not first.dim() or (first.dim() == 1 and len(torch.unique(second)) < 2):
        return False
    if first.dim() == 1:
        first, second = first[None], second[None]
    rows = slice(None, None, -(-len(first) // _SAMPLED))
    a, b = (value.flatten(1)[rows].double() for value in (first, second))
    width = a.shape[1]
    cuts = [width, *(group for group in _GROUPS if group < width and width % group == 0)]
    if any(_all_rows(a.reshape(-1, cut), b.reshape(-1, cut)) for cut in cuts):
        return True
    if width < _SHORT and _short_rows(a, b):
        return True
    if first.numel() > _WHOLE:
        return False
    return _rounded(first.double().reshape(-1), second.double().reshape(-1))


def _all_rows(first: Tensor, second: Tensor) -> bool:
    return all(_rounded(a, b) for a, b in zip(first, second, strict=True))


def _short_rows(first: Tensor, second: Tensor) -> bool:
    """Whether rows are rounded to 3 to 256 levels, of which the largest value is the last."""
    # No row has values enough to show its levels, but all of them together do.
    largest = second.abs().amax(1, keepdim=True).clamp_min(1e-30)
    if second.numel() - len(second) < FEWEST_VALUES:
        return False
    for bits in range(2, 9):
        for last in (2 ** (bits - 1) - 1, 2 ** (bits - 1)):
            step = largest / last
            counts = second / step
            near = (first - second).abs() <= step * 0.5001
            if bool((near & ((counts - counts.round()).abs() < _ON_GRID)).all()):
                return True
    return False


def _rounded(first: Tensor, second: Tensor) -> bool:
    """Whether one row is another, rounded to levels."""
    if torch.equal(first, second) and not bool(second.any()):
        return True  # a row of zeros
    if len(second) > _SOME and len(_levels(second[:_SOME])) > _LEVELS:
        return False
    levels = _levels(second)
    few = len(levels) <= min(_LEVELS, len(second) // 2)
    step = None if few else _grid_step(levels)
    if len(second) < FEWEST_VALUES or not (few or step):
        return False
    if step:  # levels that no value takes are levels too
        return bool(((first - second).abs() <= step * 0.5001).all())
    middles = (levels[1:] + levels[:-1]) / 2
    nearest = (first - levels[torch.bucketize(first, middles)]).abs()
    return bool(((first - second).abs() <= nearest * 1.0001 + 1e-30).all())


def _levels(values: Tensor) -> Tensor:
    found: Tensor = torch.unique(values)
    return found


def _grid_step(levels: Tensor) -> float | None:
    """The step of a uniform grid of at most 256 levels that all lie on, if there is one."""
    gaps = levels.diff()
    span = float(levels[-1] - levels[0])
    if len(gaps) < FEWEST_VALUES - 1 or not span:
        return None
    for part in range(1, 9):  # the smallest gap may be several steps
        step = float(gaps.min()) / part
        if span / step > _LEVELS:
            return None
        counts = gaps / step
        # None of a hundred gaps is missed by rounding.
        if bool(((counts - counts.round()).abs() < _ON_GRID).all()):
            return step
    return None
