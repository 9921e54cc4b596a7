"""Averages that are formed one snapshot at a time.

Means are kept in float64: in float32 an exponential average with a decay of 0.9999 stops moving as
soon as a ten-thousandth of the distance is less than one rounding.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from slipstream.sharded import local_part
from slipstream.weights import Weights, clone, is_continuous


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


class RunningMean:
    """A running mean, for rules that know how much the newest snapshot counts."""

    def __init__(self, share: Callable[[int, int, int], float], *, start: int = 0) -> None:
        """Hold nothing yet.

        Args:
            share: How much the newest snapshot counts, by the number of snapshots with it, its step
                and the step of the one before.
            start: The first step that counts.
        """
        self._share, self._start = share, start
        self._count = self._step = 0
        self._held: dict[str, Tensor] = {}

    def update(self, weights: Weights, step: int) -> None:
        """Take in the weights of a step; they are copied."""
        if step < self._start:
            return
        before, self._step = self._step, step
        self._count += 1
        if self._count == 1:
            self._held = {name: widened(value) for name, value in weights.items()}
            return
        averaged = [name for name, value in weights.items() if is_averaged(value)]
        torch._foreach_lerp_(  # one kernel for all tensors on a GPU
            [local_part(self._held[name]) for name in averaged],
            [local_part(weights[name]).to(self._held[name].dtype) for name in averaged],
            self._share(self._count, step, before),
        )
        self._held |= {n: value.clone() for n, value in weights.items() if not is_averaged(value)}

    def mean(self) -> dict[str, Tensor] | None:
        """Return the average in float64, or None as long as nothing counts."""
        return dict(self._held) if self._count else None

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain data."""
        weights = [clone(self._held)] if self._count else []
        return {"count": self._count, "step": self._step, "weights": weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; there was no step in version 0.1."""
        self._count, self._step = state["count"], state.get("step", 0)
        self._held = clone(state["weights"][0]) if self._count else {}


class HeldSnapshots:
    """The snapshots that count, averaged when the mean is asked for: no rounding adds up.

    For rules under which a snapshot that no longer counts, before all that do, never does again.
    """

    def __init__(self, kernel: Callable[[Sequence[int]], list[float]], *, start: int = -1) -> None:
        """Hold none yet.

        Args:
            kernel: The share of the snapshot of each step.
            start: Nothing counts up to this step; the latest snapshot is held, as a beginning.
        """
        self._shares, self._start = kernel, start
        self._held: deque[tuple[int, dict[str, Tensor]]] = deque()

    def update(self, weights: Weights, step: int) -> None:
        """Take in the weights of a step; they are copied."""
        self._held.append((step, clone(weights)))
        shares = self._kernel() or [0.0] * (len(self._held) - 1) + [1.0]
        for share in shares:
            if share != 0:
                return
            self._held.popleft()

    def mean(self) -> dict[str, Tensor] | None:
        """Return the average in float64, or None as long as nothing counts."""
        if (shares := self._kernel()) is None:
            return None
        largest = max(shares)  # multiples of it: equal shares are summed without rounding
        sums = {name: widened(value) for name, value in self._held[-1][1].items()}
        for name in [name for name, value in sums.items() if is_averaged(value)]:
            sums[name].mul_(shares[-1] / largest)
            for share, (_, weights) in zip(shares[:-1], self._held, strict=False):
                sums[name].add_(weights[name], alpha=share / largest)
            sums[name].div_(1 / largest)
        return sums

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain data."""
        steps = [step for step, _ in self._held]
        return {"steps": steps, "weights": [clone(weights) for _, weights in self._held]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; there were no steps in version 0.1."""
        steps = state.get("steps", range(len(state["weights"])))
        self._held = deque(zip(steps, map(clone, state["weights"]), strict=True))

    def _kernel(self) -> list[float] | None:
        steps = [step for step, _ in self._held]
        return self._shares(steps) if steps and steps[-1] > self._start else None


def is_averaged(value: Tensor) -> bool:
    """Return whether there is something between two values: not for a count of batches."""
    return is_continuous(value)


def widened(value: Tensor) -> Tensor:
    """Return a copy, in float64 or complex128 if it is averaged."""
    wide = torch.promote_types(value.dtype, torch.float64)
    return value.to(wide if is_averaged(value) else value.dtype, copy=True)
