"""`slipstream average`."""

from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import pieces_bar

RULE = "swa:STEP, ema:DECAY or lawa:SNAPSHOTS, several times; by default a usual set, and modes."
MODES = "A number of modes; as many of these as you like."
BY = "The metric that decides: loss, or accuracy, which decides if there is one."
BATCHES = "Training batches to recalibrate BatchNorm on."


def average(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    rule: Annotated[list[str] | None, typer.Option(help=RULE)] = None,
    modes: Annotated[list[int] | None, typer.Option(min=1, help=MODES)] = None,
    by: Annotated[str | None, typer.Option(help=BY)] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the best here.")] = None,
    batchnorm_batches: Annotated[int, typer.Option(min=1, help=BATCHES)] = 100,
    model: options.OtherModel = None,
    data: options.OtherData = None,
    loss: options.Loss = None,
    width: options.Width = None,
    option: options.Option = None,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Find the average of a run's snapshots that is best on validation data: SWA, EMA, LAWA, modes.

    Example: slipstream average run -o averaged.safetensors
    """
    from safetensors.torch import save_file

    from slipstream.averaging import average_candidates, choose_average, parse_rule
    from slipstream.cli.loading import open_experiment
    from slipstream.cli.masks import lost_mask
    from slipstream.trajectory import Trajectory

    experiment = open_experiment(
        run, model=model, data=data, loss=loss, width=width, option=option, device=device
    )
    recorded = Trajectory.open(run)
    criterion = by or ("accuracy" if "accuracy" in experiment.measured else "loss")
    rules = [parse_rule(text) for text in rule] if rule else None
    with pieces_bar("averaging", hidden=json) as bar:
        choice = choose_average(
            average_candidates(recorded, rules=rules, modes=modes),
            replace(experiment, calibration=list(islice(experiment.data, batchnorm_batches))),
            criterion=criterion,
            highest=criterion == "accuracy",
            progress=bar,
        )
    if out:
        save_file(choice.weights, out)
    if json:
        candidates = [asdict(candidate) for candidate in choice.candidates]
        write_json({"best": choice.best.name, "by": choice.criterion, "candidates": candidates})
        return
    names = list(experiment.measured)
    rows = [[c.name, *(f"{c.validation[n]:.4f}" for n in names)] for c in choice.candidates]
    write_table(["validation", *names], rows)
    typer.echo(f"best by {choice.criterion}: {choice.best.name}")
    if line := lost_mask(recorded[-1].weights, choice.weights):
        typer.echo(line)
