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
ROTATIONS = "Prove also which of them may be rotated: written in any other orthogonal basis."
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
    rotations: Annotated[bool, typer.Option("--rotations", help=ROTATIONS)] = False,
    json: options.AsJson = False,
) -> None:
    """List the groups of neurons that can be permuted, and what is pinned, and why.

    Example: slipstream groups resnet18 --width 0.5 --data cifar10:data --out groups.json
    """
    from slipstream.cli.loading import open_model
    from slipstream.symmetry.rotation_proof import find_rotatable_groups
    from slipstream.symmetry.tracing import find_neuron_groups

    opened, example_input = open_model(name, task)
    found = find_neuron_groups(opened, example_input, prove=prove)
    turned = find_rotatable_groups(opened, example_input, groups=found) if rotations else None
    if files.out is not None:
        found.save(files.out)
    if json:
        more = {"rotations": turned.to_json()} if turned else {}
        write_json({"proven": prove, "coverage": asdict(found.coverage()), **asdict(found), **more})
    else:
        typer.echo(str(found) + "\nnot proven" * (not prove) + (f"\n{turned}" if turned else ""))
