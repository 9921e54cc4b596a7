"""Calls of version 0.1, which had a model, a loss and data where there is a `Task` now."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec, TypeVar, overload

from torch import nn

from slipstream.evaluation.task import Task
from slipstream.storage.new_run import NewRun

_TASK = (
    *("model", "loss", "data", "validation", "test", "metrics"),
    *("calibration", "example_input", "forward"),
)
_RUN = ("configuration", "overwrite", "resume")
P = ParamSpec("P")
R = TypeVar("R")


@overload
def takes_task(function: Callable[P, R]) -> Callable[P, R]: ...


@overload
def takes_task(
    function: None = None, **bundles: Callable[..., Any]
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def takes_task(function: Any = None, **bundles: Callable[..., Any]) -> Any:
    """Let `model`, `loss`, `data` and so on be passed one by one, as in 0.1, instead of a `Task`.

    Args:
        function: Has a parameter `task`; perhaps `run_folder`, a path or a `NewRun`.
        bundles: For a parameter that bundles options of 0.1, such as `plan`, what makes it of
            them: a dataclass, or a function whose parameters are those options.

    Returns:
        The function, which makes the task and the bundles of what belongs to them.
    """
    if function is None:
        return lambda decorated: _converted(decorated, bundles)
    return _converted(function, {})


def _converted(
    function: Callable[..., R], bundles: Mapping[str, Callable[..., Any]]
) -> Callable[..., R]:
    parameters = signature(function).parameters
    bound = next(iter(parameters), "") in ("self", "cls")
    fields = {
        option: bundle
        for bundle, make in bundles.items()
        for option in signature(make).parameters
        if option not in parameters
    }

    @wraps(function)
    def call(*args: Any, **given: Any) -> R:
        owner, rest = args[:bound], list(args[bound:])
        loose_model = bool(rest) and isinstance(rest[0], nn.Module) and "model" not in parameters
        if loose_model and not any(isinstance(one, Task) for one in (*rest, *given.values())):
            given["model"] = rest.pop(0)
        old = "model" in given and "model" not in parameters
        loose = [name for name in given if name in fields]
        if not old and not loose:
            return function(*args, **given)
        new = ["a Task"] * old + list(dict.fromkeys(fields[name] for name in loose))
        before = ["model, loss and data one by one"] * old + loose
        name = function.__qualname__.removesuffix(".__init__")
        warnings.warn(
            f"{name} takes {' and '.join(new)} now, instead of {', '.join(before)}.",
            DeprecationWarning,
            stacklevel=2,
        )
        if old:
            places = {name: own for name, own in parameters.items() if name not in bundles}
            _name_positional(rest, given, places)
            _make_task(given, {*parameters, *fields})
        return function(*owner, *rest, **_bundled(given, bundles, fields, all_of_them=old))

    return call


def _name_positional(
    rest: list[Any], given: dict[str, Any], parameters: Mapping[str, Parameter]
) -> None:
    """Name the arguments that stood after the model: the loss or metrics, and the data."""
    positional = [p.name for p in parameters.values() if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    places = len({*positional} - {"self", "cls", "task", "tasks"} - given.keys())
    if rest and isinstance(rest[0], Mapping) and all(map(callable, rest[0].values())):
        given["metrics"] = rest.pop(0)
    elif len(rest) > places and callable(rest[0]):
        given["loss"] = rest.pop(0)
    if len(rest) > places:
        given["data"] = rest.pop()


def _make_task(given: dict[str, Any], kept: Collection[str]) -> None:
    """Put what belongs to a task, and to a `NewRun`, into one."""
    pieces = {name: given.pop(name) for name in _TASK if name in given and name not in kept}
    if "recalibrate" not in kept and given.pop("recalibrate", True) is False:
        pieces["calibration"] = ()
    if "run_folder" in kept:
        options = {name: given.pop(name) for name in _RUN if name in given and name not in kept}
        options = {name: value for name, value in options.items() if value is not None}
        if given.get("run_folder") is None and options.get("resume"):
            raise ValueError("resume=True continues a run in its folder: pass run_folder=...")
        if given.get("run_folder") is not None and options:
            given["run_folder"] = NewRun(given["run_folder"], **options)
    # By default 0.1 measured the loss alone, and that before a metric of the same name.
    metrics = dict(pieces.get("metrics") or {})
    pieces = {"loss": metrics.pop("loss", None)} | pieces | {"metrics": metrics}
    given["task"] = Task(**{name: value for name, value in pieces.items() if value is not None})


def _bundled(
    given: Mapping[str, Any],
    bundles: Mapping[str, Callable[..., Any]],
    fields: Mapping[str, str],
    *,
    all_of_them: bool,
) -> dict[str, Any]:
    """Put options into their bundles; in a call of 0.1 those that are left out as well."""
    kept = {name: value for name, value in given.items() if name not in fields}
    for bundle, make in bundles.items():
        options = {name: given[name] for name in given if fields.get(name) == bundle}
        if kept.get(bundle) is not None:
            kept[bundle] = replace(kept[bundle], **options) if options else kept[bundle]
        elif options or all_of_them:
            kept[bundle] = make(**options)
    return kept
