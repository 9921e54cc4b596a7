"""How complex the learned function is, read from how the first layer's bias moves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slipstream.dynamics import TrainingComplexity
from slipstream.report.content import Lines, Series, plain
from slipstream.report.palette import BLUE

_POINTS = 1000  # a curve has no more: means over stretches of the steps


def complexity_charts(found: TrainingComplexity) -> list[Lines]:
    """Return the path length of the bias, and the slope of the function between its bounds."""
    steps, lengths = _thinned(found.moves.cumsum(0), last=True)
    length = Series("", steps, plain(lengths), BLUE)
    rates = torch.where(found.exposures > 0, found.moves / found.exposures, torch.nan)
    steps, slopes = _thinned(found.lipschitz)
    low, high = (plain(_thinned(s * rates)[1]) for s in (found.smallest, found.largest))
    slope = Series("", steps, plain(slopes), BLUE, low, high)
    return [
        Lines(
            "length",
            f"Path length of the bias of {found.layer!r}",
            "A longer path of the first layer's bias means a more complex function.",
            "step",
            "length",
            [length],
            y_range=(0.0, 1.05 * max([*lengths, 1e-12])),
        ),
        Lines(
            "slope",
            "Slope of the function at the examples",
            "The band is what the bias alone says: the slope lies between its ends.",
            "step",
            "slope",
            [slope],
        ),
    ]


def _thinned(values: Tensor, *, last: bool = False) -> tuple[Sequence[int], Sequence[float]]:
    """Steps and values, as means over stretches of the steps, or the last of each."""
    every = -(-len(values) // _POINTS)
    stretches = torch.split(values, every)
    shown = [float(part[-1] if last else part.nanmean()) for part in stretches]
    return [min((n + 1) * every, len(values)) for n in range(len(stretches))], shown
