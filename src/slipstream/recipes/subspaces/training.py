"""Training a line, a curve or a simplex of networks in one run, and recording it."""

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slipstream.evaluation import Batch, Loss, Metric, Task
from slipstream.landscape.angles import weight_cosine
from slipstream.landscape.corner_training import CornerTraining
from slipstream.landscape.span import Calibration, Span
from slipstream.recipes.subspaces.folder import UNFINISHED, is_finished, read, save_subspace
from slipstream.recipes.subspaces.subspace import Subspace, SubspacePlan
from slipstream.storage.new_run import NewRun
from slipstream.training.recorded_training import RecordingOptions, recorded, validated
from slipstream.training.reinitialise import fresh_weights
from slipstream.weights import (
    Weights,
    check_same_layout,
    copy,
    first_nonfinite,
    parameter_names,
    weights_of,
)


def train_subspace(
    model: nn.Module,
    loss: Loss,
    *,
    data: Iterable[Batch],
    plan: SubspacePlan | None = None,
    initial: Sequence[Weights] | None = None,
    calibration: Iterable[Batch] | None = None,
    validation: Iterable[Batch] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    run_folder: str | Path | None = None,
    configuration: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[int, int | None], object] | None = None,
) -> Subspace:
    """Train a line, a curve or a simplex of networks in one run.

    Minimises E_a loss(P(a)) + beta cos^2(w_j, w_k): each step draws a point P(a) = sum_i a_i w_i,
    passes once forward and back there, and gives corner i the gradient times a_i; the cosine is
    that of a random pair of corners. It costs what the training of one network costs, and the
    memory of the corners.

    Source: "Learning Neural Network Subspaces" (Wortsman, Horton, Guestrin, Farhadi, Rastegari,
    2021), algorithm 1.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        data: Training batches; if it has a method `epoch(number)`, that gives those of an epoch.
        plan: Which networks, and how.
        initial: Where each corner starts; by default the first at the model's own weights, the
            others as its layers initialise them, see `fresh_weights`.
        calibration: Batches for BatchNorm's statistics; by default `data`.
        validation: Batches on which `metrics` of the midpoint are taken after every epoch.
        metrics: Name to a function of the model and a batch; recorded with the run.
        run_folder: Records the midpoint after every epoch as a run, and the corners in the end.
        configuration: What makes the run, as plain data; kept in it.
        overwrite: Whether to delete the snapshots of a run that is already there.
        resume: Whether to go on with a training that was interrupted; begins if there is none.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The subspace.

    Raises:
        ValueError: If the corners are equal, not finite or of different layouts, `data` is empty,
            the loss is not finite, or what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> from slipstream.training import Descent
        >>> model = nn.Linear(2, 1)
        >>> loss = lambda model, batch: (model(batch) - 1).square().mean()
        >>> plan = SubspacePlan("line", descent=Descent(epochs=30, lr=0.05))
        >>> line = train_subspace(model, loss, data=[torch.eye(2)], plan=plan)
        >>> sorted(line.at(0.3)), line.steps
        (['bias', 'weight'], 30)
    """
    plan = plan or SubspacePlan()
    corners = _starts(model, plan, initial)
    training = CornerTraining(
        model,
        plan.descent,
        shape=plan.family,
        corners=corners,
        trained=range(plan.corners),
        layerwise=plan.layerwise,
        repulsion=plan.repulsion,
    )
    batches = data if calibration is None else calibration
    task = _Making(model, plan, training, Calibration(model, loss, batches))
    if run_folder is not None and resume and is_finished(Path(run_folder)):
        return _finished(Path(run_folder), task)
    own = {"subspace": asdict(plan)}
    options = RecordingOptions(
        state=UNFINISHED, identity={"plan": asdict(plan)}, weights=task.middle
    )
    new = None
    if run_folder is not None:
        new = NewRun(run_folder, configuration or {}, overwrite, resume)

    def measure() -> dict[str, float]:
        return {"cosine": mean_cosine(training.corners())} | validated(model, metrics, validation)

    with recorded(
        training, Task(model), new, plan=own, start=corners, measure=measure, options=options
    ) as keep:
        training.run(lambda batch: loss(model, batch), data=data, on_epoch=keep, progress=progress)
    result = task.result()
    if run_folder is not None:
        save_subspace(result, Path(run_folder))
        (Path(run_folder) / UNFINISHED).unlink()
    return result


@dataclass(frozen=True)
class _Making:
    """A subspace in the making."""

    model: nn.Module
    plan: SubspacePlan
    training: CornerTraining
    calibration: Calibration

    def result(self) -> Subspace:
        """What has been trained so far, the corners with BatchNorm statistics of their own."""
        found = self.training.corners()
        span = Span(self.plan.family, tuple(map(self.calibration, found)), self.calibration)
        losses, angle = tuple(self.training.losses), mean_cosine(found)
        steps, seconds = self.training.step, self.training.seconds
        return Subspace(self.plan, span, losses, angle, steps, seconds)

    def middle(self) -> Weights:
        """Return the midpoint of what has been trained so far."""
        return Span(self.plan.family, tuple(self.training.corners()), self.calibration).midpoint


def mean_cosine(corners: Sequence[Weights]) -> float:
    """Return the cosine between two corners, the mean over all pairs of them."""
    return statistics.fmean(weight_cosine(a, b) for a, b in itertools.combinations(corners, 2))


def _starts(
    model: nn.Module, plan: SubspacePlan, initial: Sequence[Weights] | None
) -> list[Weights]:
    """Where each corner starts, checked."""
    if initial is None:
        seeds = np.random.default_rng((plan.descent.seed, 0)).integers(2**62, size=plan.corners)
        others = [fresh_weights(model, seed=int(seed)) for seed in seeds[1:]]
        return [copy(weights_of(model)), *others]
    if len(initial) != plan.corners:
        raise ValueError(
            f"initial must hold weights for each of the {plan.corners} corners, got {len(initial)}."
        )
    for number, corner in enumerate(initial):
        check_same_layout(initial[0], corner, names=("initial[0]", f"initial[{number}]"))
        if bad := first_nonfinite(corner):
            raise ValueError(f"initial[{number}] holds a NaN or an infinity in {bad!r}.")
    trained = parameter_names(model)
    for (i, a), (j, b) in itertools.combinations(enumerate(initial), 2):
        if all(torch.equal(a[name], b[name]) for name in trained if name in a):
            raise ValueError(
                f"initial[{i}] and initial[{j}] are equal: corners that start as one stay one."
            )
    return list(initial)


def _finished(folder: Path, task: _Making) -> Subspace:
    """What an earlier call has finished."""
    found = read(folder, calibration=task.calibration)
    if found.plan != task.plan:
        raise ValueError(
            f"{folder} holds a finished subspace of another plan, {found.plan}. Give another path."
        )
    return found
