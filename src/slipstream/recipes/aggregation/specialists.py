"""The networks of an aggregation: where they start, what they minimise, what batches they get."""

import copy as copying
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, batches_of_epoch
from slipstream.training import check_sized, fresh_weights
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, check_same_layout, weights_of

R = TypeVar("R")


class Family(nn.Module):
    """The specialists and the aggregate."""

    def __init__(self, model: nn.Module, starts: Sequence[Weights]) -> None:
        """Begin with the aggregate at the sum of the specialists."""
        super().__init__()
        self.specialists = nn.ModuleList(model_at(model, weights) for weights in starts)
        self.aggregate = copying.deepcopy(self.specialists[0])
        with torch.no_grad():
            for whole, parts in self.parameter_pairs():
                whole.copy_(torch.stack(parts).sum(0))

    def parameter_pairs(self) -> Iterator[tuple[nn.Parameter, list[Tensor]]]:
        """Yield each parameter of the aggregate with those of the specialists."""
        of_each = [list(specialist.parameters()) for specialist in self.specialists]
        for number, whole in enumerate(self.aggregate.parameters()):
            yield whole, [parameters[number] for parameters in of_each]

    def objective(self, tasks: Sequence[Task], batches: Sequence[Batch], pull: float) -> Tensor:
        """Return the losses of the specialists, that of the aggregate on all, and the pull."""
        sizes = [task.batch_size(batch) for task, batch in zip(tasks, batches, strict=True)]
        total: Tensor = torch.zeros((), device=next(self.parameters()).device)
        each = zip(self.specialists, tasks, batches, sizes, strict=True)
        for specialist, task, batch, size in each:
            total = total + task.loss(specialist, batch)
            total = total + size / sum(sizes) * task.loss(self.aggregate, batch)
        for whole, parts in self.parameter_pairs():
            total = total + pull * (whole - torch.stack(parts).sum(0)).square().sum()
        return total


class Together:
    """A batch of every task at each step; shorter data sets begin again."""

    def __init__(self, data: Sequence[Iterable[Batch]], number: int = 0) -> None:
        """Join the data of epoch `number`."""
        self._data, self._number = data, number

    def __len__(self) -> int:
        return max(len(part) for part in self._data)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        endless = [self._again(part) for part in self._data]
        return itertools.islice(zip(*endless, strict=True), len(self))

    def epoch(self, number: int) -> "Together":
        """Return the batches of another epoch."""
        return Together(self._data, number)

    def _again(self, part: Iterable[Batch]) -> Iterator[Batch]:
        while True:
            empty = True
            for batch in batches_of_epoch(part, self._number):
                empty = False
                yield batch
            if empty:
                raise ValueError("data is empty: one of the data sets has no batch any more.")


def specialist_starts(
    tasks: Sequence[Task], *, initial: Sequence[Weights] | None, seed: int
) -> list[Weights]:
    """Return where each specialist starts, or raise if it cannot."""
    check_sized([task.data for task in tasks], name="data", fewest=2)
    model = tasks[0].model
    if any(task.model is not model for task in tasks):
        raise ValueError("tasks must hold the same model: each specialist is a copy of it.")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise ValueError(
                f"{name!r} requires no gradient, so it would be added up untrained: let all "
                "parameters require one."
            )
    if initial is None:
        seeds = np.random.default_rng((seed, 0)).integers(2**62, size=len(tasks) - 1)
        return [weights_of(model), *(fresh_weights(model, seed=int(seed)) for seed in seeds)]
    if len(initial) != len(tasks):
        raise ValueError(
            f"initial must hold weights for each of the {len(tasks)} data sets, got {len(initial)}."
        )
    for number, weights in enumerate(initial):
        check_same_layout(weights_of(model), weights, names=("the model", f"initial[{number}]"))
    return list(initial)


def calibrated(tasks: Sequence[Task], weights: Weights) -> dict[str, Tensor]:
    """Return the weights with BatchNorm's statistics of several tasks together."""
    parts = [task.calibration_batches for task in tasks]
    data: Iterable[Batch] = _Chained(parts) if any(part != () for part in parts) else ()
    return {**weights, **replace(tasks[0], calibration=data).recalibrated(weights)}


class _Chained:
    """Several data sets one after another, as often as asked for."""

    def __init__(self, data: Sequence[Iterable[Batch]]) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Batch]:
        return itertools.chain.from_iterable(self._data)


def a_task_each(function: Callable[..., R]) -> Callable[..., R]:
    """Let `takes_task` pass one task whose data are those of several, as in calls of 0.1."""

    @wraps(function)
    def call(*args: Any, task: Task | None = None, **given: Any) -> R:
        if task is None:
            return function(*args, **given)
        parts: list[Any] = list(task.data)
        held: list[Any] = list(task.validation or [None] * len(parts))
        pairs = zip(parts, held, strict=True)
        return function([replace(task, data=d, validation=v) for d, v in pairs], *args, **given)

    return call
