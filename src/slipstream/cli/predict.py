"""`slipstream predict`."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from math import cos, isfinite, pi
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json
from slipstream.cli.progress import pieces_bar

START = "A run folder; training would go on from a snapshot of it."
STEP = "The snapshot's step; the last if not given."
WEIGHTS = "A .safetensors file to start from instead of a snapshot."
EXAMPLES = "Train on the first ones only: the kernel grows with their square."
REACH = "A loss to reach, such as 0.1, or a share of that at the start, such as 10%."
BATCH = "Examples in a step; all if not given."
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
    max_steps: Annotated[int, typer.Option(help="When to give up.")] = 5000,
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
    from slipstream.dynamics import predict_training_time
    from slipstream.evaluation import evaluate
    from slipstream.report.training_time import plot_training_time

    experiment = open_experiment(
        run, model=model, data=data, loss=loss, width=width, option=option, device=device
    )
    network = experiment.model.eval()
    start = open_weights(network, run=run, step=step, file=weights) if run or weights else None
    chosen = first_examples(experiment.data, examples)
    at_start = evaluate(network, {"loss": experiment.loss}, weights=start, data=chosen)["loss"]
    with pieces_bar("looking", hidden=json) as progress:
        found = predict_training_time(
            network,
            experiment.loss,
            weights=start,
            data=chosen,
            thresholds=thresholds_of(reach or ["50%", "25%", "10%"], at_start),
            lr=lr if schedule == "constant" else lambda at: lr * (1 + cos(pi * at / max_steps)) / 2,
            momentum=momentum,
            weight_decay=weight_decay,
            batch_size=batch_size,
            max_steps=max_steps,
            linearisations=linearisations,
            outputs=outputs,
            memory=int(memory * 1e9),
            seed=seed,
            progress=progress,
        )
    if figure is not None:
        plot_training_time(found).savefig(figure, dpi=150)
    if json:
        write_json(finite(asdict(found) | {"losses": found.losses.tolist()}))
    else:
        typer.echo(str(found))


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


def thresholds_of(given: Sequence[str], at_start: float) -> list[float]:
    """Read losses, and shares of the loss at the start.

    Args:
        given: Such as `0.1` or `10%`.
        at_start: The loss at the start.

    Returns:
        Losses.

    Raises:
        ValueError: If one is neither.

    Example:
        >>> thresholds_of(["0.1", "10%"], 2.0)
        [0.1, 0.2]
    """
    found = []
    for text in given:
        try:
            value = float(text.removesuffix("%"))
        except ValueError as error:
            message = f"--reach must be a loss such as 0.1, or a share such as 10%, got {text!r}."
            raise ValueError(message) from error
        found.append(value / 100 * at_start if text.endswith("%") else value)
    return found
