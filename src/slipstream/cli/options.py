"""Arguments and options that several commands have, so that they read the same everywhere."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Run = Annotated[Path, typer.Argument(help="A run folder.")]
Split = Annotated[
    Literal["train", "validation", "test"],
    typer.Option(help="Which part of the data to measure on."),
]
Step = Annotated[int | None, typer.Option(help="A step of the run.", show_default="the last")]
Batches = Annotated[int, typer.Option(min=1, help="How many batches of it, from the first.")]
BatchNormBatches = Annotated[
    int, typer.Option(min=1, help="Training batches that BatchNorm's statistics are taken on.")
]
Points = Annotated[int, typer.Option(min=2, help="Evaluations per line, both ends included.")]
Groups = Annotated[
    Path | None,
    typer.Option(
        help="Neuron groups, as `slipstream groups --out` writes them.", show_default="found"
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON, for scripts.", rich_help_panel="Output")
]

FIGURES = (".png", ".svg", ".pdf")


def new_figure(path: Path | None) -> Path | None:
    """Return the file of a figure, or refuse it before hours are spent on what it shows."""
    if path is None:
        return None
    if path.suffix.lower() not in FIGURES:
        raise typer.BadParameter(f"a figure ends in {', '.join(FIGURES)}, got {path.name!r}.")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}.")
    if path.exists():
        raise typer.BadParameter(f"{path} is already there: give another file, or remove it.")
    return path


Data = Annotated[
    str,
    typer.Option(
        help="digits, mnist:DIR, cifar10:DIR, or package.module:function that returns an object "
        "with the iterables of batches train, validation and test. +turned, +inverted or +permuted "
        "after a name changes the images: digits+turned, mnist+turned:DIR."
    ),
]
OtherData = Annotated[str | None, typer.Option(help="Other data than the run's; as of `train`.")]
Loss = Annotated[
    str | None,
    typer.Option(
        help="package.module:function of a model and a batch. Cross entropy if not given."
    ),
]
OtherModel = Annotated[
    str | None, typer.Option(help="Another model than the run's, or one without a run.")
]
Width = Annotated[
    float | None, typer.Option(help="Units of the mlp's layers; of the others, a factor.")
]
Option = Annotated[
    list[str] | None,
    typer.Option(help="Further settings of the network, such as hidden_layers=2, batchnorm=true."),
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")]


def network_options(given: list[str] | None) -> dict[str, Any]:
    """Read `name=value` pairs, the values as JSON.

    Args:
        given: What the user wrote.

    Returns:
        Name to value.

    Raises:
        ValueError: If a pair has no equals sign, or its value is no JSON.

    Example:
        >>> network_options(["hidden_layers=2", "batchnorm=true"])
        {'hidden_layers': 2, 'batchnorm': True}
    """
    pairs = {}
    for text in given or ():
        name, _, value = text.partition("=")
        try:
            pairs[name] = json.loads(value)
        except json.JSONDecodeError as error:
            message = f"--option must be name=value, such as hidden_layers=2, got {text!r}."
            raise ValueError(message) from error
    return pairs


def exactly_one(given: Mapping[str, object]) -> None:
    """Raise unless one of some options was given, and no other.

    Args:
        given: How to write each option, and its value or None.

    Raises:
        ValueError: If none or several were given.
    """
    if sum(value is not None for value in given.values()) != 1:
        raise ValueError(f"Give exactly one of {' and '.join(given)}.")
