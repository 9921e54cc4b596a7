"""`slipstream groups`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json

MODEL = (
    "A run folder, a Hugging Face folder (its weights are not read), timm:NAME, a network of the "
    "testbed, or package.module:function."
)


def groups(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: options.OtherData = None,
    width: options.Width = None,
    option: options.Option = None,
    prove: Annotated[
        bool, typer.Option(help="Evaluate the model with and without permuted neurons.")
    ] = True,
    save: Annotated[Path | None, typer.Option(help="Write the groups to this file.")] = None,
    json: options.AsJson = False,
) -> None:
    """List the neurons of a model that may change places, and what is pinned, and why.

    Example: slipstream groups resnet18 --width 0.5 --data cifar10:data --save groups.json
    """
    from slipstream.cli.loading import open_model
    from slipstream.symmetry.tracing import find_neuron_groups

    opened, example_input = open_model(model, data=data, width=width, option=option)
    found = find_neuron_groups(opened, example_input, prove=prove)
    if save is not None:
        found.save(save)
    if json:
        write_json({"proven": prove, "coverage": asdict(found.coverage()), **asdict(found)})
    else:
        typer.echo(str(found) + "\nnot proven" * (not prove))
