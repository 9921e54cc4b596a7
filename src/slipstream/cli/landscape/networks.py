"""From paths that a user types to named weights of one model, with data to measure them on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from slipstream.cli.average import BATCHES
from slipstream.cli.output import json_text

if TYPE_CHECKING:
    from slipstream.evaluation import Batch, Task
    from slipstream.report.static import Figure
    from slipstream.weights import Weights

PLACES = "Run folders (the last snapshot, or RUN@STEP) and .safetensors files; NAME=PATH names one."
FIGURES = (".png", ".svg", ".pdf")

Split = Annotated[Literal["test", "validation", "train"], typer.Option(help="What to measure on.")]
Points = Annotated[int, typer.Option(min=2, help="Evaluations of a line, both ends included.")]
Outputs = Annotated[
    list[Path] | None,
    typer.Option(
        "-o", "--out", help="A figure (.png, .svg, .pdf) or the data (.json); may be given twice."
    ),
]
Metric = Annotated[str, typer.Option(help="What the figure shows.")]
Resume = Annotated[
    Path | None, typer.Option(help="Keep computed points here, and go on from them.")
]
BatchNormBatches = Annotated[int, typer.Option(min=1, help=BATCHES)]


@dataclass(frozen=True)
class Networks:
    """Weights of one model, and how they are measured."""

    experiment: "Task"
    weights: "dict[str, Weights]"
    data: "Iterable[Batch]"
    calibration: "list[Batch]"

    @property
    def task(self) -> "Task":
        """What is measured, on which data."""
        return replace(self.experiment, data=self.data, calibration=self.calibration)


def open_networks(
    places: Sequence[str],
    *,
    split: str,
    batches: int,
    model: str | None,
    data: str | None,
    loss: str | None,
    width: float | None,
    option: list[str] | None,
    device: str,
) -> Networks:
    """Read weights, build their model and load its data.

    Args:
        places: What the user typed: `PATH`, `RUN@STEP`, each perhaps with `NAME=` before it.
        split: Which part of the data to measure on.
        batches: How many batches of the training part BatchNorm's statistics are estimated on.
        model: As of `open_experiment`, and so are the others; needed if no place is a run.
        data: Other data than the run's.
        loss: Another loss.
        width: Of the testbed's network.
        option: Further settings of it.
        device: Where the model goes.

    Returns:
        The weights by name, in order.

    Raises:
        ValueError: If two have the same name, a path does not exist, or something does not fit.
    """
    from slipstream.cli.loading import open_experiment, open_weights

    found = [_Place.of(text) for text in places]
    run = next((place.path for place in found if place.path.is_dir()), None)
    experiment = open_experiment(
        run, model=model, data=data, loss=loss, width=width, option=option, device=device
    )
    weights: dict[str, Weights] = {}
    for place in found:
        if place.name in weights:
            raise ValueError(
                f"Two networks are called {place.name}: write NAME={place.path} to name one."
            )
        run, file = (place.path, None) if place.path.is_dir() else (None, place.path)
        weights[place.name] = open_weights(experiment.model, run=run, step=place.step, file=file)
    calibration = list(islice(experiment.data, batches))
    return Networks(experiment, weights, experiment.part(split), calibration)


@dataclass(frozen=True)
class _Place:
    """Where weights are: a file, or a step of a run."""

    name: str
    path: Path
    step: int | None = None

    @classmethod
    def of(cls, text: str) -> "_Place":
        name, given, rest = "", "", text
        if not Path(text).exists() and "=" in text:
            name, given, rest = text.partition("=")
        path, at, step = rest.rpartition("@")
        if Path(rest).exists() or not at:
            path, step = rest, ""
        if not Path(path).exists():
            raise ValueError(f"There is no run folder or file {path!r}.")
        if step and not (step.isdigit() and Path(path).is_dir()):
            raise ValueError(f"{text!r} must be RUN@STEP, a run folder and a step of it.")
        own = Path(path).stem if Path(path).is_file() else Path(path).resolve().name
        named = name if given else own + (f"@{step}" if step else "")
        return cls(named, Path(path), int(step) if step else None)


def check_outputs(out: Sequence[Path] | None) -> list[Path]:
    """Return the files to write, or raise if one has an ending that is none of those known."""
    for file in out or ():
        if file.suffix not in (*FIGURES, ".json"):
            known = ", ".join((*FIGURES, ".json"))
            raise ValueError(f"--out must end in one of {known}, got {str(file)!r}.")
        if not file.parent.is_dir():
            raise ValueError(f"--out {file}: there is no folder {file.parent}.")
        if file.exists():
            raise FileExistsError(f"{file} is already there: give another file, or remove it.")
    return list(out or ())


def write_outputs(out: Sequence[Path], *, data: dict[str, Any], figure: "Figure") -> None:
    """Write the data and the figure, each to the files with its ending."""
    from slipstream.storage.writing import write_whole

    for file in out:
        if file.suffix == ".json":
            write_whole(file, [f"{json_text(data)}\n".encode()])
        else:
            figure.savefig(file, dpi=150)
