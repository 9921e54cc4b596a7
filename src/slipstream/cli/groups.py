"""`slipstream groups`."""

from dataclasses import asdict
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.command import old_flags
from slipstream.cli.output import OutputFiles, write_json
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.task_options import TaskOptions

MODEL = (
    "A run folder, a Hugging Face folder (its weights are not read), timm:NAME, mlp, conv_net, "
    "conv8, resnet18, or package.module:function."
)
PROVE = "Prove them: compare the model's outputs with and without permuted neurons."
FILES = Adjusted(skip=("figure",), help={"out": "Write the groups to this file."})
TASK = Adjusted(
    skip=("loss", "metrics", "device"),
    help={"model": "With a run: its model, where the run names code."},
)


@old_flags({"--save": "--out"})
def groups(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)],
    task: Annotated[TaskOptions, TASK],
    files: Annotated[OutputFiles, FILES],
    prove: Annotated[bool, typer.Option(help=PROVE)] = True,
    json: options.AsJson = False,
) -> None:
    """List the groups of neurons that can be permuted, and what is pinned, and why.

    Example: slipstream groups resnet18 --width 0.5 --data cifar10:data --out groups.json
    """
    from slipstream.cli.loading import open_model
    from slipstream.symmetry.tracing import find_neuron_groups

    opened, example_input = open_model(name, task)
    found = find_neuron_groups(opened, example_input, prove=prove)
    if files.out is not None:
        found.save(files.out)
    if json:
        write_json({"proven": prove, "coverage": asdict(found.coverage()), **asdict(found)})
    else:
        typer.echo(str(found) + "\nnot proven" * (not prove))
