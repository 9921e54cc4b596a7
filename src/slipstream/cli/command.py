"""How a function becomes a command: options from its plans, old spellings understood."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

from slipstream.cli.output import FIGURES, complain
from slipstream.cli.plan_options import with_plan_options

Function = TypeVar("Function", bound=Callable[..., Any])
_OLD = "old_flags"


def add_command(app: typer.Typer, function: Callable[..., Any]) -> None:
    """Add a command that is called as its function."""
    name = function.__name__.rstrip("_").replace("_", "-")
    app.command(name, cls=_Command)(with_plan_options(function))


def old_flags(flags: Mapping[str, str]) -> Callable[[Function], Function]:
    """Let a command understand how options were written in 0.1; `--help` does not show them.

    Args:
        flags: The old flag to the present one.

    Returns:
        A decorator.
    """

    def decorate(function: Function) -> Function:
        setattr(function, _OLD, flags)
        return function

    return decorate


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._present(args)))

    def _present(self, args: list[str]) -> Iterator[str]:
        """The arguments, as they are spelled now."""
        old = getattr(self.callback, _OLD, {})
        known = {flag for parameter in self.params for flag in parameter.opts}
        for number, text in enumerate(args):
            flag, equals, value = text.partition("=")
            file = value if equals else (*args, "")[number + 1]
            present = old.get(flag, flag)
            if "--figure" in known and flag in ("-o", "--out"):  # 0.1 drew a figure by -o
                present = "--figure" if Path(file).suffix.lower() in FIGURES else flag
            if "--kept" in known and flag == "--resume" and (equals or _kept_points(file)):
                present = "--kept"
            if present != flag:
                complain(f"{flag} {file} is now {_NOW.get(present, present)}.")
            yield present + equals + value


_NOW = {"--kept": "--resume, which keeps points beside --out"}


def _kept_points(text: str) -> bool:
    """Whether it is not a network to measure, so that it must be what 0.1 took with --resume."""
    if not text or text.startswith("-"):
        return False
    paths = [Path(part) for part in (text, text.rpartition("@")[0], text.partition("=")[2]) if part]
    if any((path / "run.json").is_file() for path in paths):
        return False
    weights = [path for path in paths if path.is_file() and path.suffix == ".safetensors"]
    return not weights or b"slipstream landscape" in weights[0].read_bytes()[:4096]
