"""How much each snapshot counts in an average: plain data, and the running form of it.

From a recorded run an average is the sum of its kernel times the snapshots. Beside training it is a
running mean, the same numbers without the snapshots.

Means are kept in float64: in float32 an exponential average with a decay of 0.9999 stops moving as
soon as a ten-thousandth of the distance is less than one rounding.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from slipstream.weights import Weights, clone, is_continuous


class AverageRule(Protocol):
    """How much each snapshot counts in an average."""

    def kernel(self, steps: Sequence[int]) -> list[float]:
        """Return the share of the snapshot of each step; all together 1."""

    def running(self) -> "RunningAverage":
        """Return what forms the same average one snapshot at a time."""


class RunningAverage(Protocol):
    """An average that is formed one snapshot at a time."""

    def update(self, weights: Weights, step: int) -> None:
        """Take in the weights of a step; they are copied."""

    def mean(self) -> dict[str, Tensor] | None:
        """Return the average in float64, or None as long as nothing counts."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain data."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""


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
        return _Mean(self)

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
        return _Mean(self)

    @property
    def start(self) -> int:
        """The first step that counts."""
        return 0

    def share(self, count: int) -> float:
        """Return how much the newest of `count` snapshots counts."""
        return (1 - self.decay) / (1 - self.decay**count)


@dataclass(frozen=True)
class LAWA:
    """The mean of the latest snapshots.

    Source: "Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight
    Averaging" (Kaddour, 2022), equation 1.

    Example:
        >>> LAWA(2).kernel([0, 10, 20, 30])
        [0.0, 0.0, 0.5, 0.5]
    """

    snapshots: int

    def __post_init__(self) -> None:
        if self.snapshots < 1:
            raise ValueError(f"snapshots of LAWA must be at least 1, got {self.snapshots}.")

    def __str__(self) -> str:
        return f"lawa:{self.snapshots}"

    def kernel(self, steps: Sequence[int]) -> list[float]:
        """Return the share of the snapshot of each step; all together 1."""
        count = min(self.snapshots, len(steps))
        return [0.0] * (len(steps) - count) + [1 / count] * count

    def running(self) -> RunningAverage:
        """Return what forms the same average one snapshot at a time."""
        return _Window(self.snapshots)


def parse_rule(text: str) -> SWA | EMA | LAWA:
    """Read a rule as its `str` writes it.

    Args:
        text: "swa:STEP", "ema:DECAY" or "lawa:SNAPSHOTS".

    Returns:
        The rule.

    Raises:
        ValueError: If it is not a rule, or its number is out of range.

    Example:
        >>> parse_rule("ema:0.9")
        EMA(decay=0.9)
    """
    kind, _, number = text.partition(":")
    makers: dict[str, Callable[[str], SWA | EMA | LAWA]] = {
        "swa": lambda start: SWA(int(start)),
        "ema": lambda decay: EMA(float(decay)),
        "lawa": lambda snapshots: LAWA(int(snapshots)),
    }
    try:
        float(number)
        make = makers[kind]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"A rule must be swa:STEP, ema:DECAY or lawa:SNAPSHOTS, such as ema:0.9, got {text!r}."
        ) from error
    return make(number)


class _Mean:
    """A running mean, for rules that know how much the newest snapshot counts."""

    def __init__(self, rule: SWA | EMA) -> None:
        self._rule = rule
        self._count = 0
        self._held: dict[str, Tensor] = {}

    def update(self, weights: Weights, step: int) -> None:
        if step < self._rule.start:
            return
        self._count += 1
        if self._count == 1:
            self._held = {name: widened(value) for name, value in weights.items()}
            return
        averaged = [name for name, value in weights.items() if is_averaged(value)]
        torch._foreach_lerp_(  # one kernel for all tensors on a GPU
            [self._held[name] for name in averaged],
            [weights[name].to(self._held[name].dtype) for name in averaged],
            self._rule.share(self._count),
        )
        self._held |= {n: value.clone() for n, value in weights.items() if not is_averaged(value)}

    def mean(self) -> dict[str, Tensor] | None:
        return dict(self._held) if self._count else None

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "weights": [clone(self._held)] if self._count else []}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._count = state["count"]
        self._held = clone(state["weights"][0]) if self._count else {}


class _Window:
    """The latest snapshots, averaged when the mean is asked for: no rounding adds up."""

    def __init__(self, length: int) -> None:
        self._latest: deque[dict[str, Tensor]] = deque(maxlen=length)

    def update(self, weights: Weights, step: int) -> None:
        self._latest.append(clone(weights))

    def mean(self) -> dict[str, Tensor] | None:
        if not self._latest:
            return None
        newest = self._latest[-1]
        return {
            name: torch.stack([widened(w[name]) for w in self._latest]).mean(0)
            if is_averaged(value)
            else value
            for name, value in newest.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {"weights": [clone(weights) for weights in self._latest]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._latest.clear()
        self._latest.extend(clone(weights) for weights in state["weights"])


def is_averaged(value: Tensor) -> bool:
    """Return whether there is something between two values: not for a count of batches."""
    return is_continuous(value)


def widened(value: Tensor) -> Tensor:
    """Return a copy, in float64 or complex128 if it is averaged."""
    wide = torch.promote_types(value.dtype, torch.float64)
    return value.to(wide if is_averaged(value) else value.dtype, copy=True)
