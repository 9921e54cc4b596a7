"""`slipstream evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import in_words, write_json
from slipstream.cli.task_options import TaskOptions

WEIGHTS = "A .safetensors file to evaluate instead of a snapshot."


def evaluate(
    task: TaskOptions,
    run: Annotated[Path | None, typer.Argument(help="A run folder.")] = None,
    step: options.Step = None,
    weights: Annotated[Path | None, typer.Option(help=WEIGHTS)] = None,
    split: options.Split = "test",
    json: options.AsJson = False,
) -> None:
    """Evaluate a snapshot of a run, or a file of weights.

    Example: slipstream evaluate run --step 100 --split validation
    """
    from slipstream.cli.loading import open_weights

    opened = task.open(run)
    found = open_weights(opened.model, run=run, step=step, file=weights)
    metrics = opened.evaluate(weights=found, split=split)
    if json:
        write_json({"split": split, **metrics})
    else:
        typer.echo(f"{split}: {in_words(metrics)}")
