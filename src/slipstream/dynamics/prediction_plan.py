"""What is predicted of a training that is not run, and how, as plain data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from slipstream.dynamics.rate import Rate
from slipstream.storage.plan_fields import option

if TYPE_CHECKING:
    import torch

    from slipstream.dynamics.sgd import SGDSettings

Outputs = Literal["full", "separate"]
MEMORY = 2 * 1024**3  # bytes
RateSchedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class PredictionPlan:
    """The training by SGD that `predict_training_time` predicts, and how it does so.

    Example:
        >>> PredictionPlan(thresholds=(0.5, "10%")).losses(2.0)
        [0.5, 0.2]
    """

    thresholds: Sequence[float | str] = option(
        ("50%", "25%", "10%"), "A loss to reach, such as 0.1, or a share of the first one, as 10%."
    )
    lr: Rate = option(0.05, "Learning rate.")  # in Python also one per step, or a function of it
    momentum: float = option(0.9, "Momentum of SGD.")
    weight_decay: float = option(0.0, "Weight decay of SGD.")
    schedule: RateSchedule = option(
        "constant", "constant, or cosine: the learning rate falls to 0 at the last step."
    )
    batch_size: int | None = option(None, "Examples per step.", minimum=1, shown="all")
    seed: int = option(0, "Seed of the order of the examples.")
    max_steps: int = option(10_000, "When to give up.", minimum=1)
    smoothing: int = option(1, "The loss is averaged over so many last steps.", minimum=1)
    warm_up: int = option(0, "Real steps before the network is linearised.", minimum=0)
    linearisations: int = option(
        16, "How often the network may be linearised; the paper's method: 1.", minimum=1
    )
    tolerance: float = option(
        0.02, "How far outputs may be from the predicted ones until it is linearised again."
    )
    # For `Trust` and the time of a step; a twentieth of the predicted steps, 10 if none are.
    probe_steps: int | None = option(
        None, "Real steps to compare with, on a copy.", minimum=0, shown="a twentieth"
    )
    outputs: Outputs = option(
        "full", "separate: ignore the effect of one output on another, to save memory."
    )
    dtype: "torch.dtype | None" = None  # of the kernel; that of the parameters if not given
    memory: int = MEMORY  # bytes that the kernel, and blocks of the Jacobian, may each take

    def __post_init__(self) -> None:
        if not self.thresholds:
            raise ValueError("thresholds is empty: give the losses to reach.")
        for one in self.thresholds:
            _loss_of(one, 1.0)
        if self.schedule not in get_args(RateSchedule):
            raise ValueError(f"schedule must be constant or cosine, got {self.schedule!r}.")
        if self.schedule == "cosine" and not isinstance(self.lr, int | float):
            raise ValueError("lr must be a number with schedule='cosine', which has its own rates.")
        for name, value, least in (
            ("smoothing", self.smoothing, 1),
            ("warm_up", self.warm_up, 0),
            ("linearisations", self.linearisations, 1),
            ("probe_steps", self.probe_steps or 0, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must not be negative, got {self.tolerance}.")
        needed = self.warm_up + max(1, self.probe_steps or 0)
        if self.steps < needed:
            raise ValueError(
                f"max_steps, and lr if it is a sequence, must reach as far as warm_up and "
                f"probe_steps, {needed} steps; they end after {self.steps}."
            )

    @property
    def settings(self) -> "SGDSettings":
        """The steps of SGD."""
        from slipstream.dynamics.sgd import SGDSettings

        rate = self.lr
        if self.schedule == "cosine" and isinstance(rate, int | float):
            rate = partial(_cosine, rate, self.max_steps)
        return SGDSettings(rate, self.momentum, self.weight_decay, self.batch_size, self.seed)

    @property
    def steps(self) -> int:
        """The most steps, for which there is a learning rate."""
        return self.settings.last_step(self.max_steps)

    def losses(self, initial: float) -> list[float]:
        """Return the thresholds as losses.

        Args:
            initial: The loss at the start.

        Returns:
            One for each threshold.

        Raises:
            ValueError: If one is not below the loss at the start.
        """
        found = [_loss_of(one, initial) for one in self.thresholds]
        for value in found:
            if not value < initial:
                raise ValueError(
                    f"thresholds must be below the loss at the start, {initial:.6g}, got {value:g}."
                )
        return found


def _cosine(first: float, steps: int, step: int) -> float:
    return first * (1 + math.cos(math.pi * step / steps)) / 2


def _loss_of(threshold: float | str, initial: float) -> float:
    """A loss, or a share of the first one such as `10%`."""
    try:
        value = float(threshold.removesuffix("%") if isinstance(threshold, str) else threshold)
    except ValueError as error:
        raise ValueError(
            f"thresholds must be losses such as 0.1, or shares such as 10%, got {threshold!r}."
        ) from error
    is_share = isinstance(threshold, str) and threshold.endswith("%")
    return value / 100 * initial if is_share else value
