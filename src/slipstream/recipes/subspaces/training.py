"""Training a line, a curve or a simplex of networks in one run, and recording it."""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slipstream.evaluation import Batch, Loss, Metric, weights_in
from slipstream.evaluation.determinism import batch_digest
from slipstream.landscape.angles import weight_cosine
from slipstream.landscape.corner_training import CornerTraining, EpochDone
from slipstream.landscape.span import Calibration, Span
from slipstream.recipes.subspaces.folder import UNFINISHED, is_finished, read, save_subspace
from slipstream.recipes.subspaces.subspace import Subspace, SubspacePlan
from slipstream.storage.resumable_state import Checkpoint
from slipstream.training.recorded_training import validated
from slipstream.training.reinitialise import fresh_weights
from slipstream.trajectory import Recorder, Schedule, declare_companions
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
        loss,
        shape=plan.family,
        corners=corners,
        trained=range(plan.corners),
        descent=plan.descent,
        layerwise=plan.layerwise,
        repulsion=plan.repulsion,
    )
    batches = data if calibration is None else calibration
    task = _Task(model, plan, training, Calibration(model, loss, batches))
    if run_folder is None:
        training.run(data, progress=progress)
        return task.result()
    folder = Path(run_folder)
    if resume and is_finished(folder):
        return _finished(folder, task)
    start = batch_digest([dict(corner) for corner in corners]).hex()
    given = json.loads(json.dumps(configuration or {}, default=str))  # as run.json gives it back
    identity = {"plan": asdict(plan), "start": start, "configuration": given}
    checkpoint = Checkpoint(folder / UNFINISHED, identity)
    state = checkpoint.read() if resume else None
    if state is not None:
        training.load_state_dict(state)
    recorder = Recorder(
        folder,
        model,
        schedule=Schedule.at(()),
        configuration={**(configuration or {}), "recipe": {"subspace": asdict(plan)}},
        seed=plan.descent.seed,
        overwrite=overwrite,
        resume=state is not None,
        step=training.step,
    )
    keep = partial(task.record, recorder=recorder, validation=validation, metrics=metrics)
    with recorder:
        declare_companions(folder, UNFINISHED)
        if state is None:
            checkpoint.offer(training.state_dict, last=True)
        if recorder.last_kept is None:
            keep(EpochDone(0, 0, math.nan))
        training.run(data, checkpoint=checkpoint, on_epoch=keep, progress=progress)
    result = task.result()
    save_subspace(result, folder)
    checkpoint.path.unlink()
    return result


@dataclass(frozen=True)
class _Task:
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

    def record(
        self,
        done: EpochDone,
        *,
        recorder: Recorder,
        validation: Iterable[Batch] | None,
        metrics: Mapping[str, Metric] | None,
    ) -> None:
        """Keep the midpoint at the end of an epoch."""
        corners = self.training.corners()
        middle = Span(self.plan.family, tuple(corners), self.calibration).midpoint
        found = {"cosine": mean_cosine(corners)}
        if done.epoch:
            found["train_loss"] = done.loss
        found |= validated(self.model, metrics, validation, weights=middle)
        with weights_in(self.model, middle):
            recorder.record(step=done.step, epoch=done.epoch, metrics=found)


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


def _finished(folder: Path, task: _Task) -> Subspace:
    """What an earlier call has finished."""
    found = read(folder, calibration=task.calibration)
    if found.plan != task.plan:
        raise ValueError(
            f"{folder} holds a finished subspace of another plan, {found.plan}. Give another path."
        )
    return found
