"""How a network is trained, as plain data."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from slipstream.storage.plan_fields import option

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "cosine"]

# What state files hold that were written before plans had these fields: version 0.1.
BEFORE: Mapping[str, Any] = {"schedule": "cosine"}


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast: an optimiser, and the learning rate of every step.

    The rate rises evenly from 0 to `lr` over the warm-up; then it stays, or falls to 0 along a
    cosine. Each step has the rate of its middle.

    Example:
        >>> TrainingPlan(epochs=10, lr=1.0, warm_up=0.2).rate(1.0)
        0.5
    """

    epochs: int = option(20, "Passes over the training data.")
    optimizer: OptimizerName = option("sgd", "Optimiser.")
    lr: float = option(0.05, "Learning rate, the highest one.")
    momentum: float = option(0.9, "Momentum of sgd.")
    weight_decay: float = option(0.0, "Weight decay.")
    schedule: ScheduleName = option("constant", "The learning rate after the warm-up.")
    warm_up: float = option(0.0, "Share of the epochs over which the learning rate rises from 0.")
    seed: int = option(0, "Seed of what model and training draw, such as dropout.")

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}.")
        for name, kind in (("optimizer", OptimizerName), ("schedule", ScheduleName)):
            *others, last = get_args(kind)
            if getattr(self, name) not in (*others, last):
                known = f"{', '.join(others)} or {last}"
                raise ValueError(f"{name} must be {known}, got {getattr(self, name)!r}.")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}.")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up must be at least 0 and below 1, got {self.warm_up}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")

    @classmethod
    def cosine(
        cls,
        epochs: int = 100,
        optimizer: OptimizerName = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        warm_up: float = 0.05,
        seed: int = 0,
    ) -> "TrainingPlan":
        """Return a plan with a short warm-up, then a cosine to 0: what recipes use.

        Example:
            >>> TrainingPlan.cosine(epochs=10).rate(10)
            0.0
        """
        return cls(epochs, optimizer, lr, momentum, weight_decay, "cosine", warm_up, seed)

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any]) -> "TrainingPlan":
        """Return the plan that a run or a recipe recorded, also one of version 0.1.

        Args:
            recorded: The fields; `keep`, which is recorded beside them, is not looked at.

        Returns:
            The plan; its `rates` are those that the run was trained with.

        Example:
            >>> TrainingPlan.from_dict({"epochs": 2, "lr": 0.1, "warm_up": 0.05}).schedule
            'cosine'
        """
        fields = {name: value for name, value in recorded.items() if name != "keep"}
        if "warm_up" not in fields and fields.get("schedule") == "cosine":
            return _EarlierCosine(**fields)
        return cls(**(dict(BEFORE) if "warm_up" in fields else {}) | fields)

    def rate(self, epoch: float) -> float:
        """Return the learning rate after so many epochs."""
        done = epoch / self.epochs
        if done < self.warm_up:
            return self.lr * done / self.warm_up
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * (done - self.warm_up) / (1 - self.warm_up))) / 2

    def rates(self, steps: int) -> list[float]:
        """Return the learning rate of each of so many steps in all.

        Example:
            >>> [round(rate, 4) for rate in TrainingPlan(2, lr=0.2, schedule="cosine").rates(4)]
            [0.1924, 0.1383, 0.0617, 0.0076]
        """
        length = steps / self.epochs
        return [self.rate(n // length + (n % length + 0.5) / length) for n in range(steps)]

    def build(self, parameters: "Iterable[nn.Parameter]") -> "Optimizer":
        """Return the optimiser."""
        from torch.optim import SGD, Adam, AdamW

        if self.optimizer == "sgd":
            return SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        kind = Adam if self.optimizer == "adam" else AdamW
        return kind(parameters, self.lr, weight_decay=self.weight_decay)


class _EarlierCosine(TrainingPlan):
    """The cosine of `slipstream train` in version 0.1: each step had the rate of its beginning."""

    def rates(self, steps: int) -> list[float]:
        """Return the learning rate of each of so many steps in all."""
        return [self.lr * (1 + math.cos(math.pi * n / steps)) / 2 for n in range(steps)]
