"""`slipstream curvature`."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import steps_bar

FIGURE = "Draw it along the run: PNG, SVG or PDF by its ending."
RESUME = "Keep what is done in this file, and go on from it after an interruption."
STEP = "A step of the run; as many as you like. By default ten, evenly spaced."


def curvature(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    step: Annotated[list[int] | None, typer.Option(help=STEP)] = None,
    split: Annotated[Literal["train", "validation", "test"], typer.Option()] = "train",
    batches: Annotated[int, typer.Option(min=1, help="Batches of it, the first ones.")] = 10,
    iterations: Annotated[int, typer.Option(help="Of Lanczos, at most.")] = 60,
    tolerance: Annotated[float, typer.Option(help="Of the eigenvalues, relative.")] = 0.01,
    samples: Annotated[int, typer.Option(help="Random vectors for the trace.")] = 10,
    radius: Annotated[float, typer.Option(help="Of the ball for the sharpness.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the random vectors.")] = 0,
    figure: Annotated[
        Path | None,
        typer.Option("-o", "--figure", help=FIGURE, callback=options.new_figure),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help=RESUME)] = None,
    model: options.OtherModel = None,
    data: options.OtherData = None,
    loss: options.Loss = None,
    width: options.Width = None,
    option: options.Option = None,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Measure how the loss bends along a run: Hessian, sharpness, gradient noise.

    BatchNorm uses its running statistics, dropout is off.

    Example: slipstream curvature run --step 0 --step 100 -o curvature.png
    """
    from slipstream.cli.loading import open_experiment
    from slipstream.evaluation import Task
    from slipstream.landscape import CurvaturePlan, curvature_along
    from slipstream.report.figures import plot_curvature
    from slipstream.trajectory import Trajectory

    experiment = open_experiment(
        run, model=model, data=data, loss=loss, width=width, option=option, device=device
    )
    with steps_bar("snapshots", hidden=json) as bar:
        found = curvature_along(
            Trajectory.open(run),
            Task(experiment.model, islice(experiment.part(split), batches), experiment.loss),
            steps=step or None,
            plan=CurvaturePlan(iterations, tolerance, samples, radius, seed),
            resume=resume,
            progress=bar,
        )
    if figure is not None:
        plot_curvature(found).savefig(figure, dpi=150)
    points = [found.at(position) for position in range(len(found.steps))]
    if json:
        write_json([{"step": s, **asdict(p)} for s, p in zip(found.steps, points, strict=True)])
        return
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
