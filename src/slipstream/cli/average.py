"""`slipstream average`."""

from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.average_of_runs import average_of_runs
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
RUNS = "A run folder; or several, or .safetensors files, of networks that were trained apart."
LEARN = "Of several runs: steps that train the rotations on the loss between the networks."
MODES = "Also try the run on so many correlation modes; repeatable."
BY = "The validation metric that decides."
FILES = Adjusted(skip=("figure",), help={"out": "Write the best average to this .safetensors file"})


def average(
    run: Annotated[list[Path], typer.Argument(help=RUNS)],
    task: TaskOptions,
    files: Annotated[OutputFiles, FILES],
    rule: Annotated[list[str] | None, typer.Option(help=RULE, show_default="a usual set")] = None,
    stored: Annotated[list[str] | None, typer.Option(help=STORED, show_default="none")] = None,
    modes: Annotated[list[int] | None, typer.Option(min=1, help=MODES)] = None,
    by: Annotated[str | None, typer.Option(help=BY, show_default="accuracy, else loss")] = None,
    learn_steps: Annotated[int, typer.Option(min=0, help=LEARN)] = 0,
    batchnorm_batches: options.BatchNormBatches = 100,
    json: options.AsJson = False,
) -> None:
    """Find the average of a run's snapshots that is best on validation data, or average runs.

    Tried are SWA, EMA, LAWA, emulated decays of the learning rate, and modes. Of several runs,
    the last snapshots are averaged instead: each is first aligned to that of the first run.

    Example: slipstream average run -o averaged.safetensors
    """
    _check(len(run) > 1, [rule, stored, modes, by], learn_steps)
    if len(run) > 1:
        average_of_runs(
            run, task, files, learn_steps=learn_steps, calibration=batchnorm_batches, json=json
        )
        return
    from slipstream.averaging import average_candidates, choose_average, parse_rule
    from slipstream.cli.masked import lost_mask
    from slipstream.trajectory import Trajectory

    opened, recorded = task.open(run[0]), Trajectory.open(run[0])
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


def _check(several: bool, of_one: list[object], learn_steps: int) -> None:
    if several and any(of_one):
        raise ValueError("--rule, --stored, --modes and --by are for one run alone.")
    if learn_steps and not several:
        raise ValueError("--learn-steps is for several runs: it aligns them to the first.")


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
