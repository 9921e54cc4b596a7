"""Options of recipes: how is trained, and where the run goes."""

from pathlib import Path
from typing import Annotated, Literal

import typer

WARM_UP = "Share of the epochs over which the rate rises."
START = "A run folder whose last snapshot is where it starts; a transferred run will do."

Optimizer = Annotated[Literal["sgd", "adamw"], typer.Option()]
Rate = Annotated[float, typer.Option(help="Learning rate, before it falls to 0.")]
Momentum = Annotated[float, typer.Option(help="Momentum of sgd.")]
Decay = Annotated[float, typer.Option(help="Weight decay.")]
WarmUp = Annotated[float, typer.Option(help=WARM_UP)]
BatchSize = Annotated[int, typer.Option(help="Examples in a batch.")]
Start = Annotated[Path | None, typer.Option(help=START)]
Out = Annotated[Path, typer.Option(help="The run folder to make.")]
Controls = Annotated[bool, typer.Option(help="Measure the simple ways beside it.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")]
Overwrite = Annotated[bool, typer.Option(help="Replace the run in --out.")]
