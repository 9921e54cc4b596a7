"""`slipstream port`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json
from slipstream.cli.progress import steps_bar

if TYPE_CHECKING:
    from slipstream.evaluation import Task

Method = Literal[
    "auto", "identity", "weights", "activations", "procrustes", "fgmt",
    "sign-mask", "weights-mask", "activations-mask", "procrustes-mask", "fgmt-mask",
    "identity-signed", "weights-signed", "activations-signed", "fgmt-signed",
]  # fmt: skip
FROM_BASE = "What the fine-tune started from: a Hugging Face folder, or a file of weights."
FINE_TUNED = "The fine-tune: the same, or a LoRA adapter in the format of PEFT."
TO_BASE = "The base that gets the fine-tune."
OUT = "What to make: a folder, or a .safetensors file if --to-base is a file."
METHOD = "How the displacement is laid over the other base; auto measures, and chooses."
DATA = (
    "Labelled batches of the task, to take gradients on (train) and to choose by (validation): "
    "package.module:function, or with --model digits, mnist:DIR or cifar10:DIR."
)
MODEL = "A network of the testbed, or package.module:function, where --to-base does not tell it."
LOSS = "package.module:function of a model and a batch; a Hugging Face model's own if not given."
EXCLUDE = "Tensors that stay as --to-base has them, such as 'head.*'."
GROUPS = "Neuron groups, as `slipstream groups --save` writes them; found if not given."


def port(
    from_base: Annotated[Path, typer.Option(help=FROM_BASE)],
    fine_tuned: Annotated[Path, typer.Option(help=FINE_TUNED)],
    to_base: Annotated[Path, typer.Option(help=TO_BASE)],
    out: Annotated[Path, typer.Option("-o", "--out", help=OUT)],
    method: Annotated[Method, typer.Option(help=METHOD)] = "auto",
    data: Annotated[str | None, typer.Option(help=DATA)] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    loss: Annotated[str | None, typer.Option(help=LOSS)] = None,
    width: options.Width = None,
    option: options.Option = None,
    stages: Annotated[int, typer.Option(help="Gradients along the way; more are better.")] = 10,
    exclude: Annotated[list[str] | None, typer.Option(help=EXCLUDE)] = None,
    groups: Annotated[Path | None, typer.Option(help=GROUPS)] = None,
    json: options.AsJson = False,
) -> None:
    """Port a fine-tune from one base model to another.

    Example: slipstream port --from-base A --fine-tuned A-chat --to-base B -o B-chat
    """
    from slipstream.porting import FineTune, PortPlan, port_checkpoint
    from slipstream.symmetry.neuron_groups import NeuronGroups

    plan = PortPlan(method, stages=stages, exclude=tuple(exclude or ()))
    with steps_bar("porting", hidden=json) as bar:
        result = port_checkpoint(
            out,
            FineTune(from_base, fine_tuned, to_base),
            _task(to_base, data, model, loss, width, option),
            plan=plan,
            groups=NeuronGroups.load(groups) if groups else None,
            progress=bar,
        )
    if json:
        write_json({**result.to_json(), "path": str(out)})
    else:
        typer.echo(f"{result}\nwritten to {out}")


def _task(
    to_base: Path,
    data: str | None,
    model: str | None,
    loss: str | None,
    width: float | None,
    option: list[str] | None,
) -> "Task | None":
    """The task that data, model and loss make; None without any."""
    from slipstream.cli.loading import open_experiment
    from slipstream.cli.task_options import import_function
    from slipstream.porting import checkpoint_task

    if model is not None:
        found = open_experiment(None, model=model, data=data, loss=loss, width=width, option=option)
        if data is None:  # the model alone, to match neurons by weights
            return replace(found, data=(), validation=None, example_input=found.example())
        return found
    if data is None:
        return None
    given = import_function(data)()
    own = import_function(loss) if loss else None
    return checkpoint_task(to_base, given.train, validation=given.validation, loss=own)
