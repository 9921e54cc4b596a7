"""SGD as plain data: the rate and the examples of each step; and real steps of it."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.dynamics.rate import Rate
from slipstream.evaluation import Loss


@dataclass(frozen=True)
class SGDSettings:
    """How a network is trained, as `torch.optim.SGD` does it."""

    lr: Rate
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int | None = None  # all examples at once
    seed: int = 0  # of the order of the examples

    def __post_init__(self) -> None:
        if isinstance(self.lr, int | float) and not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive, got {self.lr}.")
        if isinstance(self.lr, Sequence) and not len(self.lr):
            raise ValueError("lr must have a rate for each step, got an empty sequence.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if isinstance(self.lr, int | float):
            return float(self.lr)
        rate = float(self.lr(step) if callable(self.lr) else self.lr[step])
        if not 0 <= rate < math.inf:
            raise ValueError(
                f"lr must not be negative; at step {step} (counted from 0) it is {rate}."
            )
        return rate

    def last_step(self, steps: int) -> int:
        """Return how many of `steps` the learning rate is given for."""
        return min(steps, len(self.lr)) if isinstance(self.lr, Sequence) else steps

    def is_full(self, examples: int) -> bool:
        """Return whether every step sees all examples."""
        return self.batch_size is None or self.batch_size >= examples

    def rows(self, step: int, examples: int) -> Tensor:
        """Return which examples a step sees: an order for each epoch, the last batch what is left.

        The order is that of `slipstream.testbed.Batches` with the same seed.

        Args:
            step: Counted from 0.
            examples: How many there are.

        Returns:
            (n,) positions of the examples.
        """
        if self.is_full(examples):
            return torch.arange(examples)
        size = self.batch_size or examples
        epoch, batch = divmod(step, -(-examples // size))
        order = np.random.default_rng((self.seed, epoch)).permutation(examples)
        return torch.from_numpy(order[batch * size : (batch + 1) * size])


@dataclass
class RealTraining:
    """A model that takes real steps, in place."""

    model: nn.Module
    loss: Loss
    data: tuple[Tensor, Tensor]  # inputs and targets of all examples
    settings: SGDSettings
    step: int = 0
    velocity: dict[str, Tensor] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # of each step

    def take(self, steps: int) -> None:
        """Take real steps; the model's `.grad` fields stay as they are."""
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        for _ in range(steps):
            started = time.perf_counter()
            rows = self.settings.rows(self.step, len(self.data[0]))
            if not self.settings.is_full(len(self.data[0])):
                batch = tuple(part[rows.to(part.device)] for part in self.data)
            else:
                batch = self.data
            with torch.enable_grad():
                value = self.loss(self.model, batch)
                slopes = torch.autograd.grad(value, list(trained.values()), materialize_grads=True)
            self._move(trained, slopes)
            self.step += 1
            self.seconds.append(time.perf_counter() - started)

    @torch.no_grad()
    def _move(self, trained: dict[str, nn.Parameter], slopes: tuple[Tensor, ...]) -> None:
        rate = self.settings.rate(self.step)
        for (name, weight), slope in zip(trained.items(), slopes, strict=True):
            slope = slope.add(weight, alpha=self.settings.weight_decay)
            if self.settings.momentum:
                before = self.velocity.get(name)
                slope = slope if before is None else slope.add(before, alpha=self.settings.momentum)
                self.velocity[name] = slope
            weight.sub_(slope, alpha=rate)
