"""The options that name a task: on the command line, in a file, or as a run remembers them."""

import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from slipstream.cli.plan_options import pairs
from slipstream.named_task import (
    PARTS,
    NamedTask,
    code_in,
    find_function,
    recorded_names,
    why_unnamed,
)
from slipstream.storage.plan_fields import argument, option

if TYPE_CHECKING:
    from slipstream.evaluation import Task

FILE = "slipstream.toml"  # in the working folder
MODEL = "mlp, tapered_mlp, conv_net, conv8, resnet18, or package.module:function, your own."
DATA = (
    "digits, mnist:DIR, cifar10:DIR, omniglot:DIR, or package.module:function that returns an "
    "object with the iterables of batches train, validation and test. +turned, +inverted or "
    "+permuted after a name changes the images: digits+turned, mnist+turned:DIR."
)
LOSS = "package.module:function that maps a model and a batch to the mean loss."
METRICS = "package.module:function of a model and a batch, or one that returns several by name."
RUNS = "the run's"
TASK = "A TOML file whose table task holds model, data, loss and so on."


@dataclass(frozen=True)
class TaskOptions:
    """What names a task, and where it is computed."""

    help_panel: ClassVar[str] = "Model and data"

    model: str | None = option(None, MODEL, shown=RUNS)
    data: str | None = option(None, DATA, shown=RUNS)
    loss: str | None = option(None, LOSS, shown="cross entropy")
    metrics: str | None = option(None, METRICS, shown="accuracy, of a classification")
    width: float | None = option(None, "Units of the mlp's layers; of other networks, a factor.")
    task: Path | None = option(None, TASK, shown=f"{FILE}, if it is here")
    device: str = option("cpu", "Where to compute: cpu or cuda.")
    option: tuple[str, ...] = option(
        (), "Another setting of the network, such as hidden_layers=2 or batchnorm=true."
    )

    def given(self) -> dict[str, Any]:
        """Return what the command line names."""
        names = {name: getattr(self, name) for name in (*PARTS, "width")}
        names["options"] = pairs(self.option, "--option") or None
        return {name: value for name, value in names.items() if value is not None}

    def all_given(self) -> dict[str, Any]:
        """Return what the command line and the file name."""
        return {**read_task_file(self.task), **self.given()}

    def named(self, run: Path | None = None, *, parts: Sequence[str] = PARTS) -> NamedTask:
        """Return all names: of the command line, of the file, of the run, the former first.

        Args:
            run: A run folder, if there is one.
            parts: Those that are needed; what the run says of others is left out.

        Returns:
            The names; nothing is imported yet.

        Raises:
            ValueError: If something is missing, or is code that only the run names.
        """
        layers = [read_task_file(self.task), self.given()]
        own = {name for layer in layers for name in layer}
        if run is None:
            if "model" not in own:
                raise ValueError("Give a run folder, or name a model with --model.")
            return NamedTask.of_layers(*layers)
        recorded = _recorded(run, parts)
        if recorded is None and (lacking := {"model", "data"} - own):
            flags = " and ".join(f"--{part}" for part in PARTS if part in lacking)
            verb = "is" if len(lacking) == 1 else "are"
            raise ValueError(
                f"{flags} {verb} missing. {why_unnamed(_configuration(run))}, so it does not say "
                f"how to build its model and its data: name them here or in {FILE}, as "
                "package.module:function."
            )
        if code := code_in(recorded or {}, without=own):
            names = " and ".join(f"its {part} as {name}" for part, name in code.items())
            flags = " ".join(f"--{part} {name}" for part, name in code.items())
            raise ValueError(
                f"The run names {names}, which is code, and code runs only if you name it "
                f"yourself: give {flags}, or put it into {FILE}."
            )
        if recorded and "model" not in own and {"width", "options"} & own:
            raise ValueError("--width and --option go with --model: the run's model has its own.")
        return NamedTask.of_layers(recorded or {}, *layers)

    def open(
        self,
        run: Path | None = None,
        *,
        seed: int | None = None,
        parts: Sequence[str] = PARTS,
    ) -> "Task":
        """Build what `named` names.

        Args:
            run: A run folder, if there is one.
            seed: Seed of the initial weights, if another than the task's.
            parts: As of `named`.

        Returns:
            The task.
        """
        return build(self.named(run, parts=parts), seed=seed, device=self.device)


@dataclass(frozen=True)
class NewTaskOptions(TaskOptions):
    """What names the task of a new run."""

    model: str | None = option(None, MODEL, shown="mlp")
    data: str | None = option(None, DATA, shown="digits")
    network: str | None = argument(None, "The same as --model.")
    examples: int | None = option(None, "Train on the first ones only.", shown="all")
    batch_size: int | None = option(None, "Examples in a batch.", shown="128")
    seed: int | None = option(None, "Seed of weights, batches and all else.", shown="0")

    def given(self) -> dict[str, Any]:
        """Return what the command line names."""
        if self.network is not None and self.model not in (None, self.network):
            raise ValueError(f"Give {self.network} or --model {self.model}, not both.")
        names = {name: getattr(self, name) for name in ("examples", "batch_size", "seed")}
        names["model"] = self.network
        return super().given() | {name: value for name, value in names.items() if value is not None}

    def new(self, **usual: Any) -> NamedTask:
        """Return all names: of the command line, of the file, or the usual ones.

        Args:
            usual: Those of the command.
        """
        return NamedTask.of_layers(usual, read_task_file(self.task), self.given())


def build(named: NamedTask, *, seed: int | None = None, device: str = "cpu") -> "Task":
    """Build a task; code of the user's own is looked for in the working folder too."""
    if code_in({part: getattr(named, part) for part in PARTS}):
        look_in_working_folder()
    return named.build(seed=seed, device=device)


def import_function(name: str) -> Any:
    """Import what the user named on the command line, from the working folder too."""
    look_in_working_folder()
    return find_function(name)


def look_in_working_folder() -> None:
    """Let the user's own modules be imported: only once they have named one."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def read_task_file(path: Path | None = None) -> dict[str, Any]:
    """Return the table `[task]` of a file: of `slipstream.toml` here, if it is there.

    Args:
        path: Another file.

    Returns:
        Fields of a `NamedTask`.

    Raises:
        ValueError: If the file is not TOML, or holds no task or an unknown setting.
    """
    file = path or Path(FILE)
    if path is None and not file.is_file():
        return {}
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("task")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a TOML file: {error}.") from error
    if table is None and path is None:
        return {}
    if not isinstance(table, Mapping):
        raise ValueError(f"{file} has no table [task], which names model, data, loss and so on.")
    known = [own.name for own in fields(NamedTask) if own.name != "few_shot"]
    if unknown := [name for name in table if name not in known]:
        raise ValueError(
            f"{file}: [task] has no setting {unknown[0]!r}; it has {', '.join(known)}."
        )
    return dict(table)


def _recorded(run: Path, parts: Sequence[str]) -> dict[str, Any] | None:
    recorded = recorded_names(_configuration(run))
    if recorded is None:
        return None
    found = {n: v for n, v in recorded.items() if n not in PARTS or n in parts}
    try:
        NamedTask.of_layers(found)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{run} holds an unknown setup: {error}") from error
    return found


def _configuration(run: Path) -> Mapping[str, Any]:
    from slipstream.trajectory.run_files import read_run

    found = read_run(run).description.get("configuration")
    return found if isinstance(found, Mapping) else {}
