"""`slipstream compress`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from slipstream.cli import options
from slipstream.cli.output import write_json
from slipstream.cli.progress import pieces_bar, steps_bar

MODES = "Write the run as so many modes instead, with an error. The snapshots stay."
ERROR = "With --modes: write nothing if the error, relative to the run's motion, is larger."
OUT = "With --modes: the file; RUN.modes.safetensors if not given."


def compress(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    undo: Annotated[bool, typer.Option("--undo", help="Unpack the run again.")] = False,
    modes: Annotated[int | None, typer.Option(min=1, help=MODES)] = None,
    max_error: Annotated[float | None, typer.Option(help=ERROR)] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help=OUT)] = None,
    json: options.AsJson = False,
) -> None:
    """Make a run smaller without loss; it is read as before. Or write it as a few modes.

    Example: slipstream compress run
    """
    if modes is None:
        _pack(run, undo=undo, json=json)
        return
    from slipstream.modes import compress_to_modes

    file = out or run.with_name(f"{run.resolve().name}.modes.safetensors")
    with pieces_bar("reading the run", hidden=json) as bar:
        made = compress_to_modes(run, file, modes=modes, max_error=max_error, progress=bar)
    if json:
        sizes = {"bytes_before": made.bytes_before, "bytes_after": made.bytes_after}
        write_json({"path": str(file), "relative_error": made.relative_error, **sizes})
    else:
        smaller = f"{decimal(made.bytes_after)}, {made.factor:.1f} times smaller"
        typer.echo(f"{file}: {smaller}, error {made.relative_error:.1%} of the run's motion")


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
