"""A model with its data: what is trained or measured, on which batches, and how a batch is fed."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slipstream.evaluation.batches import (
    Batch,
    Loss,
    Metric,
    accuracy,
    batch_size,
    classification_loss,
    device_of,
    inputs_of,
    to_device,
)
from slipstream.evaluation.batchnorm import forward_inputs, recalibrate_batchnorm
from slipstream.evaluation.metrics import evaluate, gradient
from slipstream.weights import Weights, unwrapped

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Task:
    """A model, the data it meets, and how.

    Functions that run a model on data take a `Task`; they measure and train on `data`, which
    `task.on("test")` replaces by another split.

    Example:
        >>> task = Task(nn.Linear(2, 3), [(torch.ones(4, 2), torch.tensor([0, 1, 2, 2]))])
        >>> sorted(task.evaluate()), task.gradient()["bias"].shape
        (['accuracy', 'loss'], torch.Size([3]))
    """

    # Left as it was by whatever takes the task, unless it says otherwise; without the wrappers of
    # torch.compile and data parallelism
    model: nn.Module
    data: Iterable[
        Batch
    ] = ()  # training batches; `data.epoch(n)`, if there, gives those of epoch n
    loss: Loss = classification_loss  # maps a model and a batch to the batch's mean, 0-dim
    validation: Iterable[Batch] | None = None  # what choices are made on
    test: Iterable[Batch] | None = None  # for reporting, never for choosing
    metrics: Mapping[str, Metric] | None = None  # besides the loss; of classification: accuracy
    forward: Callable[[nn.Module, Batch], object] = forward_inputs  # runs the model on a batch
    batch_size: Callable[[Batch], int] = batch_size  # what a batch weighs in a mean
    calibration: Iterable[Batch] | None = None  # for BatchNorm; `data` if None, and () for none
    unlabelled: Iterable[Batch] | None = None  # to observe the model on; `data` if None
    example_input: Any = None  # what the model is traced with; the first batch's inputs if None
    configuration: Mapping[str, Any] = field(default_factory=dict)  # the names that made it

    def __post_init__(self) -> None:
        # Weights have the names that they have in the model inside torch.compile or DataParallel.
        if isinstance(self.model, nn.Module):
            object.__setattr__(self, "model", unwrapped(self.model))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    @property
    def has_data(self) -> bool:
        """Whether there is data to train or to take gradients on."""
        return not (isinstance(self.data, tuple) and not self.data)

    @property
    def measured(self) -> dict[str, Metric]:
        """The loss, then the metrics, by name."""
        given = self.metrics
        if given is None:
            given = {"accuracy": accuracy} if self.loss is classification_loss else {}
        if given.get("loss", self.loss) != self.loss:
            raise ValueError("metrics holds another 'loss' than the task's: rename that metric.")
        return {"loss": self.loss, **given}

    def to(self, batch: Batch) -> Batch:
        """Return a batch on the model's device."""
        return to_device(batch, self.device)

    def part(self, split: str) -> Iterable[Batch]:
        """Return the batches of a split.

        Args:
            split: `train`, `validation` or `test`.

        Returns:
            Its batches.

        Raises:
            ValueError: If there is no such split, or the task has no data for it.
        """
        parts = {"train": self.data, "validation": self.validation, "test": self.test}
        if split not in parts:
            raise ValueError(f"split must be train, validation or test, got {split!r}.")
        found = parts[split]
        if found is None:
            raise ValueError(f"The task has no {split} data: give it with Task(..., {split}=...).")
        return found

    def on(self, split: Split | Iterable[Batch]) -> "Task":
        """Return the task with other data: a split by name, or batches.

        BatchNorm is still calibrated on the training data.
        """
        data = self.part(split) if isinstance(split, str) else split
        return replace(self, data=data, calibration=self.calibration_batches)

    @property
    def train(self) -> Iterable[Batch]:
        """What the training data were called in the `Experiment` of version 0.1."""
        warnings.warn("task.train is now task.data.", DeprecationWarning, stacklevel=2)
        return self.data

    @property
    def calibration_batches(self) -> Iterable[Batch]:
        """What BatchNorm's statistics are estimated on; `()` if they stay as they are."""
        if self.calibration is not None:
            return self.calibration
        if not self.has_data:  # which is not to leave the statistics as they are
            return [] if self.unlabelled is None else self.unlabelled
        return self.data

    @property
    def unlabelled_batches(self) -> Iterable[Batch]:
        """Batches of which nothing but the model's outputs is looked at: labels may be missing."""
        return self.data if self.unlabelled is None else self.unlabelled

    def example(self) -> Any:
        """Return inputs to trace the model with.

        Raises:
            ValueError: If none were given and there is no data to take them from.
        """
        if self.example_input is not None:
            return self.example_input
        return inputs_of(self.to(self.first_batch()))

    def first_batch(self) -> Batch:
        """Return the first training batch, or unlabelled one; a generator's is lost to it.

        Raises:
            ValueError: If there is none.
        """
        first = next(iter(self.data if self.has_data else self.unlabelled_batches), None)
        if first is None:
            raise ValueError("data is empty: there is no batch.")
        return first

    def repeatable(self) -> "Task":
        """Return the task with validation data that can be gone through many times."""
        held = self.validation
        if isinstance(held, Iterator):
            held = list(held)
        if held is not None and next(iter(held), None) is None:
            raise ValueError("validation is empty: there is no batch to measure on.")
        return replace(self, validation=held)

    def in_memory(self) -> "Task":
        """Return the task with what is not for choosing or reporting read once, to use it often."""
        kept, seen = self.calibration, self.unlabelled
        if kept is not None and not isinstance(kept, tuple):
            kept = list(kept)
        if seen is not None:
            seen = list(seen)
        return replace(self, data=list(self.data), calibration=kept, unlabelled=seen)

    def evaluate(
        self, *, weights: Weights | None = None, split: Split = "train"
    ) -> dict[str, float]:
        """Return the means of loss and metrics over a split, as of `evaluate`."""
        return evaluate(
            self.model,
            self.measured,
            weights=weights,
            data=self.part(split),
            batch_size=self.batch_size,
        )

    def validated(self, *, weights: Weights | None = None) -> dict[str, float]:
        """Return the same on validation data as runs record it, `validation_loss`; or nothing."""
        if self.validation is None:
            return {}
        found = self.evaluate(weights=weights, split="validation")
        return {f"validation_{name}": value for name, value in found.items()}

    def gradient(self, *, weights: Weights | None = None) -> dict[str, Tensor]:
        """Return the gradient of the mean loss over `data`, as of `gradient`."""
        return gradient(
            self.model, self.loss, weights=weights, data=self.data, batch_size=self.batch_size
        )

    def recalibrated(self, weights: Weights | None = None) -> dict[str, Tensor]:
        """Return BatchNorm's statistics at `weights`, as of `recalibrate_batchnorm`."""
        data = self.calibration_batches
        if isinstance(data, tuple) and not data:
            return {}
        return recalibrate_batchnorm(
            self.model, weights=weights, data=data, forward=self.feed, batch_size=self.batch_size
        )

    @property
    def feed(self) -> Callable[[nn.Module, Batch], object]:
        """What runs the model on a batch: `forward` if one was given, else the loss of labels."""
        labelled = self.has_data or self.unlabelled is None
        return self.loss if self.forward is forward_inputs and labelled else self.forward
