"""`slipstream recipe aggregation`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe import descent
from slipstream.cli.task_options import MODEL

if TYPE_CHECKING:
    from slipstream.recipes import Aggregation
    from slipstream.weights import Weights

DATA = "A data set, as of `train`; give it twice at least, for data with inputs of one shape."
PULL = "How strongly the aggregate is held to the sum of the specialists."
STARTS = "A run folder for each data set, whose last snapshot is where its specialist starts."


def aggregation(
    network: Annotated[str, typer.Argument(help=MODEL)] = "mlp",
    data: Annotated[list[str] | None, typer.Option(help=DATA)] = None,
    loss: options.Loss = None,
    start: Annotated[list[Path] | None, typer.Option(help=STARTS)] = None,
    out: descent.Out = Path("aggregation"),
    width: options.Width = None,
    option: options.Option = None,
    batch_size: descent.BatchSize = 64,
    pull: Annotated[float, typer.Option(help=PULL)] = 1.0,
    epochs: Annotated[int, typer.Option(help="Passes over the longest data set.")] = 40,
    optimizer: descent.Optimizer = "sgd",
    lr: descent.Rate = 0.02,
    momentum: descent.Momentum = 0.9,
    weight_decay: descent.Decay = 1e-4,
    warm_up: descent.WarmUp = 0.05,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
    controls: descent.Controls = True,
    resume: descent.Resume = False,
    overwrite: descent.Overwrite = False,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Train a specialist for each data set so that the sum of their weights masters all of them.

    They are trained jointly. "without 1" is the aggregate less the first specialist. Beside these
    stand sum and mean of networks that were trained apart, and one network for all data.

    Example: slipstream recipe aggregation mlp --data digits --data digits+permuted --out sum
    """
    from slipstream.cli.loading import open_weights
    from slipstream.cli.task_options import build
    from slipstream.named_task import NamedTask
    from slipstream.recipes import AggregationPlan, aggregation_controls, train_aggregation
    from slipstream.storage.new_run import NewRun
    from slipstream.training import TrainingPlan

    names = data or ["digits", "digits+permuted"]
    further = options.network_options(option)
    setups = [
        NamedTask(network, name, loss, width, further, None, batch_size, seed) for name in names
    ]
    tasks = [build(setup, device=device) for setup in setups]
    how = TrainingPlan.cosine(epochs, optimizer, lr, momentum, weight_decay, warm_up, seed)
    model, metrics = tasks[0].model, tasks[0].measured
    tasks = [replace(task, model=model) for task in tasks]
    starts = list(map(str, start)) if start else None
    new = NewRun(out, {"data": names, "start": starts}, overwrite, resume)
    initial = [open_weights(model, run=run, step=None, file=None) for run in start or ()]
    with steps_bar("training", hidden=json) as bar:
        found = train_aggregation(
            tasks,
            plan=AggregationPlan(pull, how),
            initial=initial or None,
            run_folder=new,
            progress=bar,
        )
    ways = ways_of(found)
    if controls:
        with steps_bar("controls", hidden=json) as bar:
            others = aggregation_controls(tasks, descent=how, initial=initial or None, progress=bar)
        ways |= {"sum, apart": others.sum, "mean, apart": others.mean}
        ways["one network"] = others.together
    rows = {
        way: [task.evaluate(weights=weights, split="test") for task in tasks]
        for way, weights in ways.items()
    }
    if json:
        write_json({"path": str(out), "steps": found.steps, "gap": found.gap, "test": rows})
        return
    typer.echo(f"{found.steps} steps; gap of aggregate and sum {found.gap:.4f}; recorded in {out}")
    columns = [f"{metric} {name}" for name in names for metric in metrics]
    cells = [
        [way, *(f"{value:.4f}" for part in row for value in part.values())]
        for way, row in rows.items()
    ]
    write_table(["test part", *columns], cells)


def ways_of(found: "Aggregation") -> "dict[str, Weights]":
    """Return the weights that a training gave, by what they are."""
    ways = {"sum": found.sum, "aggregate": found.aggregate}
    for number, specialist in enumerate(found.specialists, start=1):
        ways[f"specialist {number}"] = specialist
    for number, remainder in enumerate(found.remainders, start=1):
        ways[f"without {number}"] = remainder
    return ways
