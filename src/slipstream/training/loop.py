"""The loop that recipes share: epochs of a descent, which can be kept and gone on with."""

import copy as copying
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, device_of
from slipstream.training.plan import Descent, loss_value

Progress = Callable[[int, int | None], object]  # the steps done, their final number if known


class Descending:
    """Trains parameters of a module in place, round after round of a descent.

    A round is `descent.epochs` epochs, in which the learning rate rises and falls once; the
    optimiser, with its momentum, stays the same from round to round.
    """

    def __init__(
        self,
        module: nn.Module,
        descent: Descent,
        *,
        trained: Sequence[nn.Parameter] | None = None,
        undecayed: Sequence[nn.Parameter] = (),
        rounds: int = 1,
    ) -> None:
        """Begin at the module's weights.

        Args:
            module: What is trained.
            descent: How.
            trained: What the optimiser gets; the module's parameters that require a gradient if
                not given.
            undecayed: Parameters of it that have no weight decay.
            rounds: How many times the descent is gone through.

        Raises:
            ValueError: If the module has nothing to train.
        """
        apart = {id(parameter) for parameter in undecayed}
        if trained is None:
            trained = [p for p in module.parameters() if p.requires_grad]
        decayed = [p for p in trained if id(p) not in apart]
        if not decayed:
            raise ValueError("The model has no parameter that requires a gradient.")
        self.module, self.rounds = module, rounds
        self.optimizer = descent.build(decayed)
        if undecayed:
            self.optimizer.add_param_group({"params": list(undecayed), "weight_decay": 0.0})
        self.descent = descent
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
        """Train to the end of the round that has begun.

        Args:
            loss: The mean loss of a batch, a 0-dim tensor.
            data: Batches; if it has a method `epoch(number)`, that gives the batches of each epoch.
            on_epoch: Called after each epoch.
            progress: Called after each step.

        Raises:
            ValueError: If `data` is empty or the loss is not finite.
        """
        length = len(data) if isinstance(data, Sized) else None
        end = self.epoch - self.epoch % self.descent.epochs + self.descent.epochs
        total = None
        if length is not None:
            done = self.epoch % self.descent.epochs
            total = self.step + length * (self.descent.epochs - done)
        while self.epoch < end:
            began = time.perf_counter()
            self._epoch(loss, data, length, lambda step: progress and progress(step, total))
            self.seconds += time.perf_counter() - began
            on_epoch()

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        return self.epoch >= self.rounds * self.descent.epochs

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
        """Go on where another one stopped."""
        self.module.load_state_dict(state["module"])
        if state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.losses, self.notes = list(state["losses"]), list(state["notes"])

    def _epoch(
        self,
        loss: Callable[[Batch], Tensor],
        data: Iterable[Batch],
        length: int | None,
        progress: Callable[[int], object],
    ) -> None:
        """One pass over the data."""

        def update(batch: Batch) -> float:
            value = loss(batch)
            found = loss_value(value, self.step)
            self.optimizer.zero_grad()
            torch.autograd.backward(value)
            self.optimizer.step()
            self.step += 1
            progress(self.step)
            return found

        device = device_of(self.module)
        # One stream for each epoch, so that a resumed training draws what this one would.
        seed = np.random.default_rng((self.descent.seed, self.epoch)).integers(2**62)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            mean = self.descent.epoch_of_steps(
                self.module, data, self.optimizer, update, epoch=self.epoch, length=length
            )
        self.epoch += 1
        self.losses.append(mean)


def descend(
    model: nn.Module,
    loss: Loss,
    *,
    data: Iterable[Batch],
    descent: Descent,
    progress: Progress | None = None,
) -> nn.Module:
    """Return a copy of a model after a descent: what recipes are compared with.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        data: Batches; if it has a method `epoch(number)`, that gives the batches of each epoch.
        descent: How.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The trained copy.

    Raises:
        ValueError: If there is nothing to train, `data` is empty or the loss is not finite.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> loss = lambda model, batch: (model(batch) - 1).square().mean()
        >>> found = descend(model, loss, data=[torch.ones(2, 1)], descent=Descent(epochs=200))
        >>> round(found(torch.ones(1)).item(), 2)
        1.0
    """
    trained = copying.deepcopy(model)
    training = Descending(trained, descent)
    training.run(lambda batch: loss(trained, batch), data=data, progress=progress)
    return trained


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
