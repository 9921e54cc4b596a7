"""From paths that a user types to named weights of one model, with data to measure them on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from slipstream.cli.output import OutputFiles, write_json
from slipstream.cli.task_options import TaskOptions
from slipstream.storage.plan_fields import option

if TYPE_CHECKING:
    from slipstream.evaluation import Task
    from slipstream.landscape import Barrier
    from slipstream.weights import Weights

PATHS = "Run folders (the last snapshot, or RUN@STEP) and .safetensors files; NAME=PATH names one."
ONE = "A run folder, RUN@STEP or a .safetensors file."
UNFINISHED = ".unfinished"  # ends the name of what is kept of an interrupted measurement


@dataclass(frozen=True)
class MeasureOptions(OutputFiles):
    """What is measured, and where it goes."""

    help_panel: ClassVar[str] = "Measuring and output"

    out: Path | None = option(None, "Write the values to this .json file.", flags=("-o",))
    metric: str = option("loss", "The metric that --figure shows.")
    split: Literal["train", "validation", "test"] = option("test", "Which data to measure on.")
    batchnorm_batches: int = option(
        100, "Training batches that BatchNorm's statistics are taken on.", minimum=1
    )
    resume: bool = option(False, "Continue an interrupted measurement, kept beside --out.")
    kept: Path | None = option(None, "Where 0.1 kept points: --resume FILE.", hidden=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and self.out.suffix.lower() != ".json":
            raise ValueError(f"--out must end in .json, got {self.out.name}.")
        if self.resume and self.unfinished is None:
            raise ValueError("--resume needs --out or --figure: computed points are kept beside.")

    @property
    def unfinished(self) -> Path | None:
        """Where computed points are kept until all are there."""
        if self.kept is not None:
            return self.kept
        file = self.out or self.figure
        return None if file is None else file.with_name(file.name + UNFINISHED)

    def begin(self) -> Path | None:
        """Return where computed points are kept, or None; those of before go if not resumed."""
        if self.unfinished is not None and self.kept is None and not self.resume:
            _remove(self.unfinished)
        return self.unfinished

    def finish(self, values: Any, figure: Callable[[], Any], *, json: bool) -> bool:
        """Write values and figure; return whether a table is still to be printed."""
        named = {"split": self.split, **values} if isinstance(values, dict) else values
        self.write_data(named)
        self.draw(figure)
        if self.unfinished is not None and self.kept is None:
            _remove(self.unfinished)
        if json:
            write_json(named)
        return not json


@dataclass(frozen=True)
class Networks:
    """Weights of one model, and how they are measured."""

    task: "Task"  # its data is what is measured on
    weights: "dict[str, Weights]"
    training: "Task" = field(repr=False)  # the same, on the training data


def open_networks(paths: Sequence[str], task: TaskOptions, files: MeasureOptions) -> Networks:
    """Read weights, build their model and load its data.

    Args:
        paths: What the user typed: `PATH`, `RUN@STEP`, each perhaps with `NAME=` before it.
        task: What is named besides; a model is needed if no path is a run.
        files: Which data to measure on.

    Returns:
        The weights by name, in order.

    Raises:
        ValueError: If two have the same name, a path does not exist, or something does not fit.
    """
    from slipstream.cli.loading import open_weights

    found = [_Source.of(text) for text in paths]
    run = next((source.path for source in found if source.path.is_dir()), None)
    opened = task.open(run)
    weights: dict[str, Weights] = {}
    for source in found:
        if source.name in weights:
            raise ValueError(
                f"Two networks are called {source.name}: write NAME={source.path} to name one."
            )
        run, file = (source.path, None) if source.path.is_dir() else (None, source.path)
        weights[source.name] = open_weights(opened.model, run=run, step=source.step, file=file)
    opened = replace(opened, calibration=list(islice(opened.data, files.batchnorm_batches)))
    return Networks(opened.on(files.split), weights, opened)


def barrier_rows(found: "dict[str, Barrier]") -> list[list[str]]:
    """Return the table of some barriers: how far each metric rises and drops."""
    return [
        [name, kind, *(f"{getattr(value, kind)(m):.4g}" for m in value.line.values)]
        for name, value in found.items()
        for kind in ("rise", "drop")
    ]


@dataclass(frozen=True)
class _Source:
    """Where weights are: a file, or a step of a run."""

    name: str
    path: Path
    step: int | None = None

    @classmethod
    def of(cls, text: str) -> "_Source":
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


def _remove(unfinished: Path) -> None:
    if unfinished.is_dir():
        for file in unfinished.iterdir():
            file.unlink()
        unfinished.rmdir()
    else:
        unfinished.unlink(missing_ok=True)
