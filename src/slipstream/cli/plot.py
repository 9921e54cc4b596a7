"""`slipstream plot`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json

KIND = "What to draw; line, barrier and plane measure the loss and need the model."
Kind = Literal[
    "loss", "metrics", "path", "motion", "speed", "distance",
    "modes", "shares", "transfer", "line", "barrier", "plane",
]  # fmt: skip
OUT = "PNG, SVG or PDF by its ending; KIND.pdf if not given."


def plot(
    kind: Annotated[Kind, typer.Argument(help=KIND)],
    runs: Annotated[list[Path], typer.Argument(help="One or more run folders.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help=OUT)] = None,
    modes: Annotated[int, typer.Option(min=1, help="Number of modes.")] = 6,
    seconds: Annotated[float, typer.Option(min=0, help="About how long to measure.")] = 60,
    comparison: Annotated[
        Path | None, typer.Option(help="As of `report`, for the kind transfer.")
    ] = None,
    model: options.OtherModel = None,
    data: options.OtherData = None,
    loss: options.Loss = None,
    width: options.Width = None,
    option: options.Option = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the file if it is there.")] = False,
    device: options.Device = "cpu",
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

    how = landscapes_of(
        seconds, model=model, data=data, loss=loss, width=width, option=option, device=device
    )
    extras = Extras(open_comparison(comparison) if comparison else None, how)
    path = out or Path(f"{kind}.pdf")
    save_figure(
        lambda: plot_runs(kind, shown(open_runs(runs, modes=modes)), extras=extras),
        path,
        overwrite=overwrite,
    )
    if json:
        write_json({"path": str(path)})
    else:
        typer.echo(f"{path}")
