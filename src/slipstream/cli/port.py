"""`slipstream port`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions
from slipstream.porting.plan import PortPlan

if TYPE_CHECKING:
    from slipstream.evaluation import Task

FROM_BASE = "What the fine-tune started from: a Hugging Face folder, or a file of weights."
FINE_TUNED = "The fine-tune: the same, or a LoRA adapter in the format of PEFT."
TO_BASE = "The base that gets the fine-tune."
OUT = "What to make: a new folder, or a .safetensors file if --to-base is a file."
DATA = (
    "Labelled batches of the task, to take gradients on (train) and to choose by (validation), and "
    "perhaps others without labels (unlabelled): package.module:function, or with --model digits, "
    "mnist:DIR or cifar10:DIR."
)
MODEL = "mlp, conv_net, conv8, resnet18, or package.module:function, your own."
PLAN = Adjusted(
    rename={"batches_per_gradient": "batches", "strengths": "strength", "rates": "rate"},
)
TASK = Adjusted(
    help={"model": MODEL, "data": DATA},
    shown={"model": "that of --to-base", "data": "none", "loss": "the model's own"},
)


def port(
    from_base: Annotated[Path, typer.Option(help=FROM_BASE)],
    fine_tuned: Annotated[Path, typer.Option(help=FINE_TUNED)],
    to_base: Annotated[Path, typer.Option(help=TO_BASE)],
    out: Annotated[Path, typer.Option("-o", "--out", help=OUT)],
    plan: Annotated[PortPlan, PLAN],
    task: Annotated[TaskOptions, TASK],
    groups: options.Groups = None,
    json: options.AsJson = False,
) -> None:
    """Port a fine-tune from one base model to another.

    Example: slipstream port --from-base A --fine-tuned A-chat --to-base B -o B-chat
    """
    from slipstream.porting import FineTune, port_checkpoint
    from slipstream.symmetry.neuron_groups import NeuronGroups

    with steps_bar("porting", hidden=json) as bar:
        result = port_checkpoint(
            out,
            FineTune(from_base, fine_tuned, to_base),
            _task(to_base, task),
            plan=plan,
            groups=NeuronGroups.load(groups) if groups else None,
            progress=bar,
        )
    if json:
        write_json({**result.to_json(), "path": str(out)})
    else:
        typer.echo(f"{result}\nwritten to {out}")


def _task(to_base: Path, task: TaskOptions) -> "Task | None":
    """The task that is named; None if there is nothing to choose by."""
    from slipstream.cli.task_options import import_function
    from slipstream.porting import checkpoint_task

    named = task.all_given()
    if "model" in named:
        found = task.open()
        if "data" not in named:  # the model alone, to match neurons by weights
            return replace(found, data=(), validation=None, example_input=found.example())
        return found
    if "data" not in named:
        return None
    given = import_function(named["data"])()
    own = import_function(named["loss"]) if "loss" in named else None
    return checkpoint_task(
        to_base,
        given.train,
        validation=given.validation,
        unlabelled=getattr(given, "unlabelled", None),
        loss=own,
    )
