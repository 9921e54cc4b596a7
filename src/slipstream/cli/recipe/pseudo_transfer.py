"""`slipstream recipe pseudo-transfer`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe.choices import Controls, Start, open_start, seeded
from slipstream.cli.recipe.source_options import SourceOptions
from slipstream.cli.task_options import NewTaskOptions, build
from slipstream.recipes.pseudo_transfer.plan import PretrainPlan, PseudoPlan

if TYPE_CHECKING:
    from slipstream.evaluation import Task
    from slipstream.recipes import Pretrained, PseudoSource, PseudoTransferred
    from slipstream.weights import Weights

OUT = "pseudo"
USUAL = {"model": "conv_net", "data": "digits+inverted", "batch_size": 32}
FILES = Adjusted(help={"out": "A folder for two runs, pretrained and task."}, shown={"out": OUT})
PLAN = Adjusted(
    skip=("seed",),
    rename={"kind": "unsupervised"},
    help={"epochs": "Passes over the target's data."},
)
LABELS = "Labelled examples per class of the target."
HEAD = "Layer of the network that is another one for the source's classes."
PRETRAINING = "Epochs of 100 batches of synthetic examples; 0: no pre-training."


def pseudo_transfer(
    task: Annotated[NewTaskOptions, Adjusted(skip=("examples",), shown=USUAL)],
    source: SourceOptions,
    plan: Annotated[PseudoPlan, PLAN],
    files: Annotated[OutputRun, FILES],
    start: Start = None,
    labels: Annotated[int | None, typer.Option(min=1, help=LABELS, show_default="all")] = None,
    head: Annotated[str, typer.Option(help=HEAD)] = "head",
    pretraining: Annotated[
        int, typer.Option(min=0, help=PRETRAINING)
    ] = PretrainPlan().descent.epochs,
    controls: Controls = True,
    json: options.AsJson = False,
) -> None:
    """Learn from few labels with a source's generator and classifier, without its data.

    The network is first trained on what the generator makes (PP), then on the labels and on
    synthetic inputs that look like the target's (P-SSL).

    Example: slipstream recipe pseudo-transfer --source digits --data digits+turned --labels 5
    """
    from slipstream.cli.recipe.pseudo_source import few_of_each, open_source
    from slipstream.recipes import check_transfer, pseudo_pretrain, pseudo_semi_supervised

    named, out = task.new(**USUAL), files.out or Path(OUT)
    plan = seeded(plan, named.seed)
    opened = build(named, device=task.device)
    few = few_of_each(opened.data, labels, size=named.batch_size, seed=named.seed)
    opened, initial = replace(opened, data=few), open_start(opened.model, start)
    known = open_source(source, seed=named.seed)
    check_transfer(known, opened, plan=plan)
    made: dict[str, Any] = {"start": start and str(start), "pseudo": _names(source, labels)}
    first = None
    if pretraining:
        plan_of_it = PretrainPlan(descent=replace(plan.descent, epochs=pretraining))
        with steps_bar("pre-training", hidden=json) as bar:
            first = pseudo_pretrain(
                known,
                opened,
                head=head,
                plan=plan_of_it,
                initial=initial,
                run_folder=files.new_run(out / "pretrained", **made),
                progress=bar,
            )
    with steps_bar("learning", hidden=json) as bar:
        found = pseudo_semi_supervised(
            known,
            opened,
            plan=plan,
            initial=first.weights if first else initial,
            run_folder=files.new_run(out / "task", **made),
            progress=bar,
        )
    networks: dict[str, Weights | None] = {name_of(first is not None, plan.weight): found.weights}
    if controls:
        given: dict[str, Any] = {"plan": plan, "pretrained": first, "initial": initial}
        networks |= _baselines(known, opened, head=head, json=json, **given)
    rows = {
        name: opened.evaluate(weights=weights, split="test")
        for name, weights in networks.items()
        if weights is not None
    }
    _write(rows, found, first, out=out, json=json)


def _names(source: SourceOptions, labels: int | None) -> dict[str, Any]:
    return {
        "source": source.source,
        "epochs": source.source_epochs,
        "generator": source.generator,
        "classifier": source.classifier,
        "labels": labels,
    }


def _baselines(
    known: "PseudoSource", task: "Task", *, head: str, json: bool, **given: Any
) -> "dict[str, Weights | None]":
    """The weights of the baselines by what they are called in the table."""
    from slipstream.recipes import pseudo_controls

    with steps_bar("baselines", hidden=json) as bar:
        others = pseudo_controls(known, task, head=head, progress=bar, **given)
    return {
        name_of(True, 0.0): others.fine_tuned,
        name_of(False, given["plan"].weight): others.alone,
        "from scratch": others.scratch,
        "from scratch, as many steps in all": others.longer,
        "distillation": others.distilled,
    }


def name_of(pretrained: bool, weight: float) -> str:
    """Return what a network is called in the table."""
    parts = ["PP"] * pretrained + ["P-SSL"] * bool(weight)
    return " + ".join(parts) or "from scratch"


def _write(
    rows: dict[str, dict[str, float]],
    found: "PseudoTransferred",
    before: "Pretrained | None",
    *,
    out: Path,
    json: bool,
) -> None:
    """Write what was learned, what it cost, and how well the networks do."""
    steps = before.steps if before else 0
    synthetic = found.synthetic + (before.synthetic if before else 0)
    confident = found.confident[-1]
    if json:
        cost = {"pretraining": steps, "steps": found.steps, "synthetic": synthetic}
        write_json({"path": str(out), **cost, "confident": confident, "test": rows})
        return
    typer.echo(
        f"{steps} steps of pre-training, {found.steps} on the target, {synthetic} synthetic "
        f"examples; recorded in {out / 'task'}"
    )
    names = list(next(iter(rows.values())))
    cells = [[way, *(f"{values[name]:.4f}" for name in names)] for way, values in rows.items()]
    write_table(["the target, test data", *names], cells)
