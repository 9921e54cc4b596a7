"""`slipstream landscape curve`."""

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.command import old_flags
from slipstream.cli.landscape.networks import ONE, MeasureOptions, barrier_rows, open_networks
from slipstream.cli.output import write_table, write_weights
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions
from slipstream.landscape.plans import CurvePlan

MIDPOINT = "Write the weights at the middle of the curve to this .safetensors file."


@old_flags({"--save": "--midpoint"})
def curve(
    start: Annotated[str, typer.Argument(help=ONE)],
    end: Annotated[str, typer.Argument(help="The same, of the same model.")],
    files: MeasureOptions,
    task: TaskOptions,
    plan: CurvePlan,
    midpoint: Annotated[Path | None, typer.Option(help=MIDPOINT)] = None,
    json: options.AsJson = False,
) -> None:
    """Fit a curve of low loss between two networks, and compare it with the straight line.

    Example: slipstream landscape curve run other --figure curve.png --midpoint middle.safetensors
    """
    from slipstream.landscape import fit_curve
    from slipstream.report.figures import plot_loss_line

    files.check(midpoint, "--midpoint")
    opened = open_networks([start, end], task, files)
    first, last = opened.weights.values()
    with steps_bar("training", hidden=json) as bar:
        fitted = fit_curve(
            first,
            last,
            opened.training,
            plan=plan,
            measured_on=opened.task.data,
            checkpoint=files.begin(),
            progress=bar,
        )
    if midpoint is not None:
        write_weights(midpoint, fitted.at(0.5))
    found = {"straight": fitted.straight, "curve": fitted.along}
    values = {name: value.to_json() for name, value in found.items()}
    if files.finish(values, lambda: plot_loss_line(found, metric=files.metric), json=json):
        write_table(["path", "from the chord", *opened.task.measured], barrier_rows(found))
