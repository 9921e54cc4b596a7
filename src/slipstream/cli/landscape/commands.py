"""The list of the commands of `slipstream landscape`."""

import typer

from slipstream.cli.command import add_command
from slipstream.cli.landscape.barrier import barrier
from slipstream.cli.landscape.curve import curve
from slipstream.cli.landscape.line import line
from slipstream.cli.landscape.plane import plane
from slipstream.cli.landscape.study import study

landscape = typer.Typer(
    no_args_is_help=True,
    help="Measure the loss between and around networks: lines, barriers, curves, planes, a study.",
)
for command in (line, barrier, curve, plane, study):
    add_command(landscape, command)
