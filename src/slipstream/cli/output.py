"""What commands write: files that are checked first, lines for people, JSON for machines."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from rich.console import Console
from rich.table import Table

from slipstream.storage.plan_fields import option

if TYPE_CHECKING:
    from slipstream.storage.new_run import NewRun
    from slipstream.weights import Weights

FIGURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class OutputFiles:
    """The files that a command writes besides what it prints: refused before it computes."""

    help_panel: ClassVar[str] = "Output"

    out: Path | None = option(None, "The file to write.", flags=("-o",))
    figure: Path | None = option(None, "Draw it: PNG, SVG or PDF by the ending.")
    overwrite: bool = option(False, "Replace files that are already there.")

    def __post_init__(self) -> None:
        if self.figure is not None and self.figure.suffix.lower() not in FIGURES:
            raise ValueError(f"--figure must end in {', '.join(FIGURES)}, got {self.figure.name}.")
        self.check(self.out, "--out")
        self.check(self.figure, "--figure")

    def require(self, what: str) -> None:
        """Raise if `--out` was not given."""
        if self.out is None:
            raise ValueError(f"--out is missing: say {what}.")

    def check(self, file: Path | None, flag: str) -> None:
        """Raise if a file cannot be written, or is there and may not be replaced."""
        if file is None:
            return
        if not file.parent.is_dir():
            raise ValueError(f"{flag} {file}: there is no folder {file.parent}.")
        if file.is_dir():
            raise ValueError(f"{flag} {file} is a folder: give a file.")
        if file.exists() and not self.overwrite:
            raise FileExistsError(f"{flag} {file} is already there: replace it with --overwrite.")
        if not os.access(file.parent, os.W_OK):
            raise PermissionError(f"{flag} {file}: you may not write into {file.parent}.")

    def write_weights(self, weights: "Weights") -> None:
        """Write weights to `out`, if it was given."""
        if self.out is not None:
            write_weights(self.out, weights)

    def write_data(self, value: Any) -> None:
        """Write plain data to `out`, if it was given."""
        if self.out is not None:
            write_text(self.out, f"{json_text(value)}\n")

    def draw(self, figure: Callable[[], Any]) -> None:
        """Draw a figure of matplotlib to `figure`, if it was given."""
        if self.figure is None:
            return
        from slipstream.report.static import save_figure

        save_figure(figure, self.figure, overwrite=self.overwrite)


@dataclass(frozen=True)
class OutputRun:
    """The run folder that a command makes."""

    help_panel: ClassVar[str] = "Output"

    out: Path | None = option(None, "The run folder to make.", flags=("-o",))
    resume: bool = option(False, "Continue after an interruption.")
    overwrite: bool = option(False, "Replace the run in --out.")

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise ValueError("--resume continues what --overwrite would delete: give one of them.")

    def new_run(self, folder: Path, **configuration: Any) -> "NewRun":
        """Return where to record, with what is to be kept in `run.json`."""
        from slipstream.storage.new_run import NewRun

        return NewRun(folder, configuration, overwrite=self.overwrite, resume=self.resume)


def write_weights(file: Path, weights: "Weights") -> None:
    """Write a safetensors file: whole, or not at all."""
    from slipstream.storage.tensor_file import tensor_chunks
    from slipstream.storage.writing import write_whole

    write_whole(file, tensor_chunks({name: value.cpu() for name, value in weights.items()}))


def write_text(file: Path, text: str) -> None:
    """Write a text file: whole, or not at all."""
    from slipstream.storage.writing import write_whole

    write_whole(file, [text.encode()])


def complain(message: str) -> None:
    """Write one line, in red, to the standard error."""
    typer.secho(" ".join(message.split()), fg="red", err=True)


def write_json(value: Any) -> None:
    """Write JSON, as of `json_text`."""
    typer.echo(json_text(value))


def json_text(value: Any) -> str:
    """Return JSON; what is not a finite number becomes null, as JSON has none of these."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Write a table, all to the right."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def in_words(metrics: Mapping[str, float]) -> str:
    """Return metrics in a line.

    Example:
        >>> in_words({"loss": 0.25, "accuracy": 0.9})
        'loss 0.2500, accuracy 0.9000'
    """
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
