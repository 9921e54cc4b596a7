"""`slipstream average` of several runs: networks that were trained apart."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from slipstream.cli.output import OutputFiles, write_json, write_table
from slipstream.cli.task_options import TaskOptions

if TYPE_CHECKING:
    from slipstream.weights import Weights

_AS_THEY_ARE, _ALIGNED = "mean as they are", "mean, aligned"


def average_of_runs(
    runs: Sequence[Path],
    named: TaskOptions,
    files: OutputFiles,
    *,
    learn_steps: int,
    calibration: int,
    json: bool,
) -> None:
    """Average the last snapshots of runs, each aligned to the first, and say what it is worth."""
    from slipstream.averaging.networks import average_networks, mean_of_networks
    from slipstream.cli.loading import open_either
    from slipstream.matching import BasisPlan
    from slipstream.symmetry.rotation_proof import find_rotatable_groups

    task = named.open(runs[0] if (runs[0] / "run.json").is_file() else None)
    task = replace(task, calibration=list(islice(task.data, calibration)))
    networks: dict[str, Weights] = {str(run): open_either(task.model, run) for run in runs}
    if len(networks) < len(runs):
        raise ValueError(f"A network is given twice: {', '.join(map(str, runs))}.")
    rotatable = find_rotatable_groups(task.model, task.example())
    plan = BasisPlan(learn_steps=learn_steps)
    aligned = average_networks(list(networks.values()), task, rotatable=rotatable, plan=plan)
    means = {_AS_THEY_ARE: mean_of_networks(list(networks.values())), _ALIGNED: aligned.weights}
    means = {name: {**weights, **task.recalibrated(weights)} for name, weights in means.items()}
    files.write_weights(means[_ALIGNED])
    measured = {
        name: task.evaluate(weights=weights, split="validation")
        for name, weights in {**networks, **means}.items()
    }
    if json:
        write_json({"networks": measured, "written": _ALIGNED})
        return
    rows = [[n, *(f"{found[m]:.4f}" for m in task.measured)] for n, found in measured.items()]
    write_table(["validation", *task.measured], rows)
    best = min(networks, key=lambda name: measured[name]["loss"])
    if measured[best]["loss"] < measured[_ALIGNED]["loss"]:
        typer.echo(f"{best} alone has a lower validation loss than the mean.")
