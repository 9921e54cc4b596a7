"""From values to what their colours mean, with ticks whose labels do not overlap."""

import math
from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor

from slipstream.report.content import Colours, Scale

_DECADES = 4  # of the distance from the lowest value that a root scale shows
_APART = 0.12  # ticks, as a share of the whole scale
_TICKS = 5  # about


def colour_scale(
    label: str, values: Tensor, *, scale: Scale = "linear", low: float | None = None
) -> Colours:
    """Choose the ends and the ticks of a colour scale.

    Args:
        label: What the values are.
        values: Of any shape; NaN and infinities are left out, and what is not positive on a
            logarithmic scale.
        scale: `root` is finer near the lowest value, and ends where the highest ones would leave
            no colours for the rest: a loss far from its minimum.
        low: The low end, if it is not the lowest value.

    Returns:
        The scale.

    Example:
        >>> import torch
        >>> colour_scale("speed", torch.tensor([0.02, 0.5, 3.0]), scale="log").ticks
        (0.03, 0.1, 0.3, 1.0, 3.0)
    """
    known = values.double()[values.isfinite()]
    known = known[known > 0] if scale == "log" else known
    lowest, highest = (float(known.min()), float(known.max())) if len(known) else (0.1, 1.0)
    lowest = lowest if low is None else low
    if scale == "root" and len(known):
        middle = max(float(known.median()) - lowest, 1e-9)
        highest = min(highest, lowest + 10**_DECADES * middle)
    if highest <= lowest:
        highest = 10 * lowest if scale == "log" else lowest + max(1e-3 * abs(lowest), 1e-9)
    return Colours(label, lowest, highest, _ticks(lowest, highest, scale), scale)


def position(colours: Colours, value: float) -> float:
    """Return where a value is on the scale, from 0 to 1.

    Example:
        >>> position(Colours("loss", 1.0, 5.0, (), "root"), 2.0)
        0.5
    """
    share = _along(value, colours.low, colours.high, colours.scale)
    return min(max(share, 0.0), 1.0)


def _along(value: float, low: float, high: float, scale: Scale) -> float:
    if scale == "log":
        return math.log(max(value, low) / low) / math.log(high / low)
    share = (value - low) / (high - low)
    return math.sqrt(max(share, 0.0)) if scale == "root" else share


def _ticks(low: float, high: float, scale: Scale) -> tuple[float, ...]:
    if scale == "root":
        even = [low + (high - low) * (n / (_TICKS - 1)) ** 2 for n in range(_TICKS)]
        found: Iterable[float] = [float(f"{value:.2g}") for value in even]
    elif scale == "log":
        decades = math.log10(high / low)
        digits = (1, 2, 5) if decades < 1.2 else (1, 3) if decades < 3 else (1,)
        between = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [float(f"{digit}e{decade}") for decade in between for digit in digits]
    else:
        step = _round_step((high - low) / _TICKS)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        found = [float(f"{number * step:.12g}") for number in range(first, last + 1)]
    slack = 1e-9 * (high - low) if scale == "linear" else 0.0
    inside = sorted({value for value in found if low - slack <= value <= high + slack})
    return _far_apart(inside or [low, high], low, high, scale)


def _far_apart(ticks: list[float], low: float, high: float, scale: Scale) -> tuple[float, ...]:
    """All ticks, or every second, third and so on."""
    for every in range(1, len(ticks)):
        chosen = ticks[::every]
        positions = [_along(value, low, high, scale) for value in chosen]
        if all(b - a >= _APART for a, b in pairwise(positions)):
            return tuple(chosen)
    return tuple(ticks[:1])


def _round_step(size: float) -> float:
    """1, 2 or 5 times a power of ten, at least `size`."""
    decade = 10.0 ** math.floor(math.log10(size))
    return next(digit * decade for digit in (1, 2, 5, 10) if digit * decade >= size * (1 - 1e-9))
