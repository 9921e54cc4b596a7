"""Fields of plans that are options of commands: the help is written once, with the field."""

from collections.abc import Callable
from dataclasses import MISSING, field, fields
from typing import Any, Literal, get_args, get_origin

HELP, FLAGS, MINIMUM, SHOWN = "help", "flags", "minimum", "shown"
ARGUMENT, HIDDEN = "argument", "hidden"


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    factory: Callable[[], Any] | None = None,
    flags: tuple[str, ...] = (),
    minimum: float | None = None,
    shown: str | None = None,
    hidden: bool = False,
) -> Any:
    """Return a field of a plan that becomes an option of the commands that take the plan.

    A field that is a plan itself gives all of its options; a field made otherwise gives none.

    Args:
        default: The value if none is given, in Python and on the command line.
        help: A sentence for `--help`.
        factory: Makes the default instead, for a mapping or another plan.
        flags: How the option is written besides `--name`, such as `-o`.
        minimum: The least value that the command line takes.
        shown: What `--help` shows as the default, if not the value itself.
        hidden: Whether `--help` leaves it out: an old spelling.

    Returns:
        The field.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Plan:
        ...     stages: int = option(10, "Stages along the path.", minimum=1)
        >>> Plan().stages
        10
    """
    metadata = {
        **{HELP: help, FLAGS: flags, MINIMUM: minimum, SHOWN: shown},
        **{ARGUMENT: False, HIDDEN: hidden},
    }
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def argument(default: Any = MISSING, help: str = "") -> Any:
    """Return a field that commands take as an argument, without a flag."""
    metadata = {
        **{HELP: help, FLAGS: (), MINIMUM: None, SHOWN: None},
        **{ARGUMENT: True, HIDDEN: False},
    }
    return field(default=default, metadata=metadata)


def check_choices(plan: object) -> None:
    """Raise unless the fields of a plan that are one of several strings are one of them.

    Args:
        plan: A dataclass, whose fields may be a `Literal`.

    Raises:
        ValueError: If a field holds something else.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Plan:
        ...     shape: Literal["line", "curve"]
        >>> check_choices(Plan("circle"))
        Traceback (most recent call last):
        ...
        ValueError: shape must be line or curve, got 'circle'.
    """
    for one in fields(plan):  # type: ignore[arg-type]
        choices, value = get_args(one.type), getattr(plan, one.name)
        if get_origin(one.type) is Literal and value not in choices:
            *most, last = choices
            known = f"{', '.join(most)} or {last}" if most else last
            raise ValueError(f"{one.name} must be {known}, got {value!r}.")
