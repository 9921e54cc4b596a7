"""`slipstream recipe lure`."""

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe.choices import Controls, Start, open_start, seeded
from slipstream.cli.task_options import NewTaskOptions, build
from slipstream.recipes.lure.plan import Choice, LurePlan

if TYPE_CHECKING:
    from slipstream.evaluation import Batch
    from slipstream.recipes import Lure

OUT, USUAL = "lure", {"batch_size": 32}
CHUNKS = "In how many chunks the training batches arrive."
PLAN = Adjusted(skip=("seed", "choice"), help={"epochs": "Passes over all data so far, per chunk."})


def lure(
    task: Annotated[NewTaskOptions, Adjusted(shown=USUAL)],
    plan: Annotated[LurePlan, PLAN],
    files: Annotated[OutputRun, Adjusted(shown={"out": OUT})],
    start: Start = None,
    chunks: Annotated[int, typer.Option(min=1, help=CHUNKS)] = 4,
    controls: Controls = True,
    json: options.AsJson = False,
) -> None:
    """Train on data that arrive in chunks; before each, re-initialise what matters least for it.

    It is compared with random resets of as many weights, and with a plain warm start.

    Example: slipstream recipe lure mlp --chunks 4 --share 0.2 --out lure
    """
    from slipstream.recipes import train_lure

    named, out = task.new(**USUAL), files.out or Path(OUT)
    opened = build(named, device=task.device)
    new = files.new_run(out, start=start and str(start))
    choices: tuple[Choice, ...] = ("saliency", "random", "none") if controls else ("saliency",)
    found: dict[str, Lure] = {}
    for choice in choices:
        with steps_bar(choice, hidden=json) as bar:
            found[choice] = train_lure(
                opened,
                chunks=in_chunks(list(opened.data), chunks),
                plan=replace(seeded(plan, named.seed), choice=choice),
                initial=open_start(opened.model, start),
                run_folder=new if choice == "saliency" else None,
                progress=bar,
            )
    if json:
        stages = {name: [asdict(stage) for stage in one.stages] for name, one in found.items()}
        write_json({"path": str(out), "steps": found["saliency"].steps, "stages": stages})
        return
    candidates = found["saliency"].stages[0].candidates
    typer.echo(f"{found['saliency'].steps} steps; recorded in {out}")
    typer.echo(f"{candidates} weights may be reset. On validation data after each chunk:")
    show(found, list(opened.measured))


def in_chunks(batches: "list[Batch]", count: int) -> "list[list[Batch]]":
    """Return the batches in as many chunks of nearly the same length."""
    if count > len(batches):
        raise ValueError(
            f"--chunks must be at most {len(batches)}, the number of batches, got {count}."
        )
    ends = [len(batches) * number // count for number in range(count + 1)]
    return [batches[begin:end] for begin, end in itertools.pairwise(ends)]


def show(found: "dict[str, Lure]", metrics: list[str]) -> None:
    """Write the table: a row per chunk, the trainings side by side."""
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
