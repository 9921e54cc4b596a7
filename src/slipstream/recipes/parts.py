"""Networks that are trained together: one run of all, from which each gets a run of its own."""

import copy as copying
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from slipstream.evaluation import weights_in
from slipstream.storage.new_run import NewRun
from slipstream.trajectory import Recorder, Snapshot, Trajectory
from slipstream.weights import Weights

TOGETHER = "together"


def numbered(folder: Path, name: str, count: int) -> list[Path]:
    """Return the run folders of single networks: `name-1`, `name-2` and so on."""
    return [folder / f"{name}-{number}" for number in range(1, count + 1)]


def together_run(new: NewRun, parts: Sequence[Path]) -> NewRun:
    """Return where all networks are recorded together.

    Args:
        new: The folder of all runs.
        parts: The run folders of the single networks.

    Returns:
        The run in it.

    Raises:
        FileExistsError: If one of the parts is there already and may not be replaced.
    """
    for own in parts:
        if own.is_dir() and any(own.iterdir()) and not (new.overwrite or new.resume):
            raise FileExistsError(f"{own} is not empty: give another path, or overwrite it.")
    return replace(new, path=new.folder / TOGETHER)


def write_parts(
    new: NewRun,
    network: nn.Module,
    parts: Sequence[Path],
    weights: Callable[[Snapshot, int], Weights],
    *,
    recipe: Callable[[int], Mapping[str, Any]],
    seed: int,
) -> None:
    """Take the run of each network out of the one in which all were recorded.

    Args:
        new: The folder of all runs.
        network: What each of them holds the weights of; left as it was.
        parts: The run folders of the single networks.
        weights: Of a network, counted from 0, in a snapshot of all.
        recipe: What the run of a network keeps of how it was trained.
        seed: Kept in the runs.
    """
    run, model = Trajectory.open(new.folder / TOGETHER), copying.deepcopy(network)
    for number, folder in enumerate(parts):
        recorder = Recorder(
            folder,
            model,
            configuration={**new.configuration, "recipe": recipe(number)},
            seed=seed,
            overwrite=True,  # what was in the way was refused before the training
        )
        with recorder:
            for snapshot in run:
                with weights_in(model, weights(snapshot, number)):
                    recorder.record(
                        step=snapshot.step, epoch=snapshot.epoch, metrics=snapshot.metrics
                    )
