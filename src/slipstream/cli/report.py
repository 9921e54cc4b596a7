"""`slipstream report`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json
from slipstream.cli.progress import pieces_bar

RUNS = "One or more run folders; several are compared side by side."
LANDSCAPE = "Whether to measure the loss around the runs on validation data; needs their model."
SECONDS = "About how long each line or plane of the landscape may take."
COMPARISON = "A comparison of transfer methods, as `slipstream demo --json` prints it."


def report(
    runs: Annotated[list[Path], typer.Argument(help=RUNS)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Its heading.")] = None,
    modes: Annotated[int, typer.Option(min=1, help="Number of modes.")] = 6,
    landscape: Annotated[bool, typer.Option(help=LANDSCAPE)] = True,
    seconds: Annotated[float, typer.Option(min=0, help=SECONDS)] = 10,
    comparison: Annotated[Path | None, typer.Option(help=COMPARISON)] = None,
    model: options.OtherModel = None,
    data: options.OtherData = None,
    loss: options.Loss = None,
    width: options.Width = None,
    option: options.Option = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the page if it is there.")] = False,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Write a page about runs: what they were, how they moved, their modes, gains and ends.

    Example: slipstream report run transferred -o report.html
    """
    from slipstream.cli.loading import landscapes_of, open_comparison
    from slipstream.report.report import write_report

    how = landscapes_of(
        seconds, model=model, data=data, loss=loss, width=width, option=option, device=device
    )
    with pieces_bar("opening the runs", hidden=json) as bar:
        written = write_report(
            runs,
            out,
            title=title,
            modes=modes,
            comparison=open_comparison(comparison) if comparison else None,
            landscapes=how if landscape else None,
            overwrite=overwrite,
            progress=bar,
        )
    if json:
        write_json(asdict(written) | {"path": str(written.path)})
    else:
        typer.echo(f"{written.path}, {written.bytes / 1e6:.1f} MB: open it in a browser")
