"""`slipstream import`."""

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, write_json
from slipstream.cli.plan_options import Adjusted

RUN = Adjusted(skip=("resume", "overwrite"), shown={"out": "SOURCE-run"})
DESTINATION = "The same as --out."
PREFIX = "Keep only tensors whose names start with this, and leave it out of the names."
STEP = "The step of a file or folder, NAME=N, where its name does not say; repeatable."
KEY = "Under which key .pt files hold the weights."


def import_(
    source: Annotated[Path, typer.Argument(help="The folder of checkpoints.")],
    files: Annotated[OutputRun, RUN],
    destination: Annotated[Path | None, typer.Argument(help=DESTINATION)] = None,
    prefix: Annotated[str, typer.Option(help=PREFIX)] = "",
    key: Annotated[str | None, typer.Option(help=KEY, show_default="found")] = None,
    step: Annotated[list[str] | None, typer.Option(help=STEP)] = None,
    json: options.AsJson = False,
) -> None:
    """Make a run of the checkpoints that other tools wrote: Hugging Face, Lightning, .pt files.

    Example: slipstream import output/checkpoints --prefix model. -o run
    """
    from slipstream.trajectory import import_run

    out = files.out or destination
    run = import_run(source, out, steps=_steps(step), prefix=prefix, key=key)
    made = str(out or f"{source.resolve()}-run")
    if json:
        write_json({"path": made, "steps": run.steps, "tensors": len(run.names)})
    else:
        snapshots = f"{len(run)} snapshots of {len(run.names)} tensors"
        typer.echo(f"{snapshots}, steps {run.steps[0]} to {run.steps[-1]}, in {made}")


def _steps(given: list[str] | None) -> dict[str, int] | None:
    """Read `NAME=N` pairs."""
    pairs = [text.rpartition("=") for text in given or ()]
    for name, _, number in pairs:
        if not name or not number.isdecimal():
            raise ValueError(f"--step must be NAME=N, such as best.pt=500, got {name or number!r}.")
    return {name: int(number) for name, _, number in pairs} or None
