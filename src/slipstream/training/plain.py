"""A plain training loop, the same weights for the same seed bit by bit on a CPU."""

import math
import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from slipstream.evaluation import Batch, Loss, batch_size, batches_of_epoch, device_of, to_device

OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "cosine"]


@dataclass(frozen=True)
class TrainingResult:
    """Result of `train`."""

    losses: tuple[float, ...]  # mean training loss of each epoch
    steps: int
    seconds: float


def train(
    model: nn.Module,
    loss: Loss,
    *,
    data: Iterable[Batch],
    epochs: int,
    optimizer: OptimizerName = "sgd",
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: ScheduleName = "constant",
    seed: int = 0,
    on_optimizer: Callable[[Optimizer], object] | None = None,
    on_step: Callable[[int], object] | None = None,
    on_epoch: Callable[[int, float], object] | None = None,
) -> TrainingResult:
    """Train `model` in place.

    Args:
        model: What to train, on the device to train on.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        data: Batches; if it has a method `epoch(number)`, that gives the batches of each epoch.
        epochs: Number of passes over the data.
        optimizer: `sgd`, `adam` or `adamw`.
        lr: Learning rate, the first one if the schedule is cosine.
        momentum: Of `sgd`; the others have their usual betas.
        weight_decay: As the optimiser defines it.
        schedule: `constant`, or `cosine` from `lr` to 0, step by step.
        seed: Seed of the model's own randomness, such as dropout; global generators stay as they
            were. The order of the data is the data's own.
        on_optimizer: Called once with the optimiser, before the first step, e.g. to attach a
            recorder.
        on_step: Called after each step with the number of steps taken.
        on_epoch: Called after each epoch with its number, from 1, and its mean training loss.

    Returns:
        Losses, number of steps and time.

    Raises:
        ValueError: If an argument is none of its choices, `data` is empty, or the loss is no
            longer finite.
    """
    chosen = _optimizer(model, optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if on_optimizer:
        on_optimizer(chosen)
    total_steps = epochs * len(data) if isinstance(data, Sized) else None
    scheduler = LambdaLR(chosen, rate_factor(schedule, total_steps))
    start, steps, losses = time.perf_counter(), 0, []
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for epoch in range(epochs):
            model.train()
            total, count = torch.zeros((), dtype=torch.float64, device=device), 0
            for batch in batches_of_epoch(data, epoch):
                value = loss(model, to_device(batch, device))
                chosen.zero_grad()
                torch.autograd.backward(value)
                chosen.step()
                scheduler.step()
                steps += 1
                total += value.detach() * batch_size(batch)
                count += batch_size(batch)
                if on_step:
                    on_step(steps)
            losses.append(_mean(total, count, epoch=epoch + 1))
            if on_epoch:
                on_epoch(epoch + 1, losses[-1])
    return TrainingResult(tuple(losses), steps, time.perf_counter() - start)


def _optimizer(
    model: nn.Module, name: str, *, lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name in ("adam", "adamw"):
        kind = Adam if name == "adam" else AdamW
        return kind(parameters, lr=lr, weight_decay=weight_decay)
    raise ValueError(f"optimizer must be sgd, adam or adamw, got {name!r}.")


def rate_factor(schedule: ScheduleName, steps: int | None) -> Callable[[int], float]:
    """Return what the learning rate is multiplied with at every step, counted from 0.

    Args:
        schedule: `constant`, or `cosine` from 1 to 0.
        steps: How many there are, if that is known.

    Returns:
        A function of the step.

    Raises:
        ValueError: If the schedule is none of these, or needs to know the number of steps.
    """
    if schedule == "constant":
        return lambda step: 1.0
    if schedule != "cosine":
        raise ValueError(f"schedule must be constant or cosine, got {schedule!r}.")
    if steps is None:
        raise ValueError("The cosine schedule needs data that knows its length in batches.")
    total = max(1, steps)
    return lambda step: (1 + math.cos(math.pi * step / total)) / 2


def _mean(total: torch.Tensor, count: int, *, epoch: int) -> float:
    if not count:
        raise ValueError("data is empty: there is no batch to train on.")
    mean = total.item() / count
    if not math.isfinite(mean):
        raise ValueError(f"The loss of epoch {epoch} is {mean}: try a smaller lr.")
    return mean
