"""Options of a command from the fields of the plans that it takes."""

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from slipstream.storage.plan_fields import ARGUMENT, FLAGS, HELP, HIDDEN, MINIMUM, SHOWN

_VERBS = "must|is|are|needs|has|goes|holds|does"  # behind an argument at the start of a message
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Adjusted:
    """What a command does otherwise than the plan's fields say; stands in `Annotated`."""

    skip: tuple[str, ...] = ()  # fields that are no options of this command
    rename: Mapping[str, str] = field(default_factory=dict)  # field to the option's name
    help: Mapping[str, str] = field(default_factory=dict)  # field to a sentence of the command's
    shown: Mapping[str, Any] = field(default_factory=dict)  # field to the default in `--help`


def with_plan_options(command: Command) -> Command:
    """Let the plans among a command's parameters be options: one for each field made by `option`.

    Args:
        command: A function; a parameter whose type is a dataclass is a plan.

    Returns:
        The command for typer: it gets the options, makes the plans, and calls the function. Where
        the function raises a ValueError that names a field, the message names the option.

    Raises:
        TypeError: If two options have the same name.

    Example:
        >>> from slipstream.storage.plan_fields import option
        >>> @dataclass(frozen=True)
        ... class Plan:
        ...     stages: int = option(10, "Stages along the path.")
        >>> @with_plan_options
        ... def transfer(run: str, plan: Plan) -> Plan:
        ...     return plan
        >>> list(inspect.signature(transfer).parameters), transfer(run="run", stages=3)
        (['run', 'stages'], Plan(stages=3))
    """
    given = inspect.signature(command, eval_str=True).parameters.values()
    plans = {p.name: _Plan.of(p.annotation) for p in given if is_dataclass(_bare(p.annotation))}
    parameters: list[inspect.Parameter] = []
    for parameter in given:
        if parameter.name in plans:
            parameters += plans[parameter.name].parameters()
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    names = [parameter.name for parameter in parameters]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"{command.__name__} has several options {sorted(doubled)}: rename them.")
    flags = {field_name: flag for plan in plans.values() for field_name, flag in plan.flags()}
    flags |= {name: f"--{name.replace('_', '-')}" for name in names if name not in flags}

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        try:
            made = {name: plan.make(values) for name, plan in plans.items()}
            return command(**values, **made)
        except (ValueError, FileNotFoundError, FileExistsError) as error:
            if getattr(error, "strerror", None):  # of the system: it names the file
                raise
            kind = ValueError if isinstance(error, ValueError) else type(error)
            raise kind(in_flags(str(error), flags)) from error

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run  # type: ignore[return-value]


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """Return a message about arguments of Python as one about options.

    Example:
        >>> in_flags("stages must be at least 1, got 0.", {"stages": "--stages"})
        '--stages must be at least 1, got 0.'
        >>> in_flags("Give another path, or pass overwrite=True.", {"overwrite": "--overwrite"})
        'Give another path, or pass --overwrite.'
    """

    def flag(match: re.Match[str]) -> str:
        return flags.get(match[1], match[0])

    def value(match: re.Match[str]) -> str:
        return f"{flags[match[1]]} {match[3]}" if match[1] in flags else match[0]

    message = re.sub(r"\b(\w+)=True\b", flag, message)
    message = re.sub(r"\b(\w+)=([\"']?)([^\s\"']+)\2", value, message)
    return re.sub(rf"^(\w+_\w+|\w+(?=:| (?:{_VERBS})\b))", flag, message)


