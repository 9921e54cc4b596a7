"""The list of commands, and what all of them do about mistakes."""

import re
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from slipstream.cli.average import average
from slipstream.cli.check import check
from slipstream.cli.choose_start import choose_start
from slipstream.cli.command import add_command
from slipstream.cli.compare import compare
from slipstream.cli.complexity import complexity
from slipstream.cli.compress import compress
from slipstream.cli.curvature import curvature
from slipstream.cli.demo import demo
from slipstream.cli.evaluate import evaluate
from slipstream.cli.federate import federate
from slipstream.cli.groups import groups
from slipstream.cli.importing import import_
from slipstream.cli.landscape import landscape
from slipstream.cli.margin import margin
from slipstream.cli.match import match
from slipstream.cli.memorisation import memorisation
from slipstream.cli.modes import modes
from slipstream.cli.motion import motion
from slipstream.cli.output import complain
from slipstream.cli.plot import plot
from slipstream.cli.port import port
from slipstream.cli.predict import predict
from slipstream.cli.recipe.commands import recipe
from slipstream.cli.report import report
from slipstream.cli.show import show
from slipstream.cli.train import train
from slipstream.cli.transfer import transfer
from slipstream.cli.view import view

MISTAKE, INTERRUPTED = 2, 130  # exit codes: of a wrong argument or file, and of Ctrl-C


class Commands(TyperGroup):
    """Says what went wrong in one line, without a traceback, where the user can mend it."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            complain(_words_of(error))
            raise typer.Exit(MISTAKE) from error
        except KeyboardInterrupt as error:
            complain("Interrupted.")
            raise typer.Exit(INTERRUPTED) from error


def _words_of(error: Exception) -> str:
    """Return the message, with flags as they are written here: overwrite=True is --overwrite."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        text = where + error.strerror.removesuffix(".") + "."
    steps = r"pass steps=\{'([^']+)': [^}]*\}( with those to import)?"
    text = re.sub(steps, r"give --step NAME=N for each to import, such as --step \1=1", text)
    return re.sub(r"\b(\w+)=True\b", lambda flag: "--" + flag[1].replace("_", "-"), text)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"slipstream {version('slipstream')}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Record a training run, transfer it to another start, and measure it.",
)


@app.callback()
def slipstream(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Record a training run, transfer it to another start, and measure it."""


for command in (
    *(demo, train, import_, show, check, groups, match, transfer, port),
    *(compare, choose_start, memorisation, evaluate, modes, average, compress, federate, predict),
    *(motion, curvature, complexity, margin, report, view, plot),
):
    add_command(app, command)
app.add_typer(landscape, name="landscape")
app.add_typer(recipe, name="recipe")


def main() -> None:
    """Run the command line."""
    app()
