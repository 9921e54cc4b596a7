"""`slipstream predict`."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json
from slipstream.cli.plan_options import in_flags
from slipstream.cli.progress import pieces_bar

START = "A run folder; training would go on from a snapshot of it."
STEP = "The snapshot's step; the last if not given."
WEIGHTS = "A .safetensors file to start from instead of a snapshot."
EXAMPLES = "Train on the first ones only: the kernel grows with their square."
REACH = "A loss to reach, such as 0.1, or a share of that at the start, such as 10%."
BATCH = "Examples per step; all if not given."
COSINE = "Of the lr; cosine falls to 0 at --max-steps."
LINEARISATIONS = "How often the network may be linearised; 1 is the paper's method."
OUTPUTS = "separate leaves out what passes between outputs, and takes less memory."
MEMORY = "Gigabytes that the kernel, and blocks of the Jacobian, may each take."
FIGURE = "Draw the predicted curve: PNG, SVG or PDF by its ending."


def predict(
    run: Annotated[Path | None, typer.Argument(help=START)] = None,
    step: Annotated[int | None, typer.Option(help=STEP)] = None,
    weights: Annotated[Path | None, typer.Option(help=WEIGHTS)] = None,
    model: options.OtherModel = None,
    data: options.OtherData = None,
    loss: options.Loss = None,
    width: options.Width = None,
    option: options.Option = None,
    examples: Annotated[int, typer.Option(help=EXAMPLES)] = 200,
    reach: Annotated[list[str] | None, typer.Option(help=REACH)] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.05,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0,
    batch_size: Annotated[int | None, typer.Option(help=BATCH)] = None,
    schedule: Annotated[Literal["constant", "cosine"], typer.Option(help=COSINE)] = "constant",
    max_steps: Annotated[int, typer.Option(help="When to give up.")] = 10_000,
    linearisations: Annotated[int, typer.Option(help=LINEARISATIONS)] = 16,
    outputs: Annotated[Literal["full", "separate"], typer.Option(help=OUTPUTS)] = "full",
    memory: Annotated[float, typer.Option(help=MEMORY)] = 2.0,
    seed: Annotated[int, typer.Option(help="Of the batches.")] = 0,
    figure: Annotated[
        Path | None, typer.Option("-o", "--figure", help=FIGURE, callback=options.new_figure)
    ] = None,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Predict after how many steps of SGD the training loss is so low, without training.

    The model is in eval mode: no dropout, and BatchNorm with its running statistics.

    Example: slipstream predict run --data cifar10:data --lr 0.01 --reach 50% --reach 0.1
    """
    from slipstream.cli.loading import open_experiment, open_weights
    from slipstream.dynamics import PredictionPlan, predict_training_time
    from slipstream.report.figures import plot_training_time

    experiment = open_experiment(
        run, model=model, data=data, loss=loss, width=width, option=option, device=device
    )
    network = experiment.model.eval()
    start = open_weights(network, run=run, step=step, file=weights) if run or weights else None
    task = replace(experiment, data=first_examples(experiment.data, examples))
    with _naming_flags(), pieces_bar("predicting", hidden=json) as progress:
        plan = PredictionPlan(
            reach or PredictionPlan.thresholds,
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            schedule=schedule,
            batch_size=batch_size,
            seed=seed,
            max_steps=max_steps,
            linearisations=linearisations,
            outputs=outputs,
            memory=int(memory * 1e9),
        )
        found = predict_training_time(task, weights=start, plan=plan, progress=progress)
    if figure is not None:
        plot_training_time(found).savefig(figure, dpi=150)
    if json:
        write_json(finite(asdict(found) | {"losses": found.losses.tolist()}))
    else:
        typer.echo(str(found))


@contextmanager
def _naming_flags() -> Generator[None]:
    """Name the options in errors about the plan."""
    try:
        yield
    except ValueError as error:
        flags = {"thresholds": "--reach", "lr": "--lr", "max_steps": "--max-steps"}
        raise ValueError(in_flags(str(error), flags)) from error


def finite(value: Any) -> Any:
    """Return plain data with None for what is infinite or no number: JSON has neither.

    Example:
        >>> finite({"losses": [1.0, float("inf")]})
        {'losses': [1.0, None]}
    """
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def first_examples(batches: Iterable[Any], count: int) -> list[Any]:
    """Return batches of the first examples, the last one cut.

    Args:
        batches: Pairs of tensors.
        count: How many examples.

    Returns:
        The batches.

    Raises:
        ValueError: If `count` is below 1.
    """
    from slipstream.evaluation import batch_size

    if count < 1:
        raise ValueError(f"--examples must be at least 1, got {count}.")
    found: list[Any] = []
    for batch in batches:
        left = count - sum(batch_size(one) for one in found)
        if left <= 0:
            break
        cut = batch_size(batch) > left and isinstance(batch, tuple | list)
        found.append(tuple(part[:left] for part in batch) if cut else batch)
    return found
