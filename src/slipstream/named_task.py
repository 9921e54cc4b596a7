"""From names, as a command line, a file or a run holds them, to a task."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from slipstream.deprecated import moved_names

if TYPE_CHECKING:
    from torch import nn

    from slipstream.evaluation import Batch, Loss, Metric, Task
    from slipstream.recipes.few_shot import Adaptation
    from slipstream.testbed.datasets import DataSpec
    from slipstream.testbed.tasks import TaskForm

EVALUATION_BATCH = 500
PARTS = ("model", "data", "loss", "metrics")  # each may be package.module:function
KEYS = ("setup", "task")  # under which of them the configuration of a run may hold the names


@dataclass(frozen=True)
class FewShot:
    """Batches of tasks instead of examples, and how a task is learned before it is judged."""

    form: "TaskForm"
    adaptation: "Adaptation"  # of the loss
    test_steps: int = 3  # inner steps before the accuracy is taken

    @classmethod
    def of(cls, given: "FewShot | Mapping[str, Any]") -> "FewShot":
        """Return it from plain data, as `dataclasses.asdict` makes them."""
        if isinstance(given, FewShot):
            return given
        from slipstream.recipes.few_shot import Adaptation
        from slipstream.testbed.tasks import TaskForm

        form, adaptation = TaskForm(**given["form"]), Adaptation(**given["adaptation"])
        return cls(form, adaptation, given["test_steps"])


@dataclass(frozen=True)
class NamedTask:
    """The names and settings that make a task, as plain data.

    `model`, `data`, `loss` and `metrics` may each be the user's own, `package.module:function`.
    That of the model returns a module, that of the data an object with the iterables of batches
    `train`, `validation` and `test`, and perhaps `unlabelled`; that of the loss maps a model and a
    batch to the mean loss. That of the metrics does so for one metric, or takes nothing and returns
    several by name. With `few_shot`, the batches are tasks, and loss and metrics those after
    adaptation.
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
    metrics: str | None = None  # of a classification: accuracy

    def __post_init__(self) -> None:
        for name in PARTS:
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in ("model", "data")):
                raise ValueError(f"{name} must be a name, got {value!r}.")
        if not isinstance(self.options, Mapping):
            raise ValueError(f"options must be a mapping from name to value, got {self.options!r}.")
        for name, value in (("width", self.width), ("examples", self.examples)):
            if value is not None and not (_number(value) and value > 0):
                raise ValueError(f"{name} must be above 0, got {value!r}.")
        if not (_number(self.batch_size) and self.batch_size >= 1):
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size!r}.")
        if not _number(self.seed):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}.")
        if self.few_shot is not None:
            object.__setattr__(self, "few_shot", FewShot.of(self.few_shot))

    @classmethod
    def of_run(
        cls, configuration: Mapping[str, Any], *, trusted: bool = False, **named: Any
    ) -> "NamedTask":
        """Return what the configuration of a recorded run names.

        Args:
            configuration: The run's, `Trajectory.description["configuration"]`.
            trusted: Whether to import code, `package.module:function`, because the run names it.
            named: Fields to replace. Another model comes with its own width and options.

        Returns:
            The names; nothing is built or imported yet.

        Raises:
            ValueError: If the run does not name its model or its data and they are not given, if it
                names code and is not trusted, or if something is unknown.
        """
        recorded = recorded_names(configuration)
        if recorded is None and not ("model" in named and "data" in named):
            raise ValueError(
                f"{why_unnamed(configuration)}, so it does not say how to build its model and its "
                "data: give both, model and data, as package.module:function."
            )
        code = {} if trusted else code_in(recorded or {}, without=named)
        if code:
            given = ", ".join(f"{part}={name!r}" for part, name in code.items())
            raise ValueError(
                f"The run names code: {given}. It is imported only if you name it: pass {given}, "
                "or trusted=True if you know who made the run."
            )
        return cls.of_layers(recorded or {}, named)

    @classmethod
    def of_layers(cls, *layers: Mapping[str, Any]) -> "NamedTask":
        """Return what several layers of names say together, the later ones first.

        Raises:
            ValueError: If there is no such field, or a value does not fit.
        """
        found: dict[str, Any] = {}
        for layer in layers:
            if "model" in layer:  # which has a width and options of its own
                found = {n: v for n, v in found.items() if n not in ("width", "options")}
            found |= layer
        if unknown := [name for name in found if name not in {f.name for f in fields(cls)}]:
            known = ", ".join(f.name for f in fields(cls))
            raise ValueError(f"A task has no setting {unknown[0]!r}; it has {known}.")
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Return the names and settings as plain data, as runs keep them."""
        found = asdict(self)
        if self.metrics is None:  # as 0.1 wrote it
            del found["metrics"]
        return found

    @property
    def base_loss(self) -> "Loss":
        """The loss of a model and a batch of examples, of one task if there are tasks."""
        from slipstream.evaluation import classification_loss, squared_loss

        if self.loss:
            return find_function(self.loss)
        return squared_loss if self.data == "sinusoid" else classification_loss

    def build(self, *, seed: int | None = None, device: str = "cpu") -> "Task":
        """Build the model, load the data, and find loss and metrics.

        Args:
            seed: Seed of the initial weights, if another than the task's; the batches stay.
            device: Where the model goes.

        Returns:
            The task, whose configuration holds these names.

        Raises:
            ValueError: If something is unknown or does not fit.

        Example:
            >>> NamedTask("mlp", "digits", width=8).build().model.hidden1
            Linear(in_features=64, out_features=8, bias=True)
        """
        import torch

        from slipstream.evaluation import Task

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {device!r}, but PyTorch finds no CUDA device here.")
        data = self._data()
        model = self._model(getattr(data, "spec", None), self.seed if seed is None else seed)
        loss, metrics = self.base_loss, self._metrics()
        if self.few_shot:
            from slipstream.recipes.few_shot import AfterAdaptation

            inner = self.few_shot.adaptation
            judged = AfterAdaptation(replace(inner, steps=self.few_shot.test_steps), loss)
            loss = AfterAdaptation(inner, loss)
            metrics = {name: replace(judged, metric=own) for name, own in metrics.items()}
        return Task(
            model.to(device),
            data.train,
            loss,
            validation=data.validation,
            test=data.test,
            unlabelled=getattr(data, "unlabelled", None),
            metrics=metrics,
            configuration={KEYS[0]: self.to_json()},
        )

    def _metrics(self) -> "dict[str, Metric]":
        from slipstream.evaluation import accuracy, classification_loss

        if self.metrics is None:
            return {"accuracy": accuracy} if self.base_loss is classification_loss else {}
        found = _imported(self.metrics)
        if callable(found) and _takes_nothing(found):
            found = found()
        if callable(found):
            return {self.metrics.rpartition(":")[2]: found}
        if isinstance(found, Mapping) and all(map(callable, found.values())):
            return dict(found)
        raise ValueError(
            f"{self.metrics} must be a function of a model and a batch, or return a mapping from "
            f"names to such functions; got {type(found).__name__}."
        )

    def _data(self) -> "_Data":
        if is_code(self.data):
            given: _Data = find_function(self.data)()
            for part in ("train", "validation", "test"):
                if not hasattr(given, part):
                    raise ValueError(
                        f"What {self.data} returns must have the iterables of batches train, "
                        f"validation and test; it has no {part}."
                    )
            return given
        from slipstream.testbed.datasets import load_data
        from slipstream.testbed.tasks import load_tasks

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

    def _model(self, spec: "DataSpec | None", seed: int) -> "nn.Module":
        import torch
        from torch import nn

        from slipstream.testbed.networks import build_network

        if not is_code(self.model):
            if spec is None:
                raise ValueError(
                    f"{self.model} must know the inputs and classes of {self.data}: let what that "
                    "returns have a `spec`, a DataSpec, or give a model as package.module:function."
                )
            try:
                return build_network(
                    self.model, data=spec, width=self.width, seed=seed, **self.options
                )
            except TypeError as error:
                raise ValueError(f"options do not fit {self.model}: {error}.") from error
        if self.width is not None or self.options:
            raise ValueError(f"width and options are for the testbed's networks, not {self.model}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = find_function(self.model)()
        if not isinstance(model, nn.Module):
            raise ValueError(f"{self.model} must return an nn.Module, got {type(model).__name__}.")
        return model


def rebuild(
    configuration: Mapping[str, Any], *, seed: int | None = None, device: str = "cpu", **named: Any
) -> "Task":
    """Build the task of a recorded run again.

    Args:
        configuration: The run's, `Trajectory.description["configuration"]`.
        seed: Seed of the initial weights, if another than the run's; the batches stay.
        device: Where the model goes.
        named: As of `NamedTask.of_run`, `trusted` included.

    Returns:
        The task, its model with initial weights.

    Raises:
        ValueError: As of `NamedTask.of_run` and `NamedTask.build`.
    """
    return NamedTask.of_run(configuration, **named).build(seed=seed, device=device)


def recorded_names(configuration: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the names that the configuration of a run holds, None if it holds none."""
    found = next((configuration[key] for key in KEYS if key in configuration), None)
    return found if isinstance(found, Mapping) else None


