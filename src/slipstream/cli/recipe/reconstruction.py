"""`slipstream recipe reconstruction`."""

from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, OutputRun, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe.choices import seeded
from slipstream.cli.task_options import TaskOptions
from slipstream.recipes.reconstruction.plan import ReconstructionPlan

if TYPE_CHECKING:
    from slipstream.recipes import Attempt, Reconstruction

OUT = "reconstruction"
RUN = Adjusted(help={"out": "A folder for a run per attempt."}, shown={"out": OUT})
PLAN = Adjusted(skip=("seed",), help={"epochs": "Of an attempt, of 100 steps each."})
STEP = "The snapshot to read; two for a displacement."
HELD = "Batches of validation data that are held against it."
FIGURE = "Draw training and held-out inputs above what is most like them: PNG, SVG or PDF."


def reconstruction(
    run: Annotated[Path, typer.Argument(help="The run folder to check.")],
    plan: Annotated[ReconstructionPlan, PLAN],
    files: Annotated[OutputRun, RUN],
    task: TaskOptions,
    step: Annotated[list[int] | None, typer.Option(help=STEP, show_default="by equation")] = None,
    held_out: Annotated[int, typer.Option(min=1, help=HELD)] = 1,
    figure: Annotated[Path | None, typer.Option(help=FIGURE)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the candidates.")] = 0,
    json: options.AsJson = False,
) -> None:
    """Try to read training data from a run's weights: a privacy check before they are published.

    What is found is compared with held-out inputs: these are like other inputs of their kind, too.

    Example: slipstream recipe reconstruction run --equation displacement --figure found.png
    """
    from slipstream.recipes import reconstruct
    from slipstream.report.figures import plot_pictures
    from slipstream.trajectory import Trajectory

    opened, out = task.open(run), files.out or Path(OUT)
    drawn = OutputFiles(figure=figure, overwrite=files.overwrite)
    held = list(islice(opened.part("validation"), held_out))
    with steps_bar("reconstruction", hidden=json) as bar:
        found = reconstruct(
            Trajectory.open(run),
            replace(opened, validation=held),
            plan=seeded(plan, seed),
            steps=step or None,
            run_folder=files.new_run(out, checked=str(run)),
            progress=bar,
        )
    drawn.draw(lambda: plot_pictures(found.pictures))
    rows = [_row(attempt) for attempt in found.attempts]
    if json:
        write_json({"path": str(out), "attempts": rows, "verdict": str(found), **_cost(found)})
        return
    write_table(list(rows[0]), [[f"{value:.3g}" for value in row.values()] for row in rows])
    typer.echo(f"The least residual counts. {found}")


def _row(attempt: "Attempt") -> dict[str, Any]:
    plan, own = attempt.plan, attempt.likeness
    return {
        "scale": plan.scale, "smoothness": plan.smoothness, "lr": plan.descent.lr,
        "residual": attempt.residual, "train": float(own.train.median()),
        "held out": float(own.held_out.median()), "ceiling": own.ceiling, "p": own.chance,
    }  # fmt: skip


def _cost(found: "Reconstruction") -> dict[str, Any]:
    return {"steps": found.steps, "seconds": found.seconds, "plan": asdict(found.plan)}
