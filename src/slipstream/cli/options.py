"""Arguments and options that several commands have, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated, Literal

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
