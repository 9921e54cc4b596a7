"""From plain data to a model with its data and its loss: what a run keeps to be rebuilt."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from slipstream.evaluation import Batch, Loss, Metric, accuracy, classification_loss, squared_loss
from slipstream.recipes.few_shot.adaptation import Adaptation, AfterAdaptation
from slipstream.testbed.datasets import DataSpec, load_data
from slipstream.testbed.networks import build_network
from slipstream.testbed.tasks import TaskForm, load_tasks

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Experiment:
    """A model, the batches to train and judge it on, and how."""

    model: nn.Module
    train: Iterable[Batch]
    validation: Iterable[Batch]
    test: Iterable[Batch]  # for reporting, never for choosing
    loss: Loss
    metrics: Mapping[str, Metric]  # the loss, and the accuracy if it is a classification

    def part(self, name: str) -> Iterable[Batch]:
        """Return the part of the data that is called `train`, `validation` or `test`."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in parts:
            raise ValueError(f"split must be train, validation or test, got {name!r}.")
        return parts[name]


@dataclass(frozen=True)
class FewShot:
    """Batches of tasks instead of examples, and how a task is learned before it is judged."""

    form: TaskForm
    adaptation: Adaptation  # of the loss
    test_steps: int = 3  # inner steps before the accuracy is taken

    @classmethod
    def of(cls, given: "FewShot | Mapping[str, Any]") -> "FewShot":
        """Return it from plain data, as `dataclasses.asdict` makes them."""
        if isinstance(given, FewShot):
            return given
        form, adaptation = TaskForm(**given["form"]), Adaptation(**given["adaptation"])
        return cls(form, adaptation, given["test_steps"])


