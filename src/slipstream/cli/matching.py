"""From two files of weights to the first one laid over the second."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor, nn

from slipstream.cli.loading import open_experiment, open_model, open_weights
from slipstream.evaluation import Task, inputs_of
from slipstream.matching import Matching, match_activations, match_weights
from slipstream.symmetry.tracing import find_neuron_groups


def match_files(
    source: Path,
    target: Path,
    *,
    out: Path,
    permutation: Path | None,
    experiment: Mapping[str, Any],
    batches: int | None,
    start: Literal["identity", "frank-wolfe"] = "identity",
    restarts: int,
    seed: int,
) -> Matching:
    """Match two files of weights, and write the first one permuted.

    Args:
        source: A safetensors file, or a run folder.
        target: The same, of the same model.
        out: Where the permuted source goes.
        permutation: Where the permutation goes.
        experiment: Model, data, width and option as `open_model` takes them.
        batches: How many batches of the data are used, to match activations; None for weights.
        start: Where the search starts.
        restarts: How many times to start again.
        seed: Of the restarts.

    Returns:
        The permutation with its objective and its cost.

    Raises:
        ValueError: If a file is not of the model, the data is missing, or activations are to start
            at a relaxed solution.
    """
    if start == "frank-wolfe" and batches is not None:
        raise ValueError("--start frank-wolfe goes with --method weights only.")
    opened = None if batches is None else _with_data(experiment)
    if opened is None:
        named = dict(experiment)
        model, example_input = open_model(named.pop("model"), **named)
    else:
        model, example_input = opened.model, inputs_of(next(iter(opened.data)))
    groups = find_neuron_groups(model, example_input)
    sides: dict[str, Any] = {"source": _read(model, source), "target": _read(model, target)}
    shared: dict[str, Any] = {"groups": groups, "restarts": restarts, "seed": seed}
    if opened is None:
        first: Literal["frank-wolfe"] | None = None if start == "identity" else start
        found = match_weights(sides["source"], sides["target"], start=first, **shared)
    else:
        task = opened.on(list(islice(opened.data, batches)))
        found = match_activations(sides["source"], sides["target"], task, **shared)
    moved = found.source_to_target.apply(sides["source"])
    save_file({name: value.contiguous() for name, value in moved.items()}, out)
    if permutation is not None:
        found.source_to_target.save(permutation)
    return found


def summary(found: Matching) -> dict[str, Any]:
    """Return what a matching found, for people and machines."""
    return {
        "objective": found.objective,
        "identity_objective": found.identity_objective,
        "gain": found.gain,
        "moved": found.source_to_target.moved(),
        "sweeps": found.sweeps,
        "converged": found.converged,
        "seconds": found.seconds_products + found.seconds_assignments,
    }


def _read(model: nn.Module, path: Path) -> dict[str, Tensor]:
    run = path if path.is_dir() else None
    return open_weights(model, run=run, step=None, file=None if run else path)


def _with_data(experiment: Mapping[str, Any]) -> Task:
    """The model with data, which a folder of Hugging Face or a name of timm does not have."""
    name = experiment["model"]
    if name.startswith("timm:") or Path(name, "config.json").is_file():
        raise ValueError(
            f"{name} has no data, which --method activations needs. Give --model "
            "package.module:function and --data package.module:function, or use --method weights."
        )
    run = Path(name) if Path(name, "run.json").is_file() else None
    return open_experiment(run, **{**experiment, "model": None if run else name})
