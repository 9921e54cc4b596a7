"""`slipstream recipe side-tuning`."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe.choices import Controls, open_start, seeded
from slipstream.cli.task_options import TaskOptions
from slipstream.recipes.side_tuning.plan import SidePlan

if TYPE_CHECKING:
    from torch import nn

    from slipstream.evaluation import Task
    from slipstream.recipes import SideTuned

OUT = "side"
RUN = Adjusted(help={"out": "A folder for two runs, distilled and task."}, shown={"out": OUT})
TASK = Adjusted(
    help={"data": "Data of the new task, as of `slipstream train`.", "model": "The base's model."}
)
HEAD = "Layer of the base that is replaced for the task."
BATCHES = "Train on the first batches of the task only."


def side_tuning(
    run: Annotated[Path, typer.Argument(help="The run folder of the base; its last snapshot.")],
    plan: Annotated[SidePlan, Adjusted(skip=("seed",))],
    files: Annotated[OutputRun, RUN],
    task: Annotated[TaskOptions, TASK],
    head: Annotated[str, typer.Option(help=HEAD)] = "head",
    side_width: Annotated[int, typer.Option(help="Units of the side network.")] = 32,
    batches: Annotated[int | None, typer.Option(min=1, help=BATCHES, show_default="all")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the side network and the head.")] = 0,
    controls: Controls = True,
    json: options.AsJson = False,
) -> None:
    """Learn a task beside a recorded network that is never changed: nothing is forgotten.

    The side network is first distilled from the base. It is compared with the base's features
    under a new head, with fine-tuning, and with training from scratch.

    Example: slipstream recipe side-tuning run --data digits+turned --out turned
    """
    from slipstream.evaluation import Task
    from slipstream.recipes import distil_side, features_of, side_tune, small_side

    plan, out = seeded(plan, seed), files.out or Path(OUT)
    old, new = replace(task, data=None, loss=None).open(run), task.open(run, seed=seed)
    weights = open_start(old.model, run) or {}
    base = features_of(old.model, weights=weights, head=head)
    side = small_side(base, old.example(), width=side_width, seed=seed)
    if batches:
        new = replace(new, data=list(islice(new.data, batches)))
    made: dict[str, Any] = {"base": str(run), "head": head}
    with steps_bar("distilling", hidden=json) as bar:
        distilled = distil_side(
            side,
            Task(base, old.data),
            descent=plan.descent,
            run_folder=files.new_run(out / "distilled", **made),
            progress=bar,
        )
    with steps_bar("side-tuning", hidden=json) as bar:
        found = side_tune(
            replace(new, model=base, configuration={}),  # which says how to build another model
            side=distilled.side,
            head=new.model.get_submodule(head),
            plan=plan,
            run_folder=files.new_run(out / "task", **made, data=task.data, batches=batches),
            progress=bar,
        )
    tested = {"side-tuning": _test(new, found.network)}
    kept = {"base": old.evaluate(weights=weights, split="test")}
    if controls:
        from slipstream.recipes import side_controls

        with steps_bar("baselines", hidden=json) as bar:
            others = side_controls(
                new, base=base, weights=weights, head=head, descent=plan.descent, progress=bar
            )
        tested["features alone"] = _test(new, others.features)
        tested["fine-tuning"] = _test(new, others.fine_tuned)
        tested["from scratch"] = _test(new, others.scratch)
        kept["after fine-tuning"] = old.evaluate(weights=others.overwritten, split="test")
    _write(found, out, tested, kept, json=json)


def _test(task: "Task", network: "nn.Module") -> dict[str, float]:
    return replace(task, model=network).evaluate(split="test")


def _write(
    found: "SideTuned",
    out: Path,
    tested: dict[str, dict[str, float]],
    kept: dict[str, dict[str, float]],
    *,
    json: bool,
) -> None:
    if json:
        cost = {"blend": found.blend, "steps": found.steps}
        write_json({"path": str(out), **cost, "test": tested, "base": kept})
        return
    task = out / "task"
    typer.echo(f"{found.steps} steps; weight of the base {found.blend:.2f}; recorded in {task}")
    for title, rows in (
        ("the task, test data", tested),
        ("what the base was made for, never changed", kept),
    ):
        names = list(next(iter(rows.values())))
        cells = [[name, *(f"{row[metric]:.4f}" for metric in names)] for name, row in rows.items()]
        write_table([title, *names], cells)
