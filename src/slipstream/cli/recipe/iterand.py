"""`slipstream recipe iterand`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import in_words, write_json, write_table
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import MODEL

PRUNED = "Share of the weights that fall, from 0 to below 1."
PRUNED_IN = "Another share for some weights, as PATTERN=SHARE, such as 'head.*=0.2'."
SELECTION = "A threshold for each layer, or one for all."
RANKING = "Rank scores as they are, or by their size."
INITIAL = "From where weights are drawn."
REDRAWN = "Share of the fallen weights drawn anew each time; 0 is edge-popup."
EVERY = "Steps from one time to the next. 117 times in all if not given."
EXCLUDE = "Leave these tensors alone: a pattern, such as 'head.*'."
LR = "Learning rate of the scores, before it falls to 0."


def iterand(
    network: Annotated[str, typer.Argument(help=MODEL)] = "mlp",
    data: options.Data = "digits",
    loss: options.Loss = None,
    out: Annotated[Path, typer.Option(help="The run folder to make.")] = Path("ticket"),
    width: options.Width = None,
    option: options.Option = None,
    examples: Annotated[int | None, typer.Option(help="Train on the first ones only.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples in a batch.")] = 128,
    pruned: Annotated[float, typer.Option(help=PRUNED)] = 0.5,
    pruned_in: Annotated[list[str] | None, typer.Option(help=PRUNED_IN)] = None,
    selection: Annotated[Literal["layer", "global"], typer.Option(help=SELECTION)] = "layer",
    ranking: Annotated[Literal["raw", "absolute"], typer.Option(help=RANKING)] = "raw",
    initial: Annotated[
        Literal["kaiming-uniform", "signed-constant", "kaiming-normal"], typer.Option(help=INITIAL)
    ] = "kaiming-uniform",
    redrawn: Annotated[float, typer.Option(help=REDRAWN)] = 0.1,
    every: Annotated[int | None, typer.Option(help=EVERY)] = None,
    biases: Annotated[Literal["zero", "frozen"], typer.Option(help="What is not masked.")] = "zero",
    exclude: Annotated[list[str] | None, typer.Option(help=EXCLUDE)] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 100,
    lr: Annotated[float, typer.Option(help=LR)] = 1.0,
    momentum: Annotated[float, typer.Option(help="Momentum.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of the scores.")] = 1e-4,
    seed: Annotated[int, typer.Option(help="Of weights, scores and batches.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the run in --out.")] = False,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Train by choosing which random weights stay: IteRand, or edge-popup with --redrawn 0.

    Example: slipstream recipe iterand mlp --width 64 --pruned 0.5 --out ticket
    """
    from slipstream.cli.task_options import build
    from slipstream.evaluation import Split
    from slipstream.named_task import NamedTask
    from slipstream.recipes import IterandPlan, ticket_size, train_iterand
    from slipstream.storage.new_run import NewRun
    from slipstream.training import TrainingPlan

    further = options.network_options(option)
    setup = NamedTask(network, data, loss, width, further, examples, batch_size, seed)
    descent = TrainingPlan.cosine(epochs, "sgd", lr, momentum, weight_decay, seed=seed)
    plan = IterandPlan(
        pruned, shares(pruned_in), selection, ranking, initial, redrawn, every, biases,
        tuple(exclude or ()), seed, descent,
    )  # fmt: skip
    task = build(setup, device=device)
    with steps_bar("training", hidden=json) as bar:
        new = NewRun(out, overwrite=overwrite, resume=resume)
        found = train_iterand(task, plan=plan, run_folder=new, progress=bar)
    ticket, size = found.ticket, ticket_size(found.ticket)
    parts: tuple[Split, ...] = ("validation", "test")
    measured = {part: task.evaluate(weights=ticket.weights, split=part) for part in parts}
    if json:
        cost = {"steps": found.steps, "rounds": found.rounds, "seconds": found.seconds}
        course = {"losses": found.losses, "churn": found.churn}
        end = {"pruned": ticket.pruned, "bytes": asdict(size)}
        write_json({"path": str(out), **cost, **course, **end, **measured})
        return
    typer.echo(f"{found.steps} steps in {found.seconds:.1f} s; recorded in {out}")
    times = f"{found.rounds} times" if found.rounds else "never: this is edge-popup"
    typer.echo(f"pruned weights were re-initialised {times}")
    first, last = found.churn[0], found.churn[-1]
    typer.echo(f"masks that changed: {first:.1%} in the first epoch, {last:.1%} in the last")
    typer.echo(f"as a seed and a bit mask: {size.file} bytes, as weights {size.weights}")
    for part, metrics in measured.items():
        typer.echo(f"{part}: {in_words(metrics)}")
    rows = [[n, str(m.numel()), f"{ticket.pruned[n]:.1%}"] for n, m in ticket.masks.items()]
    write_table(["weight", "size", "pruned"], rows)


def shares(given: list[str] | None) -> dict[str, float]:
    """Read `PATTERN=SHARE` pairs.

    Args:
        given: What the user wrote.

    Returns:
        Pattern to share.

    Raises:
        ValueError: If a pair has no equals sign, or its share is no number.

    Example:
        >>> shares(["head.*=0.2"])
        {'head.*': 0.2}
    """
    found = {}
    for text in given or ():
        pattern, _, share = text.rpartition("=")
        try:
            found[pattern] = float(share)
        except ValueError as error:
            message = f"--pruned-in must be PATTERN=SHARE, such as 'head.*=0.2', got {text!r}."
            raise ValueError(message) from error
    return found
