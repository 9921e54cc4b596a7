"""`slipstream curvature`."""

from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.landscape.networks import MeasureOptions
from slipstream.cli.output import write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions
from slipstream.landscape.plans import CurvaturePlan

if TYPE_CHECKING:
    from slipstream.landscape import CurvatureAlong

STEP = "A step of the run; repeatable."
FILES = Adjusted(skip=("metric", "split", "batchnorm_batches"))


def curvature(
    run: options.Run,
    plan: CurvaturePlan,
    files: Annotated[MeasureOptions, FILES],
    task: TaskOptions,
    step: Annotated[list[int] | None, typer.Option(help=STEP, show_default="ten of them")] = None,
    split: options.Split = "train",
    batches: options.Batches = 10,
    json: options.AsJson = False,
) -> None:
    """Measure how the loss bends along a run: Hessian, sharpness, gradient noise.

    BatchNorm uses its running statistics, dropout is off.

    Example: slipstream curvature run --step 0 --step 100 --figure curvature.png
    """
    from slipstream.landscape import curvature_along
    from slipstream.report.figures import plot_curvature
    from slipstream.trajectory import Trajectory

    opened = task.open(run)
    with steps_bar("snapshots", hidden=json) as bar:
        found = curvature_along(
            Trajectory.open(run),
            replace(opened, data=list(islice(opened.part(split), batches))),
            steps=step or None,
            plan=plan,
            resume=files.begin(),
            progress=bar,
        )
    points = [asdict(found.at(position)) for position in range(len(found.steps))]
    values = [{"step": s, **point} for s, point in zip(found.steps, points, strict=True)]
    if files.finish(values, lambda: plot_curvature(found), json=json):
        _print(found)


def _print(found: "CurvatureAlong") -> None:
    points = [found.at(position) for position in range(len(found.steps))]
    names = ["step", "loss", "gradient", "largest", "lowest", "trace", "sharpness", "noise"]
    rows = [
        [
            str(number), f"{p.loss:.4g}", f"{p.gradient_norm:.3g}",
            f"{p.largest:.3g}" + ("" if p.converged else " ?"), f"{p.lowest:.2g}",
            f"{p.trace:.3g} ± {p.trace_error:.1g}", f"{p.sharpness:.3g}", f"{p.noise_scale:.2g}",
        ]
        for number, p in zip(found.steps, points, strict=True)
    ]  # fmt: skip
    write_table(names, rows)
    if not all(point.converged for point in points):
        typer.echo("? has not converged: give more --iterations")
