"""`slipstream predict`."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, write_json
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import pieces_bar
from slipstream.cli.task_options import TaskOptions
from slipstream.dynamics.prediction_plan import PredictionPlan

START = "A run folder; training would continue from a snapshot of it."
WEIGHTS = "A .safetensors file to start from instead of a snapshot."
EXAMPLES = "Train on the first ones only: the kernel grows with their square."
MEMORY = "Gigabytes that the kernel, and blocks of the Jacobian, may each take."
FILES = Adjusted(
    skip=("out",), help={"figure": "Draw the predicted curve: PNG, SVG or PDF by the ending."}
)


def predict(
    plan: Annotated[PredictionPlan, Adjusted(rename={"thresholds": "reach"})],
    task: TaskOptions,
    files: Annotated[OutputFiles, FILES],
    run: Annotated[Path | None, typer.Argument(help=START)] = None,
    step: options.Step = None,
    weights: Annotated[Path | None, typer.Option(help=WEIGHTS)] = None,
    examples: Annotated[int, typer.Option(help=EXAMPLES)] = 200,
    memory: Annotated[float, typer.Option(help=MEMORY)] = 2.0,
    json: options.AsJson = False,
) -> None:
    """Predict after how many steps of SGD the training loss falls below a value, without training.

    The model is in eval mode: no dropout, and BatchNorm with its running statistics.

    Example: slipstream predict run --data cifar10:data --lr 0.01 --reach 50% --reach 0.1
    """
    from slipstream.cli.loading import open_weights
    from slipstream.dynamics import predict_training_time
    from slipstream.report.figures import plot_training_time

    opened = task.open(run)
    model = opened.model.eval()
    start = open_weights(model, run=run, step=step, file=weights) if run or weights else None
    with pieces_bar("predicting", hidden=json) as progress:
        found = predict_training_time(
            replace(opened, data=first_examples(opened.data, examples)),
            weights=start,
            plan=replace(plan, memory=int(memory * 1e9)),
            progress=progress,
        )
    files.draw(lambda: plot_training_time(found))
    if json:
        write_json(asdict(found) | {"losses": found.losses.tolist()})
    else:
        typer.echo(str(found))


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
