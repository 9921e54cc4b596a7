"""`slipstream plot`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, write_json
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.task_options import TaskOptions

KIND = "What to draw; line, barrier and plane measure the loss and need the model."
Kind = Literal[
    "loss", "metrics", "path", "motion", "speed", "distance",
    "modes", "shares", "transfer", "line", "barrier", "plane",
]  # fmt: skip
OUT = "The figure to write: PNG, SVG or PDF by the ending."
FILES = Adjusted(skip=("figure",), help={"out": OUT}, shown={"out": "KIND.pdf"})


def plot(
    kind: Annotated[Kind, typer.Argument(help=KIND)],
    runs: Annotated[list[Path], typer.Argument(help="One or more run folders.")],
    files: Annotated[OutputFiles, FILES],
    task: TaskOptions,
    modes: Annotated[int, typer.Option(min=1, help="Number of modes.")] = 6,
    seconds: Annotated[float, typer.Option(min=0, help="About how long to measure.")] = 60,
    comparison: Annotated[
        Path | None, typer.Option(help="For transfer: as of `slipstream report`.")
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Draw one figure of a report for a paper: static, with matplotlib.

    Example: slipstream plot path run -o path.pdf
    """
    from slipstream.cli.loading import landscapes_of, open_comparison
    from slipstream.report.figures import plot_runs
    from slipstream.report.recorded_run import shown
    from slipstream.report.report import open_runs
    from slipstream.report.sections import Extras
    from slipstream.report.static import save_figure

    path = files.out or Path(f"{kind}.pdf")
    files.check(path, "--out")
    extras = Extras(
        open_comparison(comparison) if comparison else None, landscapes_of(task, seconds)
    )
    save_figure(
        lambda: plot_runs(kind, shown(open_runs(runs, modes=modes)), extras=extras),
        path,
        overwrite=files.overwrite,
    )
    if json:
        write_json({"path": str(path)})
    else:
        typer.echo(f"{path}")
