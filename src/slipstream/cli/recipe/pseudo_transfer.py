"""`slipstream recipe pseudo-transfer`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe import descent

if TYPE_CHECKING:
    from torch import Tensor

    from slipstream.recipes import Pretrained, PseudoControls, PseudoTransferred

MODEL = "mlp, tapered_mlp, conv_net, conv8, resnet18, or package.module:function."
SOURCE = "digits, mnist:DIR, cifar10:DIR: trains a small generator and a classifier on it."
GENERATOR = (
    "Instead: a file of save_generator, or package.module:function that returns a "
    "ConditionalGenerator."
)
CLASSIFIER = (
    "Instead: a run folder, or package.module:function that returns a function from inputs to "
    "logits."
)
LABELS = "Labelled examples of each class of the target. All if not given."
OUT = "A folder for two runs, pretrained and task."
HEAD = "Layer of the network that is another for the source's classes."
WEIGHT = "How much synthetic inputs count in P-SSL, lambda; 0: no P-SSL."
UNSUPERVISED = "Loss on synthetic inputs."
CONDITIONING = "What a synthetic input is made of: the classifier's answer to a target's input."
PRETRAINING = "Epochs of 100 batches of synthetic examples; 0: no pre-training."


def pseudo_transfer(
    network: Annotated[str, typer.Argument(help=MODEL)] = "conv_net",
    data: options.Data = "digits+inverted",
    loss: options.Loss = None,
    source: Annotated[str, typer.Option(help=SOURCE)] = "digits",
    source_epochs: Annotated[int, typer.Option(min=1, help="Of the source's training.")] = 30,
    generator: Annotated[str | None, typer.Option(help=GENERATOR)] = None,
    classifier: Annotated[str | None, typer.Option(help=CLASSIFIER)] = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("pseudo"),
    head: Annotated[str, typer.Option(help=HEAD)] = "head",
    width: options.Width = None,
    option: options.Option = None,
    start: descent.Start = None,
    labels: Annotated[int | None, typer.Option(min=1, help=LABELS)] = None,
    pretraining: Annotated[int, typer.Option(min=0, help=PRETRAINING)] = 5,
    weight: Annotated[float, typer.Option(help=WEIGHT)] = 0.1,
    unsupervised: Annotated[
        Literal["uda", "fixmatch", "pseudo-label", "entropy"], typer.Option(help=UNSUPERVISED)
    ] = "uda",
    conditioning: Annotated[
        Literal["soft", "sampled", "uniform"], typer.Option(help=CONDITIONING)
    ] = "soft",
    epochs: Annotated[int, typer.Option(help="Passes over the target's data.")] = 60,
    batch_size: descent.BatchSize = 32,
    optimizer: descent.Optimizer = "sgd",
    lr: descent.Rate = 0.05,
    momentum: descent.Momentum = 0.9,
    weight_decay: descent.Decay = 1e-4,
    warm_up: descent.WarmUp = 0.05,
    seed: Annotated[int, typer.Option(help="Of weights, batches and samples.")] = 0,
    controls: descent.Controls = True,
    resume: descent.Resume = False,
    overwrite: descent.Overwrite = False,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Learn from few labels with a source's generator and classifier, without its data.

    The network is first trained on what the generator makes (PP), then on the labels and on
    synthetic inputs that look like the target's (P-SSL).

    Example: slipstream recipe pseudo-transfer --source digits --data digits+turned --labels 5
    """
    from slipstream.cli.loading import open_weights
    from slipstream.cli.recipe.pseudo_source import few_of_each, open_source
    from slipstream.cli.task_options import build
    from slipstream.named_task import NamedTask
    from slipstream.recipes import (
        Consistency,
        PretrainPlan,
        PseudoPlan,
        check_transfer,
        pseudo_controls,
        pseudo_pretrain,
        pseudo_semi_supervised,
    )
    from slipstream.storage.new_run import NewRun
    from slipstream.training import TrainingPlan

    def how(epochs: int) -> TrainingPlan:
        return TrainingPlan.cosine(epochs, optimizer, lr, momentum, weight_decay, warm_up, seed)

    plan = PseudoPlan(weight, Consistency(unsupervised), conditioning, descent=how(epochs))
    setup = NamedTask(
        network, data, loss, width, options.network_options(option), None, batch_size, seed
    )
    task = build(setup, device=device)
    task = replace(task, data=few_of_each(task.data, labels, size=batch_size, seed=seed))
    initial = open_weights(task.model, run=start, step=None, file=None) if start else None
    source_names = {"source": source, "epochs": source_epochs, "generator": generator}
    known = open_source(
        source=source, epochs=source_epochs, generator=generator, classifier=classifier, seed=seed
    )
    check_transfer(known, task, plan=plan)
    names = {
        "start": str(start) if start else None,
        "pseudo": {**source_names, "classifier": classifier, "labels": labels},
    }
    before = None
    if pretraining:
        with steps_bar("pre-training", hidden=json) as bar:
            before = pseudo_pretrain(
                known,
                task,
                head=head,
                plan=PretrainPlan(descent=how(pretraining)),
                initial=initial,
                run_folder=NewRun(out / "pretrained", names, overwrite, resume),
                progress=bar,
            )
    with steps_bar("learning", hidden=json) as bar:
        found = pseudo_semi_supervised(
            known,
            task,
            plan=plan,
            initial=before.weights if before else initial,
            run_folder=NewRun(out / "task", names, overwrite, resume),
            progress=bar,
        )
    ways: dict[str, dict[str, Tensor] | None]
    ways = {name_of(before is not None, weight): found.weights}
    if controls:
        with steps_bar("controls", hidden=json) as bar:
            others = pseudo_controls(
                known,
                task,
                head=head,
                plan=plan,
                pretrained=before,
                initial=initial,
                progress=bar,
            )
        ways |= named(others, weight)
    rows = {
        way: task.evaluate(weights=weights, split="test")
        for way, weights in ways.items()
        if weights is not None
    }
    write(rows, found, before, out=out, json=json)


def named(others: "PseudoControls", weight: float) -> dict[str, "dict[str, Tensor] | None"]:
    """Return the weights of the controls by what they are called in the table."""
    return {
        name_of(True, 0.0): others.fine_tuned,
        name_of(False, weight): others.alone,
        "from scratch": others.scratch,
        "from scratch, as many steps in all": others.longer,
        "distillation": others.distilled,
    }


def name_of(pretrained: bool, weight: float) -> str:
    """Return what a way is called in the table."""
    parts = ["PP"] * pretrained + ["P-SSL"] * bool(weight)
    return " + ".join(parts) or "from scratch"


def write(
    rows: dict[str, dict[str, float]],
    found: "PseudoTransferred",
    before: "Pretrained | None",
    *,
    out: Path,
    json: bool,
) -> None:
    """Write what was learned, what it cost, and how well the ways do."""
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
    write_table(["the target, test part", *names], cells)
