"""The runs that a routed pre-training leaves: all branches together, and each for itself."""

import copy as copying
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from slipstream.evaluation import weights_in
from slipstream.recipes.routed_pretraining.plan import RoutedPlan
from slipstream.storage.new_run import NewRun
from slipstream.trajectory import Recorder, Trajectory
from slipstream.weights import weights_of

TOGETHER, NETWORKS = "together", "networks"


def branch_folder(folder: str | Path, number: int) -> Path:
    """Return the run folder of a branch, counted from 0."""
    return Path(folder) / f"branch-{number + 1}"


def together_run(new: NewRun, branches: int) -> NewRun:
    """Return where all branches are recorded together.

    Args:
        new: The folder of all runs.
        branches: How many there will be.

    Returns:
        The run in it.

    Raises:
        FileExistsError: If a branch is there already and may not be replaced.
    """
    for number in range(branches):
        own = branch_folder(new.folder, number)
        if own.is_dir() and any(own.iterdir()) and not (new.overwrite or new.resume):
            raise FileExistsError(f"{own} is not empty: give another path, or overwrite it.")
    return replace(new, path=new.folder / TOGETHER)


def write_branches(new: NewRun, network: nn.Module, plan: RoutedPlan, count: int) -> None:
    """Take the run of each branch out of the one in which all were recorded.

    Args:
        new: The folder of all runs.
        network: What each of them holds the weights of; left as it was.
        plan: How they were trained; kept in the runs.
        count: How many branches there are.
    """
    run, model = Trajectory.open(new.folder / TOGETHER), copying.deepcopy(network)
    for number in range(count):
        recipe = {"routed_pretraining": {"branch": number + 1, **asdict(plan)}}
        recorder = Recorder(
            branch_folder(new.folder, number),
            model,
            configuration={**new.configuration, "recipe": recipe},
            seed=plan.descent.seed,
            overwrite=True,  # what was in the way was refused before the training
        )
        with recorder:
            for snapshot in run:
                stored = snapshot.weights
                divided = (snapshot.epoch or 0) >= plan.whole_epochs
                own, first = (f"{NETWORKS}.{n}." for n in (number if divided else 0, 0))
                weights = {
                    name: stored[own + name if own + name in stored else first + name]
                    for name in weights_of(model)
                }
                with weights_in(model, weights):
                    recorder.record(
                        step=snapshot.step, epoch=snapshot.epoch, metrics=snapshot.metrics
                    )
