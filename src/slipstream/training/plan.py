"""How a network is trained, as plain data."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from slipstream.evaluation import Batch, batch_size, batches_of_epoch, device_of, to_device


@dataclass(frozen=True)
class Descent:
    """How corners are trained: SGD or AdamW, linear warm-up, then a cosine to 0."""

    epochs: int = 100
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9  # of sgd
    weight_decay: float = 1e-4
    warm_up: float = 0.05  # share of the epochs over which the rate rises from 0
    seed: int = 0  # of the positions and of the model's own randomness, such as dropout

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}.")
        if self.optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer must be sgd or adamw, got {self.optimizer!r}.")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}.")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up must be at least 0 and below 1, got {self.warm_up}.")

    def rate(self, epoch: float) -> float:
        """Return the learning rate after so many epochs.

        Example:
            >>> Descent(epochs=10, lr=1.0, warm_up=0.2).rate(1.0)
            0.5
        """
        done = epoch / self.epochs
        if done < self.warm_up:
            return self.lr * done / self.warm_up
        return self.lr * (1 + math.cos(math.pi * (done - self.warm_up) / (1 - self.warm_up))) / 2

    def build(self, parameters: list[nn.Parameter]) -> Optimizer:
        """Return the optimiser."""
        if self.optimizer == "sgd":
            return SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        return AdamW(parameters, self.lr, weight_decay=self.weight_decay)

    def epoch_of_steps(
        self,
        model: nn.Module,
        data: Iterable[Batch],
        optimizer: Optimizer,
        update: Callable[[Batch], float],
        *,
        epoch: int,
        length: int | None = None,
    ) -> float:
        """Pass over the data once, the rate as of every step.

        Args:
            model: In train mode meanwhile; says where the batches go.
            data: Batches; if it has a method `epoch(number)`, that gives the batches of each epoch.
            optimizer: Whose rate is set.
            update: Does a step on a batch and returns its loss.
            epoch: Epochs done before; with those of the descent, the rate begins anew.
            length: Batches of an epoch, if that is known.

        Returns:
            The mean loss of the epoch, weighted by batch size.

        Raises:
            ValueError: If there is no batch.
        """
        model.train()
        device = device_of(model)
        total, count = 0.0, 0
        for number, batch in enumerate(batches_of_epoch(data, epoch)):
            within = (number + 0.5) / length if length else 0.5
            for group in optimizer.param_groups:
                group["lr"] = self.rate(epoch % self.epochs + min(within, 1.0))
            total += update(to_device(batch, device)) * batch_size(batch)
            count += batch_size(batch)
        if not count:
            raise ValueError(
                f"data is empty in epoch {epoch + 1}: there is no batch to train on. A "
                "generator runs out after one epoch; pass a list or a DataLoader."
            )
        return total / count


def loss_value(loss: Tensor, steps: int) -> float:
    """Return a loss as a number.

    Args:
        loss: Mean over a batch, 0-dim.
        steps: Steps done before it.

    Returns:
        The loss.

    Raises:
        ValueError: If it is not 0-dim or not finite.
    """
    if loss.dim() > 0:
        raise ValueError(
            f"loss must return the batch's mean, a 0-dim tensor; its shape is {tuple(loss.shape)}."
        )
    found = loss.item()
    if not math.isfinite(found):
        raise ValueError(f"The loss at step {steps + 1} is {found}: try a smaller lr.")
    return found
