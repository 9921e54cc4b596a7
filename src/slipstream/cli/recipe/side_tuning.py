"""`slipstream recipe side-tuning`."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe import descent

if TYPE_CHECKING:
    from torch import nn

    from slipstream.storage.new_run import NewRun

DATA = "Data of the new task, as of `train`; those of the run if not given."
HEAD = "Layer of the run's model that is replaced for the task."
WIDTH = "Units of the side network's hidden layer."
OUT = "A folder for two runs, distilled and task."
BATCHES = "Train on the first batches of the task only."


def side_tuning(
    run: Annotated[Path, typer.Argument(help="The run folder of the base; its last snapshot.")],
    data: Annotated[str | None, typer.Option(help=DATA)] = None,
    loss: options.Loss = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("side"),
    head: Annotated[str, typer.Option(help=HEAD)] = "head",
    side_width: Annotated[int, typer.Option(help=WIDTH)] = 32,
    batches: Annotated[int | None, typer.Option(min=1, help=BATCHES)] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 60,
    optimizer: descent.Optimizer = "adamw",
    lr: descent.Rate = 0.005,
    momentum: descent.Momentum = 0.9,
    weight_decay: descent.Decay = 1e-4,
    warm_up: descent.WarmUp = 0.05,
    seed: Annotated[int, typer.Option(help="Of the side network and the head.")] = 0,
    controls: descent.Controls = True,
    resume: descent.Resume = False,
    overwrite: descent.Overwrite = False,
    model: options.OtherModel = None,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Learn a task beside a recorded network that is never touched: nothing is forgotten.

    The side network is first distilled from the base. Beside it stand the base's features under a
    new head, fine-tuning, and training from scratch.

    Example: slipstream recipe side-tuning run --data digits+turned --out turned
    """
    from slipstream.cli.loading import open_experiment, open_weights
    from slipstream.evaluation import Task, inputs_of
    from slipstream.recipes import (
        SidePlan,
        distil_side,
        features_of,
        side_controls,
        side_tune,
        small_side,
    )
    from slipstream.storage.new_run import NewRun
    from slipstream.training import TrainingPlan

    how = TrainingPlan.cosine(epochs, optimizer, lr, momentum, weight_decay, warm_up, seed)
    old = open_experiment(run, model=model, device=device)
    task = open_experiment(run, model=model, data=data, loss=loss, seed=seed, device=device)
    weights = open_weights(old.model, run=run, step=None, file=None)
    base = features_of(old.model, weights=weights, head=head)
    side = small_side(base, inputs_of(next(iter(old.data))), width=side_width, seed=seed)
    made = {"base": str(run), "head": head}
    if batches:
        task = replace(task, data=list(islice(task.data, batches)))

    def new(name: str, **further: Any) -> "NewRun":
        return NewRun(out / name, {**made, **further}, overwrite, resume)

    with steps_bar("distilling", hidden=json) as bar:
        distilled = distil_side(
            side, Task(base, old.data), descent=how, run_folder=new("distilled"), progress=bar
        )
    with steps_bar("side-tuning", hidden=json) as bar:
        found = side_tune(
            replace(task, model=base, configuration={}),  # which says how to build another model
            side=distilled.side,
            head=task.model.get_submodule(head),
            plan=SidePlan(how),
            run_folder=new("task", data=data, batches=batches),
            progress=bar,
        )

    def test(network: "nn.Module") -> dict[str, float]:
        return replace(task, model=network).evaluate(split="test")

    rows = {"side-tuning": test(found.network)}
    kept = {"base": old.evaluate(weights=weights, split="test")}
    if controls:
        with steps_bar("controls", hidden=json) as bar:
            others = side_controls(
                task, base=base, weights=weights, head=head, descent=how, progress=bar
            )
        rows["features alone"] = test(others.features)
        rows["fine-tuning"] = test(others.fine_tuned)
        rows["from scratch"] = test(others.scratch)
        kept["after fine-tuning"] = old.evaluate(weights=others.overwritten, split="test")
    if json:
        write_json(
            {"path": str(out), "blend": found.blend, "steps": found.steps, "test": rows,
             "base": kept}
        )  # fmt: skip
        return
    typer.echo(
        f"{found.steps} steps; the base counts {found.blend:.2f}; recorded in {out / 'task'}"
    )
    write(rows, "the task, test part")
    write(kept, "what the base was made for; side-tuning never touches it")


def write(rows: dict[str, dict[str, float]], title: str) -> None:
    """Write a table of metrics."""
    names = list(next(iter(rows.values())))
    cells = [[way, *(f"{found[name]:.4f}" for name in names)] for way, found in rows.items()]
    write_table([title, *names], cells)
