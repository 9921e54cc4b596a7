"""`slipstream train`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, in_words, write_json
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import NewTaskOptions, build
from slipstream.training.plan import TrainingPlan

OUT = "run"
KEEP = "Snapshots besides each epoch's end: epochs (none), every:N steps, or log."


def train(
    task: NewTaskOptions,
    plan: Annotated[TrainingPlan, Adjusted(skip=("seed",))],
    run: Annotated[OutputRun, Adjusted(shown={"out": OUT})],
    keep: Annotated[str, typer.Option(help=KEEP)] = "epochs",
    json: options.AsJson = False,
) -> None:
    """Train a network and record the run, with its validation metrics at every epoch.

    Example: slipstream train mlp --width 1024 --data mnist:data --epochs 3 --lr 0.02 --out run
    """
    from slipstream.training import record_training

    named = task.new()
    with steps_bar("training", hidden=json) as bar:
        result = record_training(
            build(named, device=task.device),
            replace(plan, seed=named.seed),
            run_folder=run.new_run(run.out or Path(OUT)),
            keep=keep,
            progress=bar,
        )
    if json:
        write_json(asdict(result))
    else:
        typer.echo(f"{result.steps} steps in {result.seconds:.1f} s, recorded in {result.path}")
        typer.echo(f"validation: {in_words(result.validation)}")
        typer.echo(f"test: {in_words(result.test)}")