@dataclass(frozen=True)
class Setup:
    """What makes an experiment, as plain data.

    `model`, `data` and `loss` may each be a function of the user's own, `package.module:function`.
    That of the model returns a module, that of the data an object with the iterables of batches
    `train`, `validation` and `test`; that of the loss maps a model and a batch to the mean loss.
    With `few_shot`, the batches are tasks, and loss and metrics those after adaptation.
    """

    model: str = "mlp"
    data: str = "digits"
    loss: str | None = None  # cross entropy
    width: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of the testbed's network
    examples: int | None = None  # of the training part: the first ones
    batch_size: int = 128
    seed: int = 0  # of the initial weights and of the order of the batches
    few_shot: FewShot | None = None

    def __post_init__(self) -> None:
        if self.few_shot is not None:
            object.__setattr__(self, "few_shot", FewShot.of(self.few_shot))
        for name, value in (("width", self.width), ("examples", self.examples)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")

    @property
    def base_loss(self) -> Loss:
        """The loss of a model and a batch of examples, of one task if there are tasks."""
        if self.loss:
            return find_function(self.loss)
        return squared_loss if self.data == "sinusoid" else classification_loss

    def build(self, *, seed: int | None = None, device: str = "cpu") -> Experiment:
        """Build the model, load the data and find the loss.

        Args:
            seed: Seed of the initial weights, if another than the setup's; the batches stay.
            device: Where the model goes.

        Returns:
            The experiment.

        Raises:
            ValueError: If something is unknown or does not fit.

        Example:
            >>> Setup("mlp", "digits", width=8).build().model.hidden1
            Linear(in_features=64, out_features=8, bias=True)
        """
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {device!r}, but PyTorch finds no CUDA device here.")
        data = self._data()
        model = self._model(getattr(data, "spec", None), self.seed if seed is None else seed)
        loss = self.base_loss
        metrics: dict[str, Metric] = {"loss": loss}
        if loss is classification_loss:
            metrics["accuracy"] = accuracy
        if self.few_shot:
            inner = self.few_shot.adaptation
            judged = AfterAdaptation(replace(inner, steps=self.few_shot.test_steps), loss)
            loss = AfterAdaptation(inner, loss)
            metrics = {
                name: loss if name == "loss" else replace(judged, metric=own)
                for name, own in metrics.items()
            }
        return Experiment(model.to(device), data.train, data.validation, data.test, loss, metrics)

    def _data(self) -> "_Data":
        if _is_function(self.data):
            given: _Data = find_function(self.data)()
            for part in ("train", "validation", "test"):
                if not hasattr(given, part):
                    raise ValueError(
                        f"What {self.data} returns must have the iterables of batches train, "
                        f"validation and test; it has no {part}."
                    )
            return given
        if self.few_shot:
            tasks = load_tasks(self.data, self.few_shot.form, seed=self.seed)
            return _Batched(tasks.train, tasks.validation, tasks.test, tasks.spec)
        split = load_data(self.data)
        train = split.train if self.examples is None else split.train.take(self.examples)
        return _Batched(
            train.batches(self.batch_size, seed=self.seed),
            split.validation.batches(EVALUATION_BATCH),
            split.test.batches(EVALUATION_BATCH),
            split.spec,
        )

    def _model(self, spec: DataSpec | None, seed: int) -> nn.Module:
        if not _is_function(self.model):
            if spec is None:
                raise ValueError(
                    f"{self.model} must know the inputs and classes of {self.data}: let what that "
                    "returns have a `spec`, a DataSpec, or give a model as package.module:function."
                )
            return build_network(self.model, data=spec, width=self.width, seed=seed, **self.options)
        if self.width is not None or self.options:
            raise ValueError(f"width and options are for the testbed's networks, not {self.model}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = find_function(self.model)()
        if not isinstance(model, nn.Module):
            raise ValueError(f"{self.model} must return an nn.Module, got {type(model).__name__}.")
        return model


def rebuild(
    configuration: Mapping[str, Any],
    *,
    model: str | None = None,
    data: str | None = None,
    loss: str | None = None,
    width: float | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str = "cpu",
) -> Experiment:
    """Build the experiment of a recorded run again.

    Args:
        configuration: The run's, `Trajectory.description["configuration"]`.
        model: Another model than the configuration's: a name or `package.module:function`.
        data: Other data.
        loss: Another loss.
        width: Width of that other model.
        options: Options of that other model.
        seed: Seed of the initial weights, if another than the run's; the batches stay.
        device: Where the model goes.

    Returns:
        The model with initial weights, the data and the loss.

    Raises:
        ValueError: If the configuration does not tell the model or the data and they are not
            given, or if something is unknown or does not fit.
    """
    recorded = configuration.get("setup")
    if recorded is None and (model is None or data is None):
        raise ValueError(
            f"{_made(configuration)}, so it does not tell how to build its model and its data: "
            "give both, model and data, as package.module:function."
        )
    try:
        setup = Setup(**(recorded or {}))
    except TypeError as error:
        raise ValueError(f"The run's configuration holds an unknown setup: {error}.") from error
    if model is not None:
        setup = replace(setup, model=model, width=width, options=options or {})
    elif width is not None or options:
        raise ValueError("width and options go with another model; the run's has its own.")
    setup = replace(setup, data=data or setup.data, loss=loss or setup.loss)
    return setup.build(seed=seed, device=device)


def _made(configuration: Mapping[str, Any]) -> str:
    """Why a run does not tell its setup."""
    if "base" in configuration:
        return f"The run holds what was trained beside {configuration['base']}, without that"
    return "The run was not made by `slipstream train`"


def find_function(name: str) -> Callable[..., Any]:
    """Import the function that `package.module:function` names.

    Args:
        name: A module that Python can import, a colon, and a function in it.

    Returns:
        The function.

    Raises:
        ValueError: If there is no such module or function.

    Example:
        >>> find_function("math:hypot")(3, 4)
        5.0
    """
    module_name, _, function_name = name.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}.") from error
    if not callable(function):
        raise ValueError(f"{name!r} is no function but a {type(function).__name__}.")
    return function


class _Data(Protocol):
    """What a function of the user's own returns."""

    train: Iterable[Batch]
    validation: Iterable[Batch]
    test: Iterable[Batch]


@dataclass
class _Batched:
    """A data set of the testbed, in batches."""

    train: Iterable[Batch]
    validation: Iterable[Batch]
    test: Iterable[Batch]
    spec: DataSpec


def _is_function(name: str) -> bool:
    """Whether it is `package.module:function`, and not one of the testbed's `name:DIR`."""
    base = name.partition(":")[0].partition("+")[0]
    return ":" in name and base not in ("digits", "mnist", "cifar10", "omniglot")
