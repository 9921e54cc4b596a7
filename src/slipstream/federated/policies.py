"""Who decides what is exchanged: every weight, those that are not frozen, or modes.

A policy sees each new version of the weights, on the server, and says what may move next.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from slipstream.modes.embedding import FREE, HELD, Embedding
from slipstream.modes.growth import Growth


class Policy(Protocol):
    """Decides, after each round, which weights may move in the next."""

    def start(self, weights: Tensor, sizes: Mapping[str, int]) -> None:
        """Start over with weights (weights,), which are made of tensors of these sizes."""

    def observe(self, weights: Tensor, embedding: Embedding) -> Embedding:
        """Return what may move next, after the round that led to `weights` (weights,)."""


def policy_state(policy: Policy) -> dict[str, Any]:
    """Return what a policy has seen so far: its private attributes, tensors and plain data."""
    found = {name: value for name, value in vars(policy).items() if name.startswith("_")}
    return {n: list(v) if isinstance(v, deque) else v for n, v in found.items()}


def load_policy_state_(policy: Policy, state: Mapping[str, Any]) -> None:
    """Give a policy what `policy_state` returned."""
    for name, value in state.items():
        before = getattr(policy, name, None)
        setattr(policy, name, deque(value, before.maxlen) if isinstance(before, deque) else value)


class Everything:
    """Every weight is exchanged in every round: federated averaging.

    Source: "Communication-Efficient Learning of Deep Networks from Decentralized Data" (McMahan et
    al., 2017).
    """

    def start(self, weights: Tensor, sizes: Mapping[str, int]) -> None:
        """Nothing is kept."""

    def observe(self, weights: Tensor, embedding: Embedding) -> Embedding:
        """Return the embedding as it is."""
        return embedding


class GrowingModes:
    """After a warm-up, more and more weights follow references, and only references are exchanged.

    Source: "Enhancing Neural Training via a Correlated Dynamics Model" (Brokman et al., 2024), the
    federated variant.
    """

    def __init__(self, growth: Growth | None = None) -> None:
        """Keep as many of the latest versions as `growth` looks at; an observation is a round."""
        self.growth = growth or Growth()
        self._history: deque[Tensor] = deque(maxlen=self.growth.window)

    def start(self, weights: Tensor, sizes: Mapping[str, int]) -> None:
        """Keep the first weights, and only these."""
        self._history.clear()
        self._history.append(weights)
        self._observations = 0
        self._sizes = sizes

    def observe(self, weights: Tensor, embedding: Embedding) -> Embedding:
        """Let a further share of the weights follow references, when it is time."""
        self._history.append(weights)
        self._observations += 1
        if not self.growth.due(self._observations):
            return embedding
        return self.growth.grow(embedding, list(self._history), sizes=self._sizes)


class AdaptiveFreezing:
    """APF: weights that only move to and fro are frozen, for longer each time that they prove it.

    A weight is stable if the moving average of its changes is small beside that of their sizes. A
    stable weight is frozen for a period that grows by `every` rounds each time; when it is found
    unstable after it has thawed, the period is halved. When four fifths are frozen, the threshold
    is halved.

    Source: "Communication-Efficient Federated Learning with Adaptive Parameter Freezing" (Chen et
    al., 2021).
    """

    def __init__(self, *, threshold: float = 0.05, decay: float = 0.9, every: int = 2) -> None:
        """Choose when a weight is stable.

        Args:
            threshold: |average change| over the average |change| below which it is.
            decay: Of both averages, for a round.
            every: Rounds from one look at all weights to the next.

        Raises:
            ValueError: If a number is outside its range.
        """
        if not 0 < threshold < 1 or not 0 <= decay < 1 or every < 1:
            raise ValueError(
                "threshold must be in (0, 1), decay in [0, 1) and every at least 1, "
                f"got {threshold}, {decay} and {every}."
            )
        self.threshold, self.decay, self.every = threshold, decay, every

    def start(self, weights: Tensor, sizes: Mapping[str, int]) -> None:
        """Begin with averages of zero."""
        self._round, self._threshold = 0, self.threshold
        self._last = weights
        self._change, self._size = torch.zeros_like(weights), torch.zeros_like(weights)
        self._period = torch.zeros(weights.shape, dtype=torch.int32)
        self._until = torch.zeros(weights.shape, dtype=torch.int32)

    def observe(self, weights: Tensor, embedding: Embedding) -> Embedding:
        """Thaw what has been frozen long enough; freeze what is stable."""
        self._round += 1
        free = embedding.mode == FREE
        change = weights - self._last
        self._last = weights
        # What is frozen keeps its averages: it has no change to learn from.
        self._change[free] = torch.lerp(change, self._change, self.decay)[free]
        self._size[free] = torch.lerp(change.abs(), self._size, self.decay)[free]
        if self._round % self.every == 0:
            self._look(free)
        held = self._until > self._round
        modes = torch.where(held, HELD, FREE).to(embedding.mode)
        return Embedding(modes, embedding.scale)

    def _look(self, free: Tensor) -> None:
        stable = free & (self._change.abs() < self._threshold * self._size)
        self._period[stable] += self.every
        self._period[free & ~stable] //= 2
        self._until[stable] = self._round + self._period[stable]
        if (self._until > self._round).float().mean() > 0.8:
            self._threshold /= 2
