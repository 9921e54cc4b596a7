"""`slipstream import`."""

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json


def import_(
    source: Annotated[Path, typer.Argument(help="The folder of checkpoints.")],
    destination: Annotated[
        Path | None, typer.Argument(help="The run folder to make; SOURCE-run if not given.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Keep names that start so, and cut it off.")] = "",
    key: Annotated[str | None, typer.Option(help="Where in .pt files the weights are.")] = None,
    json: options.AsJson = False,
) -> None:
    """Make a run of the checkpoints that other tools wrote: Hugging Face, Lightning, .pt files.

    Example: slipstream import output/checkpoints run --prefix model.
    """
    from slipstream.trajectory import import_run

    run = import_run(source, destination, prefix=prefix, key=key)
    made = str(destination or f"{source.resolve()}-run")
    if json:
        write_json({"path": made, "steps": run.steps, "tensors": len(run.names)})
    else:
        snapshots = f"{len(run)} snapshots of {len(run.names)} tensors"
        typer.echo(f"{snapshots}, steps {run.steps[0]} to {run.steps[-1]}, in {made}")
