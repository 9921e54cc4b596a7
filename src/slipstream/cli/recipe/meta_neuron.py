"""`slipstream recipe meta-neuron`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.recipes.meta_neuron.plan import NeuronPlan

if TYPE_CHECKING:
    from slipstream.evaluation import Task
    from slipstream.recipes import MetaNeuron, TaskScores
    from slipstream.recipes.meta_neuron.plan import Order

OUT, RATES = "neuron", (0.01, 0.03, 0.1, 0.3)
RUN = Adjusted(help={"out": "A folder for two runs, maps and life."}, shown={"out": OUT})
DATA = "digits or omniglot:DIR; other classes are held out for validation and for test."
HIDDEN = "Units of a hidden layer of the networks; repeatable."
PLAN = Adjusted(skip=("seed",), help={"epochs": "Epochs of --batches batches."})


def meta_neuron(
    plan: Annotated[NeuronPlan, PLAN],
    files: Annotated[OutputRun, RUN],
    data: Annotated[str, typer.Option(help=DATA)] = "digits",
    hidden: Annotated[
        list[int] | None, typer.Option(min=1, help=HIDDEN, show_default="32, 32")
    ] = None,
    ways: Annotated[int, typer.Option(help="Classes per stream.")] = 5,
    shots: Annotated[int, typer.Option(help="Examples per class in a stream.")] = 10,
    tasks: Annotated[int, typer.Option(help="Streams per batch.")] = 16,
    batches: Annotated[int, typer.Option(help="Batches per epoch.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of maps, streams and networks.")] = 0,
    json: options.AsJson = False,
) -> None:
    """Learn a neuron whose networks absorb a stream in one pass, in whatever order it comes.

    It is compared on streams of held-out classes with class means, and with online SGD with and
    without replay of as many bytes, whose rates are chosen on validation data.

    Example: slipstream recipe meta-neuron --epochs 10 --out neuron
    """
    import math

    import torch

    from slipstream.evaluation import Task
    from slipstream.recipes import AfterStream, MetaNeuron, live, train_neuron
    from slipstream.testbed.tasks import TaskForm, load_tasks

    out = files.out or Path(OUT)
    split = load_tasks(data, TaskForm(ways, shots, 2, tasks, batches), seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        neuron = MetaNeuron((math.prod(split.spec.shape), *(hidden or (32, 32)), ways))
    metrics = {"accuracy": AfterStream(metric="accuracy")}
    task = Task(neuron, split.train, AfterStream(), split.validation, split.test, metrics)
    plan = replace(plan, descent=replace(plan.descent, seed=seed))
    made = {"data": data, "ways": ways, "shots": shots}
    with steps_bar("training", hidden=json) as bar:
        found = train_neuron(
            task, plan=plan, run_folder=files.new_run(out / "maps", **made), progress=bar
        )
    neuron.load_state_dict(found.weights)
    (inputs, labels), (queries, truth) = split.test.batch(0)
    one = Task(neuron, [(inputs[0], labels[0])], validation=[(queries[0], truth[0])])
    new = files.new_run(out / "life", **made)
    live(one, seed=seed, run_folder=replace(new, overwrite=new.overwrite or new.resume))
    scores = compared(neuron, task)
    if json:
        test = {name: {"mean": s.mean, "interval": s.interval} for name, s in scores.items()}
        write_json({"path": str(out), "steps": found.steps, "losses": found.losses, "test": test})
        return
    typer.echo(f"{found.steps} steps, {found.seconds:.1f} s; recorded in {out}/maps and {out}/life")
    count = next(iter(scores.values())).tasks
    rows = [[name, f"{s.mean:.4f}", f"{s.interval:.4f}"] for name, s in scores.items()]
    write_table([f"accuracy on {count} test streams", "mean", "95 %"], rows)


def compared(neuron: "MetaNeuron", task: "Task") -> "dict[str, TaskScores]":
    """Return the accuracies on test streams; rates are chosen on validation streams."""
    import math

    from slipstream.recipes import AfterStream, judge_tasks
    from slipstream.recipes.meta_neuron.controls import ClassMeans, OnlineSGD, equal_replay

    validation, test = task.on("validation"), task.on("test")
    values = math.prod(test.first_batch().support[0].shape[2:])
    kept = equal_replay(neuron, example_bytes=values + 1)  # a byte per value, one for the label
    scores = {
        "neuron, class by class": judge_tasks(AfterStream("class", "accuracy"), test),
        "neuron, random order": judge_tasks(AfterStream("random", "accuracy"), test),
    }
    rivals: tuple[tuple[str, Order, int], ...] = (
        ("SGD, class by class", "class", 0),
        ("SGD, random order", "random", 0),
        (f"SGD with {kept} examples kept", "class", kept),
    )
    for name, order, replay in rivals:
        ways = [OnlineSGD(rate, order, replay) for rate in RATES]
        best = max(ways, key=lambda way: judge_tasks(way, validation).mean)
        scores[name] = judge_tasks(best, test)
    return scores | {"class means": judge_tasks(ClassMeans(), test)}
