"""`slipstream landscape line`."""

from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.landscape.networks import PATHS, MeasureOptions, open_networks
from slipstream.cli.output import write_table
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions


def line(
    weights: Annotated[list[str], typer.Argument(help=f"Two or more. {PATHS}")],
    files: MeasureOptions,
    task: TaskOptions,
    points: options.Points = 25,
    json: options.AsJson = False,
) -> None:
    """Measure the loss along the straight lines from each of several networks to the next.

    Example: slipstream landscape line run@0 run averaged.safetensors --figure line.png
    """
    from slipstream.landscape import loss_along
    from slipstream.report.figures import plot_loss_line

    opened = open_networks(weights, task, files)
    with steps_bar("measuring", hidden=json) as bar:
        found = loss_along(
            opened.weights, opened.task, points=points, resume=files.begin(), progress=bar
        )
    values = {"names": list(opened.weights), **found.to_json()}
    if files.finish(values, lambda: plot_loss_line(found, metric=files.metric), json=json):
        columns = (v.tolist() for v in found.values.values())
        rows = zip(found.positions.tolist(), *columns, strict=True)
        names = [f"{files.split} {name}" for name in found.values]
        write_table(["position", *names], [[f"{v:.4g}" for v in row] for row in rows])
