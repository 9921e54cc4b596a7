"""`slipstream average`."""

from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import pieces_bar
from slipstream.cli.task_options import TaskOptions

if TYPE_CHECKING:
    from slipstream.averaging import AverageChoice, PowerEMA
    from slipstream.trajectory import Trajectory

RULE = (
    "swa:STEP, ema:DECAY, lawa:SNAPSHOTS, lawa:PERCENT% (of the steps), power:WIDTH (an EMA that "
    "grows with the run), or a decay of the learning rate from a step on: linear:STEP, cosine:STEP "
    "or 1-sqrt:STEP; repeatable."
)
STORED = (
    "RULE=RUN, such as power:0.05=run-ema: power averages that were stored during training, from "
    "which --rule power:WIDTH is made instead of from RUN; repeatable."
)
MODES = "Also try the run on so many correlation modes; repeatable."
BY = "The validation metric that decides."
FILES = Adjusted(skip=("figure",), help={"out": "Write the best average to this .safetensors file"})


def average(
    run: options.Run,
    task: TaskOptions,
    files: Annotated[OutputFiles, FILES],
    rule: Annotated[list[str] | None, typer.Option(help=RULE, show_default="a usual set")] = None,
    stored: Annotated[list[str] | None, typer.Option(help=STORED, show_default="none")] = None,
    modes: Annotated[list[int] | None, typer.Option(min=1, help=MODES)] = None,
    by: Annotated[str | None, typer.Option(help=BY, show_default="accuracy, else loss")] = None,
    batchnorm_batches: options.BatchNormBatches = 100,
    json: options.AsJson = False,
) -> None:
    """Find the average of a run's snapshots that is best on validation data.

    Tried are SWA, EMA, LAWA, emulated decays of the learning rate, and modes.

    Example: slipstream average run -o averaged.safetensors
    """
    from slipstream.averaging import average_candidates, choose_average, parse_rule
    from slipstream.cli.masked import lost_mask
    from slipstream.trajectory import Trajectory

    opened, recorded = task.open(run), Trajectory.open(run)
    criterion = by or ("accuracy" if "accuracy" in opened.measured else "loss")
    rules = [parse_rule(text) for text in rule] if rule else None
    with pieces_bar("averaging", hidden=json) as bar:
        choice = choose_average(
            average_candidates(recorded, rules=rules, modes=modes, stored=_opened(stored)),
            replace(opened, calibration=list(islice(opened.data, batchnorm_batches))),
            criterion=criterion,
            highest=criterion == "accuracy",
            progress=bar,
        )
    files.write_weights(choice.weights)
    _print(choice, list(opened.measured), json=json)
    if not json and (line := lost_mask(recorded[-1].weights, choice.weights)):
        typer.echo(line)


def _opened(stored: list[str] | None) -> "dict[PowerEMA, Trajectory] | None":
    from slipstream.averaging import PowerEMA, parse_rule
    from slipstream.trajectory import Trajectory

    opened: dict[PowerEMA, Trajectory] = {}
    for text in stored or ():
        name, equals, folder = text.partition("=")
        rule = parse_rule(name) if equals else None
        if not isinstance(rule, PowerEMA):
            raise ValueError(f"--stored must be power:WIDTH=RUN, got {text!r}.")
        opened[rule] = Trajectory.open(folder)
    return opened or None


def _print(choice: "AverageChoice", names: list[str], *, json: bool) -> None:
    if json:
        candidates = [asdict(candidate) for candidate in choice.candidates]
        write_json({"best": choice.best.name, "by": choice.criterion, "candidates": candidates})
        return
    rows = [[c.name, *(f"{c.validation[n]:.4f}" for n in names)] for c in choice.candidates]
    write_table(["validation", *names], rows)
    typer.echo(f"best by {choice.criterion}: {choice.best.name}")
