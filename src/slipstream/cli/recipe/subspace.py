"""`slipstream recipe subspace`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe import descent
from slipstream.cli.task_options import MODEL

if TYPE_CHECKING:
    from slipstream.evaluation import Task
    from slipstream.recipes import Subspace

SHAPE = "A line between 2 corners, a quadratic curve, or a simplex of --corners."
REPULSION = "How strongly corners are pushed towards right angles."
LAYERWISE = "Let each layer draw a position of its own."
POINTS = "Where it is measured: positions from end to end, or along an edge of a simplex."


def subspace(
    network: Annotated[str, typer.Argument(help=MODEL)] = "mlp",
    data: options.Data = "digits",
    loss: options.Loss = None,
    out: descent.Out = Path("subspace"),
    width: options.Width = None,
    option: options.Option = None,
    examples: Annotated[int | None, typer.Option(help="Train on the first ones only.")] = None,
    batch_size: descent.BatchSize = 128,
    shape: Annotated[Literal["line", "curve", "simplex"], typer.Option(help=SHAPE)] = "line",
    corners: Annotated[int, typer.Option(help="Of a simplex, 2 to 6; 3 if not given.")] = 0,
    repulsion: Annotated[float, typer.Option(help=REPULSION)] = 1.0,
    layerwise: Annotated[bool, typer.Option("--layerwise", help=LAYERWISE)] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 100,
    optimizer: descent.Optimizer = "sgd",
    lr: descent.Rate = 0.1,
    momentum: descent.Momentum = 0.9,
    weight_decay: descent.Decay = 1e-4,
    warm_up: descent.WarmUp = 0.05,
    seed: Annotated[int, typer.Option(help="Of weights, batches and positions.")] = 0,
    points: Annotated[int, typer.Option(min=2, help=POINTS)] = 5,
    resume: descent.Resume = False,
    overwrite: descent.Overwrite = False,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Train a line, a curve or a simplex of networks in one run, and record their midpoint.

    Example: slipstream recipe subspace mlp --shape simplex --corners 3 --out simplex
    """
    from slipstream.cli.task_options import build
    from slipstream.named_task import NamedTask
    from slipstream.recipes import SubspacePlan, train_subspace
    from slipstream.storage.new_run import NewRun
    from slipstream.training import TrainingPlan
    from slipstream.weights import weights_of

    further = options.network_options(option)
    setup = NamedTask(network, data, loss, width, further, examples, batch_size, seed)
    how = TrainingPlan.cosine(epochs, optimizer, lr, momentum, weight_decay, warm_up, seed)
    plan = SubspacePlan(shape, corners, repulsion, layerwise, how)
    task = build(setup, device=device)
    with steps_bar("training", hidden=json) as bar:
        found = train_subspace(
            task,
            plan=plan,
            initial=[
                weights_of(build(setup, seed=seed + corner, device=device).model)
                for corner in range(plan.corners)
            ],
            run_folder=NewRun(out, overwrite=overwrite, resume=resume),
            progress=bar,
        )
    measured = measure(task, found, points=points)
    if json:
        cost = {"steps": found.steps, "seconds": found.seconds, "cosine": found.cosine}
        write_json({"path": str(out), **cost, "losses": found.losses, **measured})
        return
    typer.echo(f"{found.steps} steps in {found.seconds:.1f} s; recorded in {out}")
    typer.echo(f"cosine of the angle between corners: {found.cosine:.2f}")
    columns = [f"{part} {name}" for part in measured for name in task.measured]
    rows = [
        [way, *(f"{measured[part][way][n]:.4f}" for part in measured for n in task.measured)]
        for way in measured["validation"]
    ]
    write_table(["", *columns], rows)


def measure(
    task: "Task", found: "Subspace", *, points: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the metrics of the midpoint, the worst point and the ensemble: part, way, name."""
    from slipstream.evaluation import Split, evaluate
    from slipstream.landscape import evaluate_span

    metrics = task.measured
    parts: tuple[Split, ...] = ("validation", "test")
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for part in parts:
        along = evaluate_span(found.span, task.on(part), points=points)
        worst = {name: along.worst(name, highest=name == "accuracy") for name in metrics}
        measured[part] = {
            "midpoint": task.evaluate(weights=found.midpoint, split=part),
            f"worst of {len(along.positions)}": worst,
        }
        if "accuracy" in metrics:
            measured[part]["ensemble"] = evaluate(
                found.ensemble(task.model), metrics, data=task.part(part)
            )
    return measured
