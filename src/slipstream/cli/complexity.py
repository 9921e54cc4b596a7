"""`slipstream complexity`."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, write_json
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions

if TYPE_CHECKING:
    from slipstream.trajectory import Trajectory

FIGURE = "Draw how the bias moved, and the bounds: PNG, SVG or PDF by the ending."
FILES = Adjusted(skip=("out",), help={"figure": FIGURE})
LAYER = "The layer whose bias is followed."
RATE = "Learning rate of the run."


def complexity(
    run: Annotated[Path, typer.Argument(help="A run folder with a snapshot of every step.")],
    task: TaskOptions,
    files: Annotated[OutputFiles, FILES],
    layer: Annotated[str | None, typer.Option(help=LAYER, show_default="the first")] = None,
    lr: Annotated[float | None, typer.Option(help=RATE, show_default="as recorded")] = None,
    json: options.AsJson = False,
) -> None:
    """Measure how complex the learned function is, from how the first layer's bias moves.

    The run must take one example per step, by plain SGD, and keep every step: such a run is made
    by slipstream train with --batch-size 1 --momentum 0 --keep every:1.

    Example: slipstream complexity run --figure complexity.png
    """
    from slipstream.dynamics import complexity_of_run
    from slipstream.evaluation import batches_of_epoch
    from slipstream.report.figures import plot_complexity
    from slipstream.trajectory import Trajectory

    opened, trajectory = task.open(run), Trajectory.open(run)
    rates, epochs = _recipe(trajectory, lr)
    batches = (batches_of_epoch(opened.data, epoch) for epoch in range(epochs))
    with steps_bar("steps", hidden=json) as bar:
        found = complexity_of_run(
            trajectory,
            replace(opened, data=chain.from_iterable(batches)),
            learning_rate=rates,
            layer=layer,
            progress=bar,
        )
    files.draw(lambda: plot_complexity(found))
    if not json:
        typer.echo(str(found))
        return
    write_json({
        "layer": found.layer, "steps": len(found.moves), "length": found.length,
        "mean_lipschitz": found.mean_lipschitz, "bounds": found.mean_lipschitz_bounds,
        "outside": found.outside, "identity_error": found.identity_error,
        "violations": found.violations,
    })  # fmt: skip


def _recipe(trajectory: "Trajectory", lr: float | None) -> tuple[float | list[float], int]:
    """The learning rates of a run, and its epochs."""
    from slipstream.training import TrainingPlan

    recorded = trajectory.description["configuration"].get("training")
    if recorded:
        plan = TrainingPlan.from_dict(recorded)
        return lr or plan.rates(len(trajectory) - 1), plan.epochs
    if lr is None:
        raise ValueError("--lr is missing: the run does not say its learning rate.")
    return lr, 1
