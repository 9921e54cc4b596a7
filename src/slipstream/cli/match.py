"""`slipstream match`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.groups import MODEL
from slipstream.cli.output import write_json

WEIGHTS = "A .safetensors file, or a run folder: its last snapshot."
START = "Where the search starts; frank-wolfe: at the rounded solution of the relaxed problem."
METHOD = "What is laid over each other: the weights, or what neurons compute on the data."


def match(
    source: Annotated[Path, typer.Argument(help=f"What is permuted. {WEIGHTS}")],
    target: Annotated[Path, typer.Argument(help=f"What stays. {WEIGHTS}")],
    out: Annotated[Path, typer.Option(help="Write the permuted source to this file.")],
    model: Annotated[str, typer.Option(help=MODEL)],
    method: Annotated[Literal["weights", "activations"], typer.Option(help=METHOD)] = "weights",
    batches: Annotated[int, typer.Option(min=1, help="Of the data, for activations.")] = 8,
    start: Annotated[Literal["identity", "frank-wolfe"], typer.Option(help=START)] = "identity",
    restarts: Annotated[int, typer.Option(min=0, help="With groups in another order.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the restarts.")] = 0,
    permutation: Annotated[Path | None, typer.Option(help="Write the permutation here.")] = None,
    data: options.OtherData = None,
    width: options.Width = None,
    option: options.Option = None,
    json: options.AsJson = False,
) -> None:
    """Permute one set of weights so that it lies over another; its function stays the same.

    Example: slipstream match a.safetensors b.safetensors --model mlp --out a_over_b.safetensors
    """
    from slipstream.cli.matching import match_files, summary

    found = match_files(
        source,
        target,
        out=out,
        permutation=permutation,
        experiment={"model": model, "data": data, "width": width, "option": option},
        batches=batches if method == "activations" else None,
        start=start,
        restarts=restarts,
        seed=seed,
    )
    if json:
        write_json(summary(found))
    else:
        typer.echo("\n".join(f"{name}: {value}" for name, value in summary(found).items()))
