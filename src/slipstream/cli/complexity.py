"""`slipstream complexity`."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json
from slipstream.cli.progress import steps_bar

if TYPE_CHECKING:
    from slipstream.trajectory import Trajectory

FIGURE = "Draw the way of the bias and the bounds: PNG, SVG or PDF by its ending."
LAYER = "Whose bias to follow; by default the first layer's."
RATE = "Learning rate of the run, if the run does not tell."


def complexity(
    run: Annotated[Path, typer.Argument(help="A run folder with a snapshot of every step.")],
    layer: Annotated[str | None, typer.Option(help=LAYER)] = None,
    lr: Annotated[float | None, typer.Option(help=RATE)] = None,
    figure: Annotated[
        Path | None,
        typer.Option("-o", "--figure", help=FIGURE, callback=options.new_figure),
    ] = None,
    model: options.OtherModel = None,
    data: options.OtherData = None,
    loss: options.Loss = None,
    width: options.Width = None,
    option: options.Option = None,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Read how complex the learned function is from the way of the first bias.

    The run must take one example per step, by plain SGD, and keep every step: it is made by
    slipstream train with --batch-size 1 --momentum 0 --keep every:1.

    Example: slipstream complexity run -o complexity.png
    """
    from slipstream.cli.loading import open_experiment
    from slipstream.dynamics import complexity_of_run
    from slipstream.evaluation import batches_of_epoch
    from slipstream.report.figures import plot_complexity
    from slipstream.trajectory import Trajectory

    experiment = open_experiment(
        run, model=model, data=data, loss=loss, width=width, option=option, device=device
    )
    trajectory = Trajectory.open(run)
    rates, epochs = _recipe(trajectory, lr)
    batches = (batches_of_epoch(experiment.data, epoch) for epoch in range(epochs))
    with steps_bar("steps", hidden=json) as bar:
        found = complexity_of_run(
            trajectory,
            replace(experiment, data=chain.from_iterable(batches)),
            learning_rate=rates,
            layer=layer,
            progress=bar,
        )
    if figure is not None:
        plot_complexity(found).savefig(figure, dpi=150)
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

    told = trajectory.description["configuration"].get("training")
    if told:
        plan = TrainingPlan.from_dict(told)
        return lr or plan.rates(len(trajectory) - 1), plan.epochs
    if lr is None:
        raise ValueError("The run does not tell its learning rate: give it with --lr.")
    return lr, 1
