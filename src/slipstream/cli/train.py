"""`slipstream train`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import in_words, write_json

MODEL = "mlp, conv_net, conv8, resnet18, or package.module:function that returns a module."
KEEP = "Snapshots besides each epoch's end: epochs (none), every:N steps, or log."


def train(
    network: Annotated[str, typer.Argument(help=MODEL)] = "mlp",
    model: Annotated[str | None, typer.Option(help="The same as NETWORK.")] = None,
    data: options.Data = "digits",
    loss: options.Loss = None,
    out: Annotated[Path, typer.Option(help="The run folder to make.")] = Path("run"),
    width: options.Width = None,
    option: options.Option = None,
    examples: Annotated[int | None, typer.Option(help="Train on the first ones only.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples in a batch.")] = 128,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 20,
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], typer.Option()] = "sgd",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.05,
    momentum: Annotated[float, typer.Option(help="Momentum of sgd.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0,
    schedule: Annotated[
        Literal["constant", "cosine"], typer.Option(help="Of the lr.")
    ] = "constant",
    warm_up: Annotated[
        float, typer.Option(help="Share of the epochs over which the rate rises.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of initial weights and batches.")] = 0,
    keep: Annotated[str, typer.Option(help=KEEP)] = "epochs",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted one.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the run in --out.")] = False,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Train a network and record the run, with its validation metrics at every epoch.

    Example: slipstream train mlp --width 1024 --data mnist:data --epochs 3 --lr 0.02 --out run
    """
    from slipstream.cli.progress import steps_bar
    from slipstream.cli.task_options import look_in_working_folder
    from slipstream.named_task import NamedTask, code_in
    from slipstream.storage.new_run import NewRun
    from slipstream.training import TrainingPlan, record_training

    further = options.network_options(option)
    setup = NamedTask(model or network, data, loss, width, further, examples, batch_size, seed)
    if code_in(setup.to_json()):
        look_in_working_folder()
    plan = TrainingPlan(epochs, optimizer, lr, momentum, weight_decay, schedule, warm_up, seed)
    with steps_bar("training", hidden=json) as bar:
        result = record_training(
            setup.build(device=device),
            plan,
            run_folder=NewRun(out, overwrite=overwrite, resume=resume),
            keep=keep,
            progress=bar,
        )
    if json:
        write_json(asdict(result))
    else:
        typer.echo(f"{result.steps} steps in {result.seconds:.1f} s, recorded in {result.path}")
        typer.echo(f"validation: {in_words(result.validation)}")
        typer.echo(f"test: {in_words(result.test)}")
