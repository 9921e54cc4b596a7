"""`slipstream recipe routed-pretraining`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, write_json
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe.choices import seeded
from slipstream.cli.task_options import NewTaskOptions, build
from slipstream.recipes.routed_pretraining.plan import RoutedPlan

OUT, USUAL = "routed", {"model": "conv_net"}
RUN = Adjusted(
    help={"out": "A folder for runs: together, branch-1, branch-2 and so on."}, shown={"out": OUT}
)
TASK = Adjusted(skip=("loss", "metrics"), shown=USUAL)
PLAN = Adjusted(skip=("seed", "width"), help={"epochs": "Passes over the images, in all."})
HEAD = "Layer of the model that is left out: what goes into it are the features."


def routed_pretraining(
    task: Annotated[NewTaskOptions, TASK],
    plan: Annotated[RoutedPlan, PLAN],
    files: Annotated[OutputRun, RUN],
    head: Annotated[str, typer.Option(help=HEAD)] = "head",
    json: options.AsJson = False,
) -> None:
    """Learn features of images without their labels: a shared trunk, a branch per cluster.

    Each branch is a run to start from: `slipstream choose-start` says which one, by a few labels.

    Example: slipstream recipe routed-pretraining --data mnist:data --clusters 4 --out routed
    """
    from slipstream.recipes import features_of, pretrain_routed

    named, out = task.new(**USUAL), files.out or Path(OUT)
    opened = build(named, device=task.device)
    network = features_of(opened.model, head=head).requires_grad_(True)
    with steps_bar("training", hidden=json) as bar:
        found = pretrain_routed(
            replace(opened, model=network),
            plan=seeded(plan, named.seed),
            run_folder=files.new_run(out, head=head),
            progress=bar,
        )
    sizes = [] if found.clusters is None else found.clusters.bincount().tolist()
    if json:
        spread = {"spread": found.spread, "losses": found.losses}
        write_json({"path": str(out), "steps": found.steps, "clusters": sizes, **spread})
        return
    typer.echo(f"{found.steps} steps; deviation of the features {found.spread[-1]:.2f} of 1")
    for number, size in enumerate(sizes, start=1):
        typer.echo(f"branch {number}: {size} images; recorded in {out / f'branch-{number}'}")
    if not sizes:
        typer.echo(f"one network for all images; recorded in {out / 'branch-1'}")
