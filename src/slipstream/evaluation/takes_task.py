"""Calls of version 0.1, which had a model, a loss and data where there is a `Task` now."""

import warnings
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from torch import nn

from slipstream.evaluation.task import Task
from slipstream.storage.new_run import NewRun

_TASK = ("model", "loss", "data", "validation", "test", "metrics", "calibration", "example_input")
_RUN = ("configuration", "overwrite", "resume")
P = ParamSpec("P")
R = TypeVar("R")


def takes_task(function: Callable[P, R]) -> Callable[P, R]:
    """Let `model`, `loss`, `data` and so on be passed one by one, as in 0.1, instead of a `Task`.

    Args:
        function: Has a parameter `task`; perhaps `run_folder`, a path or a `NewRun`.

    Returns:
        The function, which makes the task of what belongs to it.
    """
    parameters = signature(function).parameters

    @wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> R:
        loose = args and isinstance(args[0], nn.Module)
        if not loose and "model" not in given:
            return function(*args, **given)
        warnings.warn(
            f"{function.__name__} takes a Task now, instead of model, loss and data one by one.",
            DeprecationWarning,
            stacklevel=2,
        )
        rest, named = list(args), dict(given)
        pieces: dict[str, Any] = {"model": rest.pop(0)} if loose else {}
        if loose and rest and callable(rest[0]):
            pieces["loss"] = rest.pop(0)
        pieces |= {name: named.pop(name) for name in _TASK if name in named}
        if "run_folder" in parameters and named.get("run_folder") is not None:
            options = {name: named.pop(name) for name in _RUN if name in named}
            named["run_folder"] = NewRun(named["run_folder"], **options)  # type: ignore[arg-type]
        present = {name: value for name, value in pieces.items() if value is not None}
        return function(*rest, **named, task=Task(**present))  # type: ignore[arg-type]

    return call