def why_unnamed(configuration: Mapping[str, Any]) -> str:
    """Return why a run does not say what made it."""
    if "base" in configuration:
        return f"The run holds what was trained beside {configuration['base']}, without that"
    return "The run was not made by `slipstream train`"


def code_in(names: Mapping[str, Any], *, without: Iterable[str] = ()) -> dict[str, str]:
    """Return the parts that are code to be imported, but for some.

    Example:
        >>> code_in({"model": "mlp", "data": "own:data", "loss": "own:loss"}, without=["loss"])
        {'data': 'own:data'}
    """
    parts = {part: names.get(part) for part in PARTS if part not in without}
    return {part: str(name) for part, name in parts.items() if name and is_code(str(name))}


def is_code(name: str) -> bool:
    """Return whether a name is `package.module:function`, and not the testbed's `name:DIR`."""
    base = name.partition(":")[0].partition("+")[0]
    return ":" in name and base not in ("digits", "mnist", "cifar10", "omniglot")


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
    function = _imported(name)
    if not callable(function):
        raise ValueError(f"{name!r} is not a function but a {type(function).__name__}.")
    return function  # type: ignore[no-any-return]


def _imported(name: str) -> Any:
    module_name, _, own = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), own)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}.") from error


def _takes_nothing(function: Callable[..., Any]) -> bool:
    from inspect import Parameter, signature

    needed = (p for p in signature(function).parameters.values() if p.default is Parameter.empty)
    return not any(needed)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Data(Protocol):
    """What a function of the user's own returns."""

    train: "Iterable[Batch]"
    validation: "Iterable[Batch]"
    test: "Iterable[Batch]"


@dataclass
class _Batched:
    """A data set of the testbed, in batches."""

    train: "Iterable[Batch]"
    validation: "Iterable[Batch]"
    test: "Iterable[Batch]"
    spec: "DataSpec"


__getattr__ = moved_names("slipstream.named_task")
