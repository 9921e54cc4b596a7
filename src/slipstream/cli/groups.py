"""`slipstream groups`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json

MODEL = "A run folder, a network of the testbed, or package.module:function."


def groups(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: options.OtherData = None,
    width: options.Width = None,
    option: options.Option = None,
    save: Annotated[Path | None, typer.Option(help="Write the groups to this file.")] = None,
    json: options.AsJson = False,
) -> None:
    """List the neurons of a model that may change places, and what is pinned, and why.

    Example: slipstream groups resnet18 --width 0.5 --data cifar10:data --save groups.json
    """
    from slipstream.cli.opening import open_experiment
    from slipstream.evaluation import inputs_of
    from slipstream.symmetry.tracing import find_neuron_groups

    run = Path(model) if Path(model, "run.json").is_file() else None
    experiment = open_experiment(
        run, model=None if run else model, data=data, width=width, option=option
    )
    found = find_neuron_groups(experiment.model, inputs_of(next(iter(experiment.train))))
    if save is not None:
        found.save(save)
    if json:
        write_json({"coverage": found.coverage(), **asdict(found)})
    else:
        typer.echo(str(found))
