"""`slipstream recipe aggregation`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe.choices import Controls, open_start, seeded
from slipstream.cli.task_options import NewTaskOptions, build
from slipstream.recipes.aggregation.plan import AggregationPlan

if TYPE_CHECKING:
    from slipstream.recipes import Aggregation
    from slipstream.weights import Weights

OUT, USUAL = "aggregation", {"batch_size": 64}
USUAL_DATA = ("digits", "digits+permuted")
DATA = "A data set, as of `slipstream train`; give two or more with inputs of one shape."
STARTS = "A run folder for each data set, whose last snapshot is where its specialist starts."
PLAN = Adjusted(skip=("seed",), help={"epochs": "Passes over the longest data set."})


def aggregation(
    task: Annotated[NewTaskOptions, Adjusted(skip=("data",), shown=USUAL)],
    plan: Annotated[AggregationPlan, PLAN],
    files: Annotated[OutputRun, Adjusted(shown={"out": OUT})],
    data: Annotated[
        list[str] | None, typer.Option(help=DATA, show_default=", ".join(USUAL_DATA))
    ] = None,
    start: Annotated[list[Path] | None, typer.Option(help=STARTS)] = None,
    controls: Controls = True,
    json: options.AsJson = False,
) -> None:
    """Train a specialist per data set so that the sum of their weights solves all of them.

    They are trained jointly. "without 1" is the aggregate less the first specialist. It is compared
    with sum and mean of networks that were trained apart, and with one network for all data.

    Example: slipstream recipe aggregation mlp --data digits --data digits+permuted --out sum
    """
    from slipstream.recipes import aggregation_controls, train_aggregation

    named, out = task.new(**USUAL), files.out or Path(OUT)
    names = data or list(USUAL_DATA)
    parts = [build(replace(named, data=name), device=task.device) for name in names]
    parts = [replace(part, model=parts[0].model) for part in parts]
    starts = [str(path) for path in start] if start else None
    initial = [open_start(parts[0].model, path) or {} for path in start or ()] or None
    plan = seeded(plan, named.seed)
    with steps_bar("training", hidden=json) as bar:
        found = train_aggregation(
            parts,
            plan=plan,
            initial=initial,
            run_folder=files.new_run(out, data=names, start=starts),
            progress=bar,
        )
    networks = networks_of(found)
    if controls:
        with steps_bar("baselines", hidden=json) as bar:
            others = aggregation_controls(
                parts, descent=plan.descent, initial=initial, progress=bar
            )
        networks |= {"sum, apart": others.sum, "mean, apart": others.mean}
        networks["one network"] = others.together
    rows = {
        name: [part.evaluate(weights=weights, split="test") for part in parts]
        for name, weights in networks.items()
    }
    if json:
        write_json({"path": str(out), "steps": found.steps, "gap": found.gap, "test": rows})
        return
    typer.echo(f"{found.steps} steps; gap of aggregate and sum {found.gap:.4f}; recorded in {out}")
    columns = [f"{metric} {name}" for name in names for metric in parts[0].measured]
    cells = [
        [name, *(f"{value:.4f}" for part in row for value in part.values())]
        for name, row in rows.items()
    ]
    write_table(["test part", *columns], cells)


def networks_of(found: "Aggregation") -> "dict[str, Weights]":
    """Return the weights that a training gave, by what they are."""
    networks = {"sum": found.sum, "aggregate": found.aggregate}
    for number, specialist in enumerate(found.specialists, start=1):
        networks[f"specialist {number}"] = specialist
    for number, remainder in enumerate(found.remainders, start=1):
        networks[f"without {number}"] = remainder
    return networks
