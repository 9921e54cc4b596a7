"""How much each snapshot counts in an average: plain data.

From a recorded run an average is the sum of its kernel times the snapshots. Beside training it is a
running mean, the same numbers without the snapshots.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np

from slipstream.averaging.running import (
    HeldSnapshots,
    RunningAverage,
    RunningMean,
    is_averaged,
    widened,
)

__all__ = [
    "EMA", "LAWA", "SWA", "AverageRule", "Decay", "PowerEMA", "RunningAverage", "is_averaged",
    "parse_rule", "widened",
]  # fmt: skip

_PLAIN_WIDTH = 12**-0.5


class AverageRule(Protocol):
    """How much each snapshot counts in an average."""

    def kernel(self, steps: Sequence[int]) -> list[float]:
        """Return the share of the snapshot of each step; all together 1."""

    def running(self) -> RunningAverage:
        """Return what forms the same average one snapshot at a time."""


@dataclass(frozen=True)
class SWA:
    """The plain mean of all snapshots from a step on.

    Source: "Averaging Weights Leads to Wider Optima and Better Generalization" (Izmailov et al.,
    2018), algorithm 1.

    Example:
        >>> SWA(start=20).kernel([0, 10, 20, 30])
        [0.0, 0.0, 0.5, 0.5]
    """

    start: int = 0  # optimiser steps done

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"start of SWA must not be negative, got {self.start}.")

    def __str__(self) -> str:
        return f"swa:{self.start}"

    def kernel(self, steps: Sequence[int]) -> list[float]:
        """Return the share of the snapshot of each step; all together 1."""
        count = sum(step >= self.start for step in steps)
        if not count:
            raise ValueError(f"SWA starts at step {self.start}; the last snapshot is {steps[-1]}.")
        return [(step >= self.start) / count for step in steps]

    def running(self) -> RunningAverage:
        """Return what forms the same average one snapshot at a time."""
        return RunningMean(lambda count, *_: self.share(count), start=self.start)

    def share(self, count: int) -> float:
        """Return how much the newest of `count` snapshots counts."""
        return 1 / count


@dataclass(frozen=True)
class EMA:
    """The exponential average: a snapshot counts `decay` times as much as the one after it.

    The shares are divided by their sum, so that the first snapshots of a run do not linger. The
    decay is that of one update to the next, not of one step to the next.

    Source: "Adam: A Method for Stochastic Optimization" (Kingma, Ba, 2015), section 3, for the sum.

    Example:
        >>> EMA(0.5).kernel([0, 10])
        [0.3333333333333333, 0.6666666666666666]
    """

    decay: float

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"decay of EMA must be between 0 and 1, got {self.decay}.")

    def __str__(self) -> str:
        return f"ema:{self.decay:g}"

    def kernel(self, steps: Sequence[int]) -> list[float]:
        """Return the share of the snapshot of each step; all together 1."""
        newest = self.share(len(steps))
        return [newest * self.decay**age for age in reversed(range(len(steps)))]

    def running(self) -> RunningAverage:
        """Return what forms the same average one snapshot at a time."""
        return RunningMean(lambda count, *_: self.share(count), start=self.start)

    @property
    def start(self) -> int:
        """The first step that counts."""
        return 0

    def share(self, count: int) -> float:
        """Return how much the newest of `count` snapshots counts."""
        return (1 - self.decay) / (1 - self.decay**count)


@dataclass(frozen=True)
class LAWA:
    """The mean of the latest snapshots: a number of them, or those of the last share of the steps.

    The default is the window that was best over the seven workloads of the second source. Beside
    training it grows with the steps done, and all its snapshots are held: update every so many
    steps that they fit into memory.

    Source: "Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight
    Averaging" (Kaddour, 2022), equation 1; "When, Where and Why to Average Weights?" (Ajroldi,
    Orvieto, Geiping, 2025), section 3, for the window.

    Example:
        >>> LAWA(2).kernel([0, 10, 20, 30])
        [0.0, 0.0, 0.5, 0.5]
        >>> LAWA(window=0.4).kernel([0, 10, 20, 30])  # steps after 18
        [0.0, 0.0, 0.5, 0.5]
    """

    snapshots: int | None = None
    window: float = 0.01  # share of the steps; without effect where `snapshots` is given

    def __post_init__(self) -> None:
        if self.snapshots is not None and self.snapshots < 1:
            raise ValueError(f"snapshots of LAWA must be at least 1, got {self.snapshots}.")
        if not 0 < self.window <= 1:
            raise ValueError(
                f"window of LAWA must be above 0 and at most 1, a share of the steps, "
                f"got {self.window}."
            )

    def __str__(self) -> str:
        return (
            f"lawa:{self.window * 100:g}%" if self.snapshots is None else f"lawa:{self.snapshots}"
        )

    def kernel(self, steps: Sequence[int]) -> list[float]:
        """Return the share of the snapshot of each step; all together 1."""
        if self.snapshots is None:
            first = steps[-1] - self.window * steps[-1]
            count = max(sum(step > first for step in steps), 1)
        else:
            count = min(self.snapshots, len(steps))
        return [0.0] * (len(steps) - count) + [1 / count] * count

    def running(self) -> RunningAverage:
        """Return what forms the same average one snapshot at a time."""
        return HeldSnapshots(self.kernel)


CurveName = Literal["linear", "cosine", "1-sqrt"]
_CURVES: dict[CurveName, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "1-sqrt": lambda done: 1 - math.sqrt(done),
}


@dataclass(frozen=True)
class Decay:
    """Where a decay of the learning rate would have led, from a run with a constant one.

    The steps between two snapshots count as much as the decayed rate would have been over them, on
    average; so a snapshot weighs what the rate falls from the steps before it to those after it.
    Exact for any distances between snapshots if the gradients were those of the recorded run, as
    with gradients that are constant; with real ones it is an emulation.

    A decay cannot begin before the first snapshot: then it begins there.

    Source: "WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging for LLM Pre-training"
    (Tian et al., 2025), section 3, for the idea, here over steps.

    Example:
        >>> Decay(10, "linear").kernel([0, 10, 20, 30])
        [0.0, 0.25, 0.5, 0.25]
    """

    start: int  # optimiser steps done when the decay begins; it ends with the last snapshot
    curve: CurveName | Callable[[float], float] = "1-sqrt"  # share of the decay done -> of the rate

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"start of Decay must not be negative, got {self.start}.")
        if not callable(self.curve) and self.curve not in _CURVES:
            raise ValueError(
                f"curve of Decay must be one of {', '.join(_CURVES)}, or a function, "
                f"got {self.curve!r}."
            )

    def __str__(self) -> str:
        name = getattr(self.curve, "__name__", "curve") if callable(self.curve) else self.curve
        return f"{name}:{self.start}"

    def kernel(self, steps: Sequence[int]) -> list[float]:
        """Return the share of the snapshot of each step; all together 1."""
        if steps[-1] <= self.start:
            raise ValueError(
                f"The decay begins at step {self.start}; the last snapshot is {steps[-1]}."
            )
        rates = self._rates(steps[0], steps[-1])
        gaps = [(before - steps[0], after - steps[0]) for before, after in pairwise(steps)]
        means = [math.fsum(rates[before:after]) / (after - before) for before, after in gaps]
        return [here - later for here, later in pairwise([1.0, *means, 0.0])]

    def running(self) -> RunningAverage:
        """Return what forms the same average one snapshot at a time, holding all of the decay."""
        return HeldSnapshots(self.kernel, start=self.start)

    def _rates(self, first: int, last: int) -> list[float]:
        """Of the steps after `first`: each has the rate of its middle, as in `TrainingPlan`."""
        curve = self.curve if callable(self.curve) else _CURVES[self.curve]
        start = max(self.start, first)
        falling = [float(curve((n + 0.5) / (last - start))) for n in range(last - start)]
        if not all(map(math.isfinite, falling)):
            raise ValueError(f"curve of {self} is not finite everywhere between 0 and 1.")
        return [1.0] * (start - first) + falling


@dataclass(frozen=True)
class PowerEMA:
    """An exponential average whose width is a share of the training, whatever its length.

    A step weighs as much as a power of its number: early ones fade as training grows longer. The
    width is the standard deviation of this profile, relative to the steps done. A snapshot stands
    for the steps since the one before.

    Source: "Analyzing and Improving the Training Dynamics of Diffusion Models" (Karras et al.,
    2024), equations 1 to 3.

    Example:
        >>> [round(share, 3) for share in PowerEMA(0.25).kernel([0, 10, 20, 30])]
        [0.0, 0.151, 0.347, 0.502]
    """

    width: float

    def __post_init__(self) -> None:
        if not 0 < self.width < _PLAIN_WIDTH:
            raise ValueError(
                f"width of PowerEMA must be above 0 and below {_PLAIN_WIDTH:.3f}, that of the "
                f"plain mean, got {self.width}."
            )

    def __str__(self) -> str:
        return f"power:{self.width:g}"

    @property
    def exponent(self) -> float:
        """The power of its number that a step weighs."""
        roots = np.roots([1, 7, 16 - self.width**-2, 12 - self.width**-2])
        return float(roots.real.max())

    def kernel(self, steps: Sequence[int]) -> list[float]:
        """Return the share of the snapshot of each step; all together 1."""
        power, last = self.exponent + 1, max(steps[-1], 1)
        covered = [(step / last) ** power for step in steps[:-1]] + [1.0]
        return [after - before for before, after in pairwise([0.0, *covered])]

    def running(self) -> RunningAverage:
        """Return what forms the same average one snapshot at a time."""
        power = self.exponent + 1
        return RunningMean(lambda count, step, before: 1 - (before / step) ** power)


_Rule = SWA | EMA | LAWA | Decay | PowerEMA
_MAKERS: dict[str, Callable[[str], _Rule]] = {
    "swa": lambda start: SWA(int(start)),
    "ema": lambda decay: EMA(float(decay)),
    "lawa": lambda snapshots: LAWA(int(snapshots)),
    "lawa%": lambda percent: LAWA(window=float(percent) / 100),
    "power": lambda width: PowerEMA(float(width)),
    "linear": lambda start: Decay(int(start), "linear"),
    "cosine": lambda start: Decay(int(start), "cosine"),
    "1-sqrt": lambda start: Decay(int(start), "1-sqrt"),
}


def parse_rule(text: str) -> SWA | EMA | LAWA | Decay | PowerEMA:
    """Read a rule as its `str` writes it.

    Args:
        text: "swa:STEP", "ema:DECAY", "lawa:SNAPSHOTS", "lawa:PERCENT%", "power:WIDTH", or for a
            decay from a step on "linear:STEP", "cosine:STEP" or "1-sqrt:STEP".

    Returns:
        The rule.

    Raises:
        ValueError: If it is not a rule, or its number is out of range.

    Example:
        >>> parse_rule("ema:0.9")
        EMA(decay=0.9)
        >>> parse_rule("cosine:8000")
        Decay(start=8000, curve='cosine')
    """
    kind, _, number = text.partition(":")
    if kind == "lawa" and number.endswith("%"):
        kind, number = "lawa%", number[:-1]
    try:
        float(number)
        make = _MAKERS[kind]
    except (KeyError, ValueError) as error:
        raise ValueError(
            "A rule must be swa:STEP, ema:DECAY, lawa:SNAPSHOTS, lawa:PERCENT%, power:WIDTH, "
            f"linear:STEP, cosine:STEP or 1-sqrt:STEP, such as ema:0.9, got {text!r}."
        ) from error
    return make(number)
