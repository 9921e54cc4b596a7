"""`slipstream recipe meta-ticket`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import NewTaskOptions, build
from slipstream.recipes.few_shot.plan import MetaPlan

if TYPE_CHECKING:
    from slipstream.named_task import FewShot
    from slipstream.recipes import MetaTraining, TaskScores

OUT, USUAL = "meta", {"model": "tapered_mlp"}
DATA = (
    "digits, omniglot:DIR, sinusoid, or package.module:function that returns an object with the "
    "iterables of TaskBatches train, validation and test."
)
QUERIES = "Examples per class that a task is judged by."
TASK = Adjusted(skip=("examples", "batch_size"), help={"data": DATA}, shown=USUAL)


def meta_ticket(
    task: Annotated[NewTaskOptions, TASK],
    plan: Annotated[MetaPlan, Adjusted(skip=("seed",))],
    files: Annotated[OutputRun, Adjusted(shown={"out": OUT})],
    ways: Annotated[
        int | None, typer.Option(help="Classes per task.", show_default="5; of sinusoid: 1")
    ] = None,
    shots: Annotated[int, typer.Option(help="Examples per class to learn from.")] = 5,
    queries: Annotated[int | None, typer.Option(help=QUERIES, show_default="--shots")] = None,
    tasks: Annotated[int, typer.Option(help="Tasks per batch.")] = 4,
    test_steps: Annotated[int, typer.Option(help="Inner steps when a task is judged.")] = 3,
    epochs: Annotated[int, typer.Option(help="Epochs of 100 batches.")] = 30,
    lr: Annotated[
        float | None,
        typer.Option(help="Outer learning rate.", show_default="10 for scores, 0.001 for weights"),
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Learn to learn tasks from a few examples: Meta-ticket, MAML, ANIL or BOIL.

    Example: slipstream recipe meta-ticket --data omniglot:data --ways 5 --shots 1 --out meta
    """
    from slipstream.recipes import judge_tasks, train_meta

    named, out = task.new(**USUAL, batch_size=tasks), files.out or Path(OUT)
    plan = replace(plan, seed=named.seed)
    outer = plan.outer
    plan = replace(plan, descent=replace(outer, epochs=epochs, lr=outer.lr if lr is None else lr))
    ways = ways or (1 if named.data == "sinusoid" else 5)
    few = _few_shot(plan, (ways, shots, queries, tasks), test_steps)
    opened = build(replace(named, few_shot=few), device=task.device)
    with steps_bar("training", hidden=json) as bar:
        found = train_meta(opened, plan=plan, run_folder=files.new_run(out), progress=bar)
    scores = {
        name: judge_tasks(metric, opened.on("test"), weights=found.weights)
        for name, metric in opened.measured.items()
    }
    _write(found, scores, out=out, json=json)


def _few_shot(plan: MetaPlan, form: tuple[int, int, int | None, int], test_steps: int) -> "FewShot":
    from slipstream.named_task import FewShot
    from slipstream.testbed import TaskForm

    adaptation = replace(plan.adaptation, sparse=plan.masked)
    return FewShot(TaskForm(*form), adaptation, test_steps)


def _write(
    found: "MetaTraining", scores: "dict[str, TaskScores]", *, out: Path, json: bool
) -> None:
    from slipstream.recipes import ticket_size

    ticket = found.ticket
    if json:
        cost = {"steps": found.steps, "tasks": found.tasks, "seconds": found.seconds}
        course = {"losses": found.losses, "pruned": found.pruned, "churn": found.churn}
        taken = asdict(ticket_size(ticket)) if ticket else None
        test = {name: {"mean": s.mean, "interval": s.interval} for name, s in scores.items()}
        write_json({"path": str(out), **cost, **course, "bytes": taken, "test": test})
        return
    speed = f"{found.tasks_per_second:.0f} tasks per second"
    typer.echo(f"{found.steps} steps, {speed}, {found.seconds:.1f} s; recorded in {out}")
    count = next(iter(scores.values())).tasks
    for name, score in scores.items():
        typer.echo(f"{name} on {count} test tasks: {score.mean:.4f} ± {score.interval:.4f} (95 %)")
    if ticket:
        size = ticket_size(ticket)
        typer.echo(f"as a seed and a bit mask: {size.file} bytes, as weights {size.weights}")
        rows = [[n, str(m.numel()), f"{ticket.pruned[n]:.1%}"] for n, m in ticket.masks.items()]
        write_table(["weight", "size", "pruned"], rows)
