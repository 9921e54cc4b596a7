"""Weights measured on validation data, part by part, so that a difference has a standard error."""

import math
from collections import UserDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor

from slipstream.evaluation import Batch, Task
from slipstream.porting.method_inputs import MethodInputs
from slipstream.transfer.transfer_state import BatchStream, complete_weights
from slipstream.weights import Weights

_PARTS = 16  # fewer validation batches than that are split, to know how far losses vary


@dataclass(frozen=True)
class Measured:
    """The losses of some weights on the parts of the validation data."""

    losses: Tensor  # (parts,) in float64
    sizes: Tensor  # (parts,) what each weighs in the mean
    wider: "Measured | None" = None  # on all labels of a budget, if the weights learned from none

    @property
    def loss(self) -> float:
        """The mean; infinite if it is not a number."""
        value = float((self.losses * self.sizes).sum() / self.sizes.sum())
        return value if math.isfinite(value) else math.inf

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        """Losses and sizes."""
        return self.losses, self.sizes

    @property
    def widest(self) -> "Measured":
        """The same on as many labels as may be looked at."""
        return self if self.wider is None else self.wider

    def margin(self, other: "Measured", *, errors: float, tried: int = 1) -> float | None:
        """Return how much lower than `other` the loss must be to be believed.

        Args:
            other: Of other weights, on the same parts.
            errors: How many standard errors of the paired difference.
            tried: Among how many methods this is the best one.

        Returns:
            That many standard errors; more if there are few parts, as the quantiles of Student's t
            are larger then, and more if many were tried, as the least of many losses is lucky. None
            if there are too few parts to know.

        Example:
            >>> ones, sizes = torch.ones(3), torch.ones(3)
            >>> worse = Measured(ones + torch.tensor([0.0, 1.0, 2.0]), sizes)
            >>> round(Measured(ones, sizes).margin(worse, errors=1), 4)  # 2 * 1 / sqrt(3)
            1.1547

        Source: the one-standard-error rule of "Classification and Regression Trees" (Breiman et
        al., 1984), for paired differences.
        """
        count = len(self.losses)
        if count < 2 or not torch.equal(self.sizes, other.sizes):
            return None
        return _widened(self._error(other), count, errors, tried)

    def assumed_margin(self, *, errors: float, tried: int = 1) -> float:
        """Return the margin below these losses where nobody knows how far they vary.

        The losses of single examples are taken to vary by about as much as they are: cross-entropy
        does.

        Args:
            errors: As of `margin`.
            tried: As of `margin`.

        Example:
            >>> alone = Measured(torch.tensor([2.0]), torch.tensor([16]))
            >>> round(alone.assumed_margin(errors=1), 4)  # (2 / sqrt(16)) * (1 + 2 / 15)
            0.5667
        """
        examples = max(float(self.sizes.sum()), 1.0)
        return _widened(self.loss / math.sqrt(examples), examples, errors, tried)

    def _error(self, other: "Measured") -> float:
        count = len(self.losses)
        shares = self.sizes / self.sizes.sum()
        differences = self.losses - other.losses
        apart = shares * (differences - (shares * differences).sum())
        return math.sqrt(float(apart.square().sum()) * count / (count - 1))


def _widened(error: float, count: float, errors: float, tried: int) -> float:
    """Some standard errors, more for few parts and for the best of several methods."""
    few = 1 + 2 / max(count - 1, 1)
    return errors * few * math.sqrt(1 + math.log(tried)) * error


class Judge:
    """Measures weights on the validation data."""

    def __init__(self, inputs: MethodInputs) -> None:
        task = replace(inputs.with_model.repeatable(), metrics={})
        self.own = complete_weights(task.model, inputs.problem.to_base, "to_base")
        self._task = replace(task, validation=_in_parts(task, self.own))
        self._more: Iterable[Batch] = ()  # further labels, for what does not learn from them
        if inputs.plan.labels is not None and task.has_data:
            self._more = _in_parts(replace(task, validation=task.data), self.own)
        self._calibration: list[Batch] = []  # for the statistics of BatchNorm
        if task.calibration is None or task.calibration != ():
            given = (task.data if task.has_data else task.validation) or ()
            stream = BatchStream(given if task.calibration is None else task.calibration)
            self._calibration = stream.take(inputs.plan.batchnorm_batches)

    def measure(self, weights: Weights, *, everywhere: bool = False) -> Measured:
        """Return the losses on the parts of the validation data, and on all labels of a budget."""
        held = _measured(self._task, weights, self._task.validation or ())
        if not everywhere or not self._more:
            return held
        more = _measured(self._task, weights, self._more)
        losses, sizes = (torch.cat(both) for both in zip(held.values, more.values, strict=True))
        return replace(held, wider=Measured(losses, sizes))

    def statistics(self, weights: Weights) -> dict[str, Tensor]:
        """Return the statistics that BatchNorm has on the data; none without BatchNorm or data."""
        if not self._calibration:
            return {}
        return replace(self._task, calibration=self._calibration).recalibrated(weights)


def _measured(task: Task, weights: Weights, data: Iterable[Batch]) -> Measured:
    losses, sizes = [], []

    def loss(model: torch.nn.Module, batch: Batch) -> Tensor:
        value = task.loss(model, batch)
        losses.append(float(value))
        sizes.append(task.batch_size(batch))
        return value

    replace(task, data=data, loss=loss).evaluate(weights=weights)
    return Measured(torch.tensor(losses).double(), torch.tensor(sizes).double())


def _in_parts(task: Task, weights: Weights) -> Iterable[Batch]:
    """The validation data; a few batches are split, if the mean over the parts is the same."""
    whole = list(islice(task.validation or (), _PARTS))
    if len(whole) == _PARTS:
        return task.validation or ()
    parts = [part for batch in whole for part in _split(batch, math.ceil(_PARTS / len(whole)))]
    if len(parts) == len(whole):
        return whole
    # Of a loss that compares examples, or of tokens weighted as examples, the mean differs.
    before, after = (_measured(task, weights, data) for data in (whole, parts))
    alike = math.isclose(before.loss, after.loss, rel_tol=1e-3, abs_tol=1e-6)
    return parts if alike and before.sizes.sum() == after.sizes.sum() else whole


def _split(batch: Batch, count: int) -> list[Batch]:
    """A batch of tensors with one row for each example in parts; any other as it is."""
    lengths = set(_lengths(batch))
    if len(lengths) != 1 or None in lengths:
        return [batch]
    length = lengths.pop() or 0
    bounds = sorted({round(length * part / count) for part in range(count + 1)})
    return [_rows(batch, slice(*pair)) for pair in pairwise(bounds)] or [batch]


def _lengths(nested: Any) -> Iterator[int | None]:
    """The lengths of all tensors; None for what cannot be split by rows."""
    if isinstance(nested, Tensor):
        yield len(nested) if nested.dim() else None
    elif type(nested) in (tuple, list, dict) or isinstance(nested, UserDict):
        for value in nested if isinstance(nested, tuple | list) else nested.values():
            yield from _lengths(value)
    else:
        yield None


def _rows(nested: Any, rows: slice) -> Any:
    if isinstance(nested, Tensor):
        return nested[rows]
    if isinstance(nested, tuple | list):
        return type(nested)(_rows(value, rows) for value in nested)
    return type(nested)({name: _rows(value, rows) for name, value in nested.items()})
