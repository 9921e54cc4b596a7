"""`slipstream recipe subspace`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe.choices import seeded
from slipstream.cli.task_options import NewTaskOptions, build
from slipstream.recipes.subspaces.plan import SubspacePlan

if TYPE_CHECKING:
    from slipstream.evaluation import Task
    from slipstream.recipes import Subspace

OUT = "subspace"
POINTS = "Where it is measured: positions from end to end, or along an edge of a simplex."


def subspace(
    task: NewTaskOptions,
    plan: Annotated[SubspacePlan, Adjusted(skip=("seed",))],
    files: Annotated[OutputRun, Adjusted(shown={"out": OUT})],
    points: Annotated[int, typer.Option(min=2, help=POINTS)] = 5,
    json: options.AsJson = False,
) -> None:
    """Train a line, a curve or a simplex of networks in one run, and record their midpoint.

    Example: slipstream recipe subspace mlp --shape simplex --corners 3 --out simplex
    """
    from slipstream.recipes import train_subspace
    from slipstream.weights import weights_of

    named, out = task.new(), files.out or Path(OUT)
    seeds = range(named.seed, named.seed + plan.corners)
    opened = build(named, device=task.device)
    with steps_bar("training", hidden=json) as bar:
        found = train_subspace(
            opened,
            plan=seeded(plan, named.seed),
            initial=[weights_of(build(named, seed=s, device=task.device).model) for s in seeds],
            run_folder=files.new_run(out),
            progress=bar,
        )
    measured = measure(opened, found, points=points)
    if json:
        cost = {"steps": found.steps, "seconds": found.seconds, "cosine": found.cosine}
        write_json({"path": str(out), **cost, "losses": found.losses, **measured})
        return
    typer.echo(f"{found.steps} steps in {found.seconds:.1f} s; recorded in {out}")
    typer.echo(f"cosine of the angle between corners: {found.cosine:.2f}")
    names = list(opened.measured)
    columns = [f"{part} {name}" for part in measured for name in names]
    rows = [
        [network, *(f"{measured[part][network][n]:.4f}" for part in measured for n in names)]
        for network in measured["validation"]
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
