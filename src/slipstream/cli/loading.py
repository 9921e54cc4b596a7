"""From what a user types to a model with its data: of a run, or of the testbed, or their own."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from slipstream.cli.task_options import TaskOptions, build, read_task_file
from slipstream.evaluation import Task
from slipstream.named_task import NamedTask
from slipstream.pretrained import example_input_for, model_from_config, timm_model
from slipstream.storage.reading import parsing
from slipstream.storage.tensor_file import map_tensors
from slipstream.trajectory import Snapshot, Trajectory
from slipstream.weights import check_same_layout, weights_of

if TYPE_CHECKING:
    from slipstream.report.sections import Landscapes
    from slipstream.transfer import Comparison


def landscapes_of(task: TaskOptions, seconds: float) -> "Landscapes":
    """Return how the loss around runs is measured, with the models and data that are named.

    Args:
        task: What the user names besides the run.
        seconds: How long a line or a plane may take, about.

    Returns:
        What opens the task of a run when it is asked for.
    """
    from slipstream.report.sections import Landscapes

    return Landscapes(lambda run: task.open(run.path), seconds)


def open_comparison(file: Path) -> "Comparison":
    """Read a comparison of transfer methods that was written as JSON.

    Args:
        file: What `slipstream demo --json` printed.

    Returns:
        The comparison.

    Raises:
        ValueError: If the file holds no comparison.
    """
    from slipstream.transfer import Comparison, Outcome

    with parsing(file, "comparison as `slipstream demo --json` prints it"):
        outcomes = json.loads(file.read_text(encoding="utf-8"))["outcomes"]
        return Comparison(tuple(Outcome(**{**o, "along": tuple(o["along"])}) for o in outcomes))


def open_model(name: str, task: TaskOptions) -> tuple[nn.Module, Any]:
    """Build the model that a user names, with an input that it accepts.

    Args:
        name: A run folder, a Hugging Face folder, `timm:NAME`, a network of the testbed, or
            `package.module:function`.
        task: What else is named: of a run, the model too; the data to take the input from.

    Returns:
        The model, on the meta device if it is of a Hugging Face folder, and the input.

    Raises:
        ValueError: If there is no such model, or something does not fit.
    """
    if has_no_data(name):
        if task.data or task.width or task.option:
            raise ValueError(f"--data, --width and --option are not for {name}.")
        timm = name.startswith("timm:")
        model = timm_model(name.removeprefix("timm:")) if timm else model_from_config(name)
        return model, example_input_for(model)
    opened = open_named(name, task)
    if task.data is None and hasattr(opened.model, "main_input_name"):  # of transformers
        return opened.model, example_input_for(opened.model)
    return opened.model, opened.example()


def open_named(name: str, task: TaskOptions) -> Task:
    """Build the task of a run folder, or of a model by its name; its loss does not matter."""
    if Path(name, "run.json").is_file():
        return task.open(Path(name), parts=("model", "data"))
    return build(NamedTask.of_layers(read_task_file(task.task), {**task.given(), "model": name}))


def has_no_data(name: str) -> bool:
    """Return whether a model is of a Hugging Face folder or of timm: with weights alone."""
    return name.startswith("timm:") or (
        Path(name, "config.json").is_file() and not Path(name, "run.json").is_file()
    )


def open_weights(
    model: nn.Module, *, run: Path | None, step: int | None, file: Path | None
) -> dict[str, Tensor]:
    """Read a file of weights, or a snapshot of a run, and check that it is the model's.

    Args:
        model: What the weights are for.
        run: A run folder.
        step: Step of the snapshot; by default the last.
        file: A safetensors file, instead of a snapshot.

    Returns:
        Weights for every tensor of the model.

    Raises:
        ValueError: If there is nothing to read, the step was not kept, or a tensor is missing.
    """
    if file is not None:
        return open_file(model, file)
    if run is None:
        raise ValueError("Give a run folder, or a file with --weights.")
    snapshot = _snapshot(run, step)
    return _complete(model, snapshot.weights, f"step {snapshot.step} of {run}")


def open_either(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of weights, or the last snapshot of a run folder."""
    is_run = path.is_dir()
    return open_weights(
        model, run=path if is_run else None, step=None, file=None if is_run else path
    )


def open_file(model: nn.Module, file: Path) -> dict[str, Tensor]:
    """Read a safetensors file of weights, and check that no tensor of the model is missing."""
    return _complete(model, _read(file), str(file))


def _complete(model: nn.Module, weights: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    if missing := [name for name in weights_of(model) if name not in weights]:
        raise ValueError(f"{where} lacks the tensor {missing[0]!r} that the model has.")
    same = {name: weights[name] for name in weights_of(model)}
    check_same_layout(weights_of(model), same, names=("the model", where))
    return weights


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return map_tensors(file)
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}.") from error


def _snapshot(run: Path, step: int | None) -> Snapshot:
    trajectory = Trajectory.open(run)
    if not len(trajectory):
        raise ValueError(f"{run} holds no snapshot.")
    try:
        return trajectory[-1] if step is None else trajectory.at(step)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
