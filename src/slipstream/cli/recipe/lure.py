"""`slipstream recipe lure`."""

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe import descent
from slipstream.cli.task_options import MODEL

if TYPE_CHECKING:
    from slipstream.evaluation import Batch
    from slipstream.recipes import Lure

CHUNKS = "In how many chunks the training batches arrive."
SHARE = "Share of the weights that is drawn anew before each new chunk, from 0 to below 1."
SLICE = "Batches of the new chunk that the saliency is taken on; all if not given."


def lure(
    network: Annotated[str, typer.Argument(help=MODEL)] = "mlp",
    data: options.Data = "digits",
    loss: options.Loss = None,
    start: descent.Start = None,
    out: descent.Out = Path("lure"),
    width: options.Width = None,
    option: options.Option = None,
    batch_size: descent.BatchSize = 32,
    chunks: Annotated[int, typer.Option(min=1, help=CHUNKS)] = 4,
    share: Annotated[float, typer.Option(help=SHARE)] = 0.2,
    slice_batches: Annotated[int | None, typer.Option(help=SLICE)] = None,
    epochs: Annotated[int, typer.Option(help="Passes over all data so far, a chunk.")] = 20,
    optimizer: descent.Optimizer = "sgd",
    lr: descent.Rate = 0.05,
    momentum: descent.Momentum = 0.9,
    weight_decay: descent.Decay = 1e-4,
    warm_up: descent.WarmUp = 0.05,
    seed: Annotated[int, typer.Option(help="Of weights, batches and fresh values.")] = 0,
    controls: descent.Controls = True,
    resume: descent.Resume = False,
    overwrite: descent.Overwrite = False,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Train on data that arrive in chunks, and forget before each what matters least for it.

    Beside it stand random resets of as many weights, and a plain warm start.

    Example: slipstream recipe lure mlp --chunks 4 --share 0.2 --out lure
    """
    from slipstream.cli.loading import open_weights
    from slipstream.cli.task_options import build
    from slipstream.named_task import NamedTask
    from slipstream.recipes import LurePlan, train_lure
    from slipstream.storage.new_run import NewRun
    from slipstream.training import TrainingPlan

    further = options.network_options(option)
    setup = NamedTask(network, data, loss, width, further, None, batch_size, seed)
    how = TrainingPlan.cosine(epochs, optimizer, lr, momentum, weight_decay, warm_up, seed)
    plan = LurePlan(share, "saliency", slice_batches, how)
    task = build(setup, device=device)
    initial = open_weights(task.model, run=start, step=None, file=None) if start else None
    new = NewRun(out, {"start": start and str(start)}, overwrite, resume)
    found: dict[str, Lure] = {}
    for choice in ("saliency", "random", "none") if controls else ("saliency",):
        with steps_bar(choice, hidden=json) as bar:
            found[choice] = train_lure(
                task,
                chunks=in_chunks(list(task.data), chunks),
                plan=replace(plan, choice=choice),
                initial=initial,
                run_folder=new if choice == "saliency" else None,
                progress=bar,
            )
    if json:
        ways = {name: [asdict(stage) for stage in way.stages] for name, way in found.items()}
        write_json({"path": str(out), "steps": found["saliency"].steps, "stages": ways})
        return
    candidates = found["saliency"].stages[0].candidates
    typer.echo(f"{found['saliency'].steps} steps; recorded in {out}")
    typer.echo(f"{candidates} weights may be reset. On validation data after each chunk:")
    show(found, list(task.measured))


def in_chunks(batches: "list[Batch]", count: int) -> "list[list[Batch]]":
    """Return the batches in as many chunks of nearly the same length."""
    if count > len(batches):
        raise ValueError(
            f"--chunks must be at most {len(batches)}, the number of batches, got {count}."
        )
    ends = [len(batches) * number // count for number in range(count + 1)]
    return [batches[begin:end] for begin, end in itertools.pairwise(ends)]


def show(found: "dict[str, Lure]", metrics: list[str]) -> None:
    """Write the table: a row for each chunk, the ways side by side."""
    names = {"saliency": "lure", "random": "random", "none": "warm"}
    columns = [f"{names[way]} {metric}" for metric in metrics for way in found]
    rows = [
        [
            str(stage.chunk + 1),
            str(stage.reset),
            *(
                f"{way.stages[stage.chunk].metrics[f'validation_{metric}']:.4f}"
                for metric in metrics
                for way in found.values()
            ),
        ]
        for stage in found["saliency"].stages
    ]
    write_table(["chunk", "reset", *columns], rows)
