"""The runs that a pre-training of operators leaves: all together, and each for itself."""

import copy as copying
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from slipstream.evaluation import weights_in
from slipstream.recipes.operators.plan import OperatorPlan
from slipstream.storage.new_run import NewRun
from slipstream.trajectory import Recorder, Trajectory
from slipstream.weights import weights_of

TOGETHER = "together"


def operator_folder(folder: str | Path, number: int) -> Path:
    """Return the run folder of an operator, counted from 0."""
    return Path(folder) / f"operator-{number + 1}"


def together_run(new: NewRun, count: int) -> NewRun:
    """Return where all operators are recorded together.

    Args:
        new: The folder of all runs.
        count: How many operators there are.

    Returns:
        The run in it.

    Raises:
        FileExistsError: If an operator is there already and may not be replaced.
    """
    for number in range(count):
        own = operator_folder(new.folder, number)
        if own.is_dir() and any(own.iterdir()) and not (new.overwrite or new.resume):
            raise FileExistsError(f"{own} is not empty: give another path, or overwrite it.")
    return replace(new, path=new.folder / TOGETHER)


def write_operators(new: NewRun, network: nn.Module, plan: OperatorPlan, count: int) -> None:
    """Take the run of each operator out of the one in which all were recorded.

    Args:
        new: The folder of all runs.
        network: What each of them holds the weights of; left as it was.
        plan: How they were trained; kept in the runs.
        count: How many operators there are.
    """
    run, model = Trajectory.open(new.folder / TOGETHER), copying.deepcopy(network)
    for number in range(count):
        recipe = {"operators": {"operator": number + 1, **asdict(plan)}}
        recorder = Recorder(
            operator_folder(new.folder, number),
            model,
            configuration={**new.configuration, "recipe": recipe},
            seed=plan.descent.seed,
            overwrite=True,  # what was in the way was refused before the training
        )
        with recorder:
            for snapshot in run:
                weights = {n: snapshot.weights[f"{number}.{n}"] for n in weights_of(model)}
                with weights_in(model, weights):
                    recorder.record(
                        step=snapshot.step, epoch=snapshot.epoch, metrics=snapshot.metrics
                    )
