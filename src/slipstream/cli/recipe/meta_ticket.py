"""`slipstream recipe meta-ticket`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe import descent

if TYPE_CHECKING:
    from slipstream.recipes import MetaTraining, TaskScores

MODEL = "mlp, tapered_mlp, conv_net, conv8, resnet18, or package.module:function."
DATA = (
    "digits, omniglot:DIR, sinusoid, or package.module:function that returns an object with the "
    "iterables of TaskBatches train, validation and test."
)
METHOD = "Learn which random weights stay (ticket), or weights."
QUERIES = "Examples of each class that a task is judged by. As many as shots if not given."
HEAD = "Tensors of the head: a pattern, such as 'head.*'. The last layer if not given."
PRUNED = "Share of a ticket's weights that falls: at the start, or always with top-k."
REDRAWN = "Share of the fallen weights drawn anew each time."
RATE = "Outer learning rate. 10 for scores, 0.001 for weights if not given."
INITIAL = "From where a ticket's weights are drawn."


def meta_ticket(
    network: Annotated[str, typer.Argument(help=MODEL)] = "tapered_mlp",
    data: Annotated[str, typer.Option(help=DATA)] = "digits",
    loss: options.Loss = None,
    out: descent.Out = Path("meta"),
    width: options.Width = None,
    option: options.Option = None,
    method: Annotated[
        Literal["ticket", "ticket-boil", "maml", "anil", "boil"], typer.Option(help=METHOD)
    ] = "ticket",
    ways: Annotated[int | None, typer.Option(help="Classes in a task.")] = None,
    shots: Annotated[int, typer.Option(help="Examples of each class to learn from.")] = 5,
    queries: Annotated[int | None, typer.Option(help=QUERIES)] = None,
    tasks: Annotated[int, typer.Option(help="Tasks in a batch.")] = 4,
    epochs: Annotated[int, typer.Option(help="Epochs of 100 batches.")] = 30,
    rate: Annotated[float, typer.Option(help="Learning rate of the inner steps.")] = 0.4,
    steps: Annotated[int, typer.Option(help="Inner steps in training.")] = 1,
    test_steps: Annotated[int, typer.Option(help="Inner steps when it is judged.")] = 3,
    second_order: Annotated[bool, typer.Option(help="Pass through the inner gradients.")] = True,
    head: Annotated[list[str] | None, typer.Option(help=HEAD)] = None,
    initial: Annotated[
        Literal["kaiming-normal", "kaiming-uniform", "signed-constant", "constant"],
        typer.Option(help=INITIAL),
    ] = "kaiming-normal",
    threshold: Annotated[Literal["fixed", "top-k"], typer.Option(help="Of the scores.")] = "fixed",
    pruned: Annotated[float, typer.Option(help=PRUNED)] = 0.0,
    redrawn: Annotated[float, typer.Option(help=REDRAWN)] = 0.0,
    every: Annotated[int, typer.Option(help="Steps from one time to the next.")] = 300,
    lr: Annotated[float | None, typer.Option(help=RATE)] = None,
    seed: Annotated[int, typer.Option(help="Of weights, scores and tasks.")] = 0,
    resume: descent.Resume = False,
    overwrite: descent.Overwrite = False,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Learn to learn tasks from a few examples: Meta-ticket, MAML, ANIL or BOIL.

    Example: slipstream recipe meta-ticket --data omniglot:data --ways 5 --shots 1 --out meta
    """
    from slipstream.cli.task_options import build
    from slipstream.named_task import FewShot, NamedTask
    from slipstream.recipes import MetaPlan, judge_tasks, train_meta
    from slipstream.storage.new_run import NewRun
    from slipstream.testbed import TaskForm

    plan = MetaPlan(
        method, rate, steps, second_order, tuple(head or ()), "auto", initial, threshold, pruned,
        redrawn, every, seed=seed,
    )  # fmt: skip
    outer = replace(plan.outer, epochs=epochs, lr=plan.outer.lr if lr is None else lr)
    plan = replace(plan, descent=outer)
    if ways is None:
        ways = 1 if data == "sinusoid" else 5
    form = TaskForm(ways, shots, queries, tasks)
    few = FewShot(form, replace(plan.adaptation, sparse=plan.masked), test_steps)
    further = options.network_options(option)
    setup = NamedTask(network, data, loss, width, further, None, tasks, seed, few)
    task = build(setup, device=device)
    with steps_bar("training", hidden=json) as bar:
        new = NewRun(out, overwrite=overwrite, resume=resume)
        found = train_meta(task, plan=plan, run_folder=new, progress=bar)
    scores = {
        name: judge_tasks(metric, task.on("test"), weights=found.weights)
        for name, metric in task.measured.items()
    }
    write(found, scores, out=out, json=json)


def write(found: "MetaTraining", scores: "dict[str, TaskScores]", *, out: Path, json: bool) -> None:
    """Write what was learned, and how well."""
    from slipstream.recipes import ticket_size

    ticket = found.ticket
    if json:
        cost = {"steps": found.steps, "tasks": found.tasks, "seconds": found.seconds}
        course = {"losses": found.losses, "pruned": found.pruned, "churn": found.churn}
        taken = asdict(ticket_size(ticket)) if ticket else None
        test = {name: {"mean": s.mean, "interval": s.interval} for name, s in scores.items()}
        write_json({"path": str(out), **cost, **course, "bytes": taken, "test": test})
        return
    speed = f"{found.tasks_per_second:.0f} tasks a second"
    typer.echo(f"{found.steps} steps, {speed}, {found.seconds:.1f} s; recorded in {out}")
    count = next(iter(scores.values())).tasks
    for name, score in scores.items():
        typer.echo(f"{name} on {count} test tasks: {score.mean:.4f} ± {score.interval:.4f} (95 %)")
    if ticket:
        size = ticket_size(ticket)
        typer.echo(f"as a seed and a bit mask: {size.file} bytes, as weights {size.weights}")
        rows = [[n, str(m.numel()), f"{ticket.pruned[n]:.1%}"] for n, m in ticket.masks.items()]
        write_table(["weight", "size", "pruned"], rows)
