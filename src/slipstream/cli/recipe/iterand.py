"""`slipstream recipe iterand`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, in_words, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe.choices import seeded
from slipstream.cli.task_options import NewTaskOptions, build
from slipstream.recipes.masks.plan import IterandPlan

if TYPE_CHECKING:
    from slipstream.evaluation import Split
    from slipstream.recipes import IterandTraining

OUT = "ticket"
PRUNED_IN = "Another share for some weights, as PATTERN=SHARE, such as 'head.*=0.2'; repeatable."
PLAN = Adjusted(skip=("seed",), help={"pruned_in": PRUNED_IN})


def iterand(
    task: NewTaskOptions,
    plan: Annotated[IterandPlan, PLAN],
    files: Annotated[OutputRun, Adjusted(shown={"out": OUT})],
    json: options.AsJson = False,
) -> None:
    """Train a mask over random weights instead of the weights: IteRand; edge-popup, --redrawn 0.

    Example: slipstream recipe iterand mlp --width 64 --pruned 0.5 --out ticket
    """
    from slipstream.recipes import train_iterand

    named, out = task.new(), files.out or Path(OUT)
    opened = build(named, device=task.device)
    with steps_bar("training", hidden=json) as bar:
        found = train_iterand(
            opened, plan=seeded(plan, named.seed), run_folder=files.new_run(out), progress=bar
        )
    parts: tuple[Split, ...] = ("validation", "test")
    weights = found.ticket.weights
    measured = {part: opened.evaluate(weights=weights, split=part) for part in parts}
    if json:
        write_json({"path": str(out), **_values(found), **measured})
    else:
        typer.echo(f"{found.steps} steps in {found.seconds:.1f} s; recorded in {out}")
        _print(found, measured)


def _values(found: "IterandTraining") -> dict[str, object]:
    from slipstream.recipes import ticket_size

    return {
        **{"steps": found.steps, "rounds": found.rounds, "seconds": found.seconds},
        **{"losses": found.losses, "churn": found.churn, "pruned": found.ticket.pruned},
        "bytes": asdict(ticket_size(found.ticket)),
    }


def _print(found: "IterandTraining", measured: "dict[Split, dict[str, float]]") -> None:
    from slipstream.recipes import ticket_size

    ticket, size = found.ticket, ticket_size(found.ticket)
    times = f"{found.rounds} times" if found.rounds else "never: this is edge-popup"
    typer.echo(f"pruned weights were re-initialised {times}")
    first, last = found.churn[0], found.churn[-1]
    typer.echo(f"masks that changed: {first:.1%} in the first epoch, {last:.1%} in the last")
    typer.echo(f"as a seed and a bit mask: {size.file} bytes, as weights {size.weights}")
    for part, metrics in measured.items():
        typer.echo(f"{part}: {in_words(metrics)}")
    rows = [[n, str(m.numel()), f"{ticket.pruned[n]:.1%}"] for n, m in ticket.masks.items()]
    write_table(["weight", "size", "pruned"], rows)