@dataclass(frozen=True)
class _Plan:
    """A plan's class, and which of its fields are which options."""

    kind: type
    adjusted: Adjusted
    default: Any = None  # an instance, if it is a field of another plan

    @classmethod
    def of(cls, annotation: Any) -> "_Plan":
        notes = [note for note in get_args(annotation)[1:] if isinstance(note, Adjusted)]
        return cls(_bare(annotation), notes[0] if notes else Adjusted())

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The parameters of the command that make the plan."""
        for own, inner in self._options():
            if inner is not None:
                yield from inner.parameters()
            else:
                yield self._parameter(own, self._hint(own))

    def flags(self) -> Iterator[tuple[str, str]]:
        """Field and option, as it is written."""
        for own, inner in self._options():
            if inner is not None:
                yield from inner.flags()
            else:
                yield own.name, self._flag(own)

    def make(self, values: dict[str, Any]) -> Any:
        """Make the plan; its values are taken out of `values`."""
        made: dict[str, Any] = {}
        for own, inner in self._options():
            if inner is not None:
                made[own.name] = inner.make(values)
                continue
            value = values.pop(self._name(own))
            hint = self._hint(own)
            if value is None and not _optional(hint):
                continue  # a list that was not given
            made[own.name] = _read(value, hint, self._flag(own))
        return self.kind(**made) if self.default is None else replace(self.default, **made)

    def _options(self) -> Iterator[tuple["Field[Any]", "_Plan | None"]]:
        """The fields that are options, and the plans among them."""
        for own in fields(self.kind):
            if HELP not in own.metadata or own.name in self.adjusted.skip:
                continue
            default = self._default(own)
            nested = is_dataclass(default) and not isinstance(default, type)
            yield own, _Plan(type(default), self.adjusted, default) if nested else None

    def _default(self, own: "Field[Any]") -> Any:
        if self.default is not None:
            return getattr(self.default, own.name)
        return own.default if own.default_factory is MISSING else own.default_factory()

    def _hint(self, own: "Field[Any]") -> Any:
        return get_type_hints(self.kind)[own.name] if isinstance(own.type, str) else own.type

    def _name(self, own: "Field[Any]") -> str:
        return self.adjusted.rename.get(own.name, own.name)

    def _flag(self, own: "Field[Any]") -> str:
        return f"--{self._name(own).replace('_', '-')}"

    def _parameter(self, own: "Field[Any]", hint: Any) -> inspect.Parameter:
        name, default = self._name(own), self._default(own)
        flag = self._flag(own)
        switch = f"{flag}/--no-{flag[2:]}" if hint is bool and default is True else flag
        shown = self.adjusted.shown.get(own.name, own.metadata[SHOWN])
        how: dict[str, Any] = {
            "help": self.adjusted.help.get(own.name, own.metadata[HELP]),
            "min": own.metadata[MINIMUM],
            "show_default": True if shown is None else str(shown),
            "hidden": own.metadata[HIDDEN],
        }
        panel = getattr(self.kind, "help_panel", None)
        info = (
            typer.Argument(**how)
            if own.metadata[ARGUMENT]
            else typer.Option(switch, *own.metadata[FLAGS], rich_help_panel=panel, **how)
        )
        hint, default = _for_typer(hint, default)
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is MISSING else default,
            annotation=Annotated[hint, info],
        )


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)


def _plain(hint: Any) -> Any:
    """The type without None."""
    if not _optional(hint):
        return hint
    return next(part for part in get_args(hint) if part is not NoneType)


def _for_typer(hint: Any, default: Any) -> tuple[Any, Any]:
    """Type and default as typer knows them: lists instead of tuples and mappings."""
    kind = get_origin(_plain(hint))
    if kind in (tuple, Sequence):
        element = get_args(_plain(hint))[0]
        element = str if get_origin(element) in (Union, UnionType) else element
        return list[element] | None, list(default or ()) or None  # type: ignore[valid-type]
    if kind in (Mapping, dict):
        return list[str] | None, None
    if kind in (Union, UnionType):  # of several kinds the one that can be typed
        return type(default), default
    return hint, default


def _read(value: Any, hint: Any, flag: str) -> Any:
    """A value as the plan wants it."""
    kind = get_origin(_plain(hint))
    if value is None:
        return None
    if kind in (tuple, Sequence):
        return tuple(value)
    if kind in (Mapping, dict):
        return pairs(value, flag)
    return value


def pairs(given: Sequence[str] | None, flag: str) -> dict[str, Any]:
    """Read `name=value` texts, the values as JSON.

    Args:
        given: What the user wrote.
        flag: Where, for the message.

    Returns:
        Name to value.

    Raises:
        ValueError: If a text has no equals sign, or its value is not JSON: a number, true, "text".

    Example:
        >>> pairs(["hidden_layers=2", "batchnorm=true"], "--option")
        {'hidden_layers': 2, 'batchnorm': True}
    """
    found = {}
    for text in given or ():
        name, _, value = text.rpartition("=")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError as error:
            message = f"{flag} must be NAME=VALUE, with a value as of JSON, got {text!r}."
            raise ValueError(message) from error
    return found
