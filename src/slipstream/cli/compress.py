"""`slipstream compress`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, write_json
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import pieces_bar, steps_bar

MODES = "Instead, write the run as so many correlation modes: much smaller, with an error."
ERROR = "With --modes: write nothing if the error, relative to the run's motion, is larger."
OUT = "With --modes: the .safetensors file to write."
FILES = Adjusted(skip=("figure",), help={"out": OUT}, shown={"out": "RUN.modes.safetensors"})


def compress(
    run: options.Run,
    files: Annotated[OutputFiles, FILES],
    undo: Annotated[bool, typer.Option("--undo", help="Unpack the run again.")] = False,
    modes: Annotated[int | None, typer.Option(min=1, help=MODES)] = None,
    max_error: Annotated[float | None, typer.Option(help=ERROR)] = None,
    json: options.AsJson = False,
) -> None:
    """Make a run folder smaller without loss; every command reads it as before.

    Example: slipstream compress run
    """
    if modes is None:
        _check_none(files.out, max_error)
        _pack(run, undo=undo, json=json)
        return
    from slipstream.modes import compress_to_modes

    file = files.out or run.with_name(f"{run.resolve().name}.modes.safetensors")
    files.check(file, "--out")
    with pieces_bar("reading the run", hidden=json) as bar:
        made = compress_to_modes(run, file, modes=modes, max_error=max_error, progress=bar)
    if json:
        sizes = {"bytes_before": made.bytes_before, "bytes_after": made.bytes_after}
        write_json({"path": str(file), "relative_error": made.relative_error, **sizes})
    else:
        smaller = f"{decimal(made.bytes_after)}, {made.factor:.1f} times smaller"
        typer.echo(f"{file}: {smaller}, error {made.relative_error:.1%} of the run's motion")


def _check_none(*for_modes: object) -> None:
    if any(value is not None for value in for_modes):
        raise ValueError("--out and --max-error go with --modes.")


def _pack(run: Path, *, undo: bool, json: bool) -> None:
    from slipstream.trajectory import compress_run, decompress_run

    with steps_bar("unpacking" if undo else "packing", hidden=json) as bar:
        result = (decompress_run if undo else compress_run)(run, progress=bar)
    if json:
        sizes = {"bytes_before": result.bytes_before, "bytes_after": result.bytes_after}
        write_json({"path": str(run), "replaced": result.replaced, **sizes})
    else:
        change = f"{decimal(result.bytes_before)} to {decimal(result.bytes_after)}"
        typer.echo(f"{result.replaced} of {result.snapshots} snapshots, {change}")
