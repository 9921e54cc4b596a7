"""`slipstream evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import in_words, write_json

WEIGHTS = "A .safetensors file to evaluate instead of a snapshot."


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run folder.")] = None,
    step: Annotated[int | None, typer.Option(help="A step of it; the last if not given.")] = None,
    weights: Annotated[Path | None, typer.Option(help=WEIGHTS)] = None,
    split: Annotated[Literal["test", "validation", "train"], typer.Option()] = "test",
    model: options.OtherModel = None,
    data: options.OtherData = None,
    loss: options.Loss = None,
    width: options.Width = None,
    option: options.Option = None,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Evaluate a snapshot of a run, or a file of weights.

    Example: slipstream evaluate run --step 100 --split validation
    """
    from slipstream import evaluation
    from slipstream.cli.loading import open_experiment, open_weights

    experiment = open_experiment(
        run, model=model, data=data, loss=loss, width=width, option=option, device=device
    )
    metrics = evaluation.evaluate(
        experiment.model,
        experiment.measured,
        weights=open_weights(experiment.model, run=run, step=step, file=weights),
        data=experiment.part(split),
    )
    if json:
        write_json({"split": split, **metrics})
    else:
        typer.echo(f"{split}: {in_words(metrics)}")
