"""The loop: epochs of steps in place, which can be recorded and resumed to the bit."""

import copy as copying
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slipstream.evaluation import Batch, Task, batches_of_epoch, device_of, to_device
from slipstream.evaluation import batch_size as size_of
from slipstream.evaluation.takes_task import takes_task
from slipstream.training.plan import TrainingPlan

Progress = Callable[[int, int | None], object]  # the steps done, their final number if known


class Loop:
    """Trains parameters of a module in place.

    A round is `plan.epochs` epochs, in which the learning rate goes through its schedule once; the
    optimiser, with its momentum, stays the same from round to round. A subclass may take another
    step, by `update`, and hold more state.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: TrainingPlan,
        *,
        trained: Sequence[nn.Parameter] | None = None,
        undecayed: Sequence[nn.Parameter] = (),
        rounds: int = 1,
        batch_size: Callable[[Batch], int] = size_of,
        optimizer: Optimizer | None = None,
    ) -> None:
        """Begin at the module's weights.

        Args:
            module: What is trained; in train mode in every epoch.
            plan: How.
            trained: What the optimiser gets; the module's parameters that require a gradient if
                not given.
            undecayed: Parameters of it that have no weight decay.
            rounds: How many times the plan is gone through.
            batch_size: What a batch weighs in the mean loss of an epoch.
            optimizer: One that the plan does not know; it gets the plan's rates.

        Raises:
            ValueError: If the module has nothing to train.
        """
        apart = {id(parameter) for parameter in undecayed}
        if trained is None:
            trained = [p for p in module.parameters() if p.requires_grad]
        decayed = [p for p in trained if id(p) not in apart]
        if not decayed:
            raise ValueError("The model has no parameter that requires a gradient.")
        self.module, self.plan, self.rounds = module, plan, rounds
        self.optimizer = plan.build(decayed) if optimizer is None else optimizer
        if undecayed:
            self.optimizer.add_param_group({"params": list(undecayed), "weight_decay": 0.0})
        self._batch_size = batch_size
        self.generator = np.random.default_rng()  # of the epoch; what a step draws comes from it
        self.epoch = self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []  # mean training loss of each epoch
        self.notes: list[dict[str, Any]] = []  # what a recipe adds to the state, as plain data

    def run(
        self,
        loss: Callable[[Batch], Tensor],
        *,
        data: Iterable[Batch],
        on_epoch: Callable[[], object] = lambda: None,
        progress: Progress | None = None,
    ) -> None:
        """Train to the end of the round that has begun; do nothing if all rounds are done.

        Args:
            loss: The mean loss of a batch, a 0-dim tensor.
            data: Batches; if it has a method `epoch(number)`, that gives the batches of each epoch.
            on_epoch: Called after each epoch.
            progress: Called after each step.

        Raises:
            ValueError: If `data` is empty or the loss is not finite.
        """
        if self.finished:
            return
        length = len(data) if isinstance(data, Sized) else None
        left = self.plan.epochs - self.epoch % self.plan.epochs
        total = None if length is None else self.step + length * left
        for _ in range(left):
            began = time.perf_counter()
            with self._stream():
                self._epoch(loss, data, length, lambda step: progress and progress(step, total))
            self.seconds += time.perf_counter() - began
            on_epoch()

    def update(self, loss: Callable[[Batch], Tensor], batch: Batch) -> float:
        """Take a step on a batch.

        Args:
            loss: The mean loss of a batch, a 0-dim tensor.
            batch: On the device of the module.

        Returns:
            Its loss before the step.
        """
        value = loss(batch)
        found = loss_value(value, self.step)
        self.optimizer.zero_grad()
        torch.autograd.backward(value)
        self.optimizer.step()
        return found

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        return self.epoch >= self.rounds * self.plan.epochs

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs; of a finished training without the optimiser's."""
        return {
            "module": self.module.state_dict(),
            "optimizer": None if self.finished else self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "losses": list(self.losses),
            "notes": list(self.notes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another one stopped."""
        if state.get("module") is not None:
            self.module.load_state_dict(state["module"])
        if state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.losses, self.notes = list(state["losses"]), list(state.get("notes", ()))

    @contextmanager
    def _stream(self) -> Generator[None]:
        """One stream for each epoch, so that a resumed training draws what this one would."""
        self.generator = np.random.default_rng((self.plan.seed, self.epoch))
        device = device_of(self.module)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(self.generator.integers(2**62)))
            yield

    def _epoch(
        self,
        loss: Callable[[Batch], Tensor],
        data: Iterable[Batch],
        length: int | None,
        progress: Callable[[int], object],
    ) -> None:
        """One pass over the data, every step at its own rate."""
        self.module.train()
        device = device_of(self.module)
        total, count = 0.0, 0
        for number, batch in enumerate(batches_of_epoch(data, self.epoch)):
            within = min((number + 0.5) / length, 1.0) if length else 0.5
            rate = self.plan.rate(self.epoch % self.plan.epochs + within)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            size = self._batch_size(batch)
            total += self.update(loss, to_device(batch, device)) * size
            count += size
            self.step += 1
            progress(self.step)
        if not count:
            raise ValueError(
                f"data is empty in epoch {self.epoch + 1}: there is no batch to train on. A "
                "generator runs out after one epoch; pass a list or a DataLoader."
            )
        self.epoch += 1
        self.losses.append(total / count)


class DivergedError(ValueError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class TrainingResult:
    """Result of `train`."""

    losses: tuple[float, ...]  # mean training loss of each epoch
    steps: int
    seconds: float


@takes_task(plan=TrainingPlan)
def train(
    task: Task,
    plan: TrainingPlan | None = None,
    *,
    on_optimizer: Callable[[Optimizer], object] | None = None,
    on_epoch: Callable[[int, float], object] | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train the model of a task in place: the same weights for the same seed bit by bit on a CPU.

    Args:
        task: The model, on the device to train on, with its loss and its data.
        plan: How.
        on_optimizer: Called once with the optimiser, before the first step, e.g. to attach a
            recorder.
        on_epoch: Called after each epoch with its number, from 1, and its mean training loss.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        Losses, number of steps and time.

    Raises:
        ValueError: If there is nothing to train, `data` is empty or the loss is not finite.

    Example:
        >>> from slipstream.evaluation import squared_loss
        >>> task = Task(nn.Linear(1, 1), [(torch.ones(2, 1), torch.zeros(2, 1))], squared_loss)
        >>> train(task, TrainingPlan(epochs=3)).steps
        3
    """
    loop = Loop(task.model, plan or TrainingPlan(), batch_size=task.batch_size)
    if on_optimizer:
        on_optimizer(loop.optimizer)
    loop.run(
        lambda batch: task.loss(task.model, batch),
        data=task.data,
        on_epoch=lambda: on_epoch and on_epoch(loop.epoch, loop.losses[-1]),
        progress=progress,
    )
    return TrainingResult(tuple(loop.losses), loop.step, loop.seconds)


def trained_copy(
    task: Task, plan: TrainingPlan | None = None, *, progress: Progress | None = None
) -> nn.Module:
    """Return a trained copy of a task's model: what recipes are compared with.

    Args:
        task: The model, which is left as it was, with its loss and its data.
        plan: How.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The copy.

    Raises:
        ValueError: If there is nothing to train, `data` is empty or the loss is not finite.

    Example:
        >>> loss = lambda model, batch: (model(batch) - 1).square().mean()
        >>> task = Task(nn.Linear(1, 1), [torch.ones(2, 1)], loss)
        >>> found = trained_copy(task, TrainingPlan(epochs=200))
        >>> round(found(torch.ones(1)).item(), 2)
        1.0
    """
    own = replace(task, model=copying.deepcopy(task.model))
    train(own, plan, progress=progress)
    return own.model


def loss_value(loss: Tensor, steps: int) -> float:
    """Return a loss as a number.

    Args:
        loss: Mean over a batch, 0-dim.
        steps: Steps done before it.

    Returns:
        The loss.

    Raises:
        ValueError: If it is not 0-dim.
        DivergedError: If it is not finite.
    """
    if loss.dim() > 0:
        raise ValueError(
            f"loss must return the batch's mean, a 0-dim tensor; its shape is {tuple(loss.shape)}."
        )
    found = loss.item()
    if not math.isfinite(found):
        raise DivergedError(f"The loss at step {steps + 1} is {found}: try a smaller lr.")
    return found


def check_sized(data: Sequence[Iterable[Batch]], *, name: str, fewest: int) -> None:
    """Raise unless there are several sets of batches, each with a length that is not 0.

    Args:
        data: The sets.
        name: What to call them in the message.
        fewest: How many there must be.

    Raises:
        ValueError: If there are fewer, or one has no length or is empty.

    Example:
        >>> check_sized([[torch.ones(1)], []], name="chunks", fewest=1)
        Traceback (most recent call last):
        ...
        ValueError: chunks[1] is empty: there is no batch to train on.
    """
    if len(data) < fewest:
        raise ValueError(f"{name} must hold {fewest} sets of batches at least, got {len(data)}.")
    for number, part in enumerate(data):
        if not isinstance(part, Sized):
            kind = type(part).__name__
            raise ValueError(
                f"{name}[{number}] must have a length, got a {kind}: pass a list or a DataLoader."
            )
        if not len(part):
            raise ValueError(f"{name}[{number}] is empty: there is no batch to train on.")
