"""`slipstream report`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, write_json
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import pieces_bar
from slipstream.cli.task_options import TaskOptions

RUNS = "One or more run folders; several are compared side by side."
LANDSCAPE = "Measure the loss around the runs on validation data; needs their model."
SECONDS = "About how long each line or plane of the landscape may take."
COMPARISON = "A comparison of transfer methods, as `slipstream demo --json` prints it."
PAGE = "report.html"
FILES = Adjusted(skip=("figure",), help={"out": "The page to write."}, shown={"out": PAGE})


def report(
    runs: Annotated[list[Path], typer.Argument(help=RUNS)],
    files: Annotated[OutputFiles, FILES],
    task: TaskOptions,
    title: Annotated[str | None, typer.Option(help="The heading.", show_default="RUNS")] = None,
    modes: Annotated[int, typer.Option(min=1, help="Number of modes.")] = 6,
    landscape: Annotated[bool, typer.Option(help=LANDSCAPE)] = True,
    seconds: Annotated[float, typer.Option(min=0, help=SECONDS)] = 10,
    comparison: Annotated[Path | None, typer.Option(help=COMPARISON)] = None,
    json: options.AsJson = False,
) -> None:
    """Write an HTML page about runs: what was learned, how they moved, their modes and ends.

    Example: slipstream report run transferred -o report.html
    """
    from slipstream.cli.loading import landscapes_of, open_comparison
    from slipstream.report.report import write_report
    from slipstream.report.sections import Extras

    out = files.out or Path(PAGE)
    files.check(out, "--out")
    with pieces_bar("opening the runs", hidden=json) as bar:
        written = write_report(
            runs,
            out,
            title=title,
            modes=modes,
            extras=Extras(
                comparison=open_comparison(comparison) if comparison else None,
                landscapes=landscapes_of(task, seconds) if landscape else None,
            ),
            overwrite=files.overwrite,
            progress=bar,
        )
    if json:
        write_json(asdict(written) | {"path": str(written.path)})
    else:
        typer.echo(f"{written.path}, {written.bytes / 1e6:.1f} MB: open it in a browser")
