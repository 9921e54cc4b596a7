"""Training a line, a curve or a simplex of networks in one run, and recording it."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from slipstream.evaluation import Task, takes_task
from slipstream.landscape.angles import weight_cosine
from slipstream.landscape.corner_training import CornerTraining
from slipstream.landscape.span import Span
from slipstream.recipes.subspaces.plan import SubspacePlan
from slipstream.recipes.subspaces.stored import UNFINISHED, is_finished, read, save_subspace
from slipstream.recipes.subspaces.subspace import Subspace
from slipstream.storage.new_run import NewRun
from slipstream.training import Progress, RecordingOptions, fresh_weights, recorded
from slipstream.weights import (
    Weights,
    check_same_layout,
    clone,
    first_nonfinite,
    parameter_names,
    weights_of,
)


@takes_task
def train_subspace(
    task: Task,
    *,
    plan: SubspacePlan | None = None,
    initial: Sequence[Weights] | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> Subspace:
    """Train a line, a curve or a simplex of networks in one run.

    Minimises E_a loss(P(a)) + beta cos^2(w_j, w_k): each step draws a point P(a) = sum_i a_i w_i,
    computes the gradient there once, and gives corner i the gradient times a_i; the cosine is
    that of a random pair of corners. It costs as much as the training of one network, and the
    memory of the corners.

    Source: "Learning Neural Network Subspaces" (Wortsman, Horton, Guestrin, Farhadi, Rastegari,
    2021), algorithm 1.

    Args:
        task: Model, loss and data; the model is left as it was. The midpoint is measured on the
            validation data after every epoch.
        plan: Which networks, and how.
        initial: Where each corner starts; by default the first at the model's own weights, the
            others as its layers initialise them, see `fresh_weights`.
        run_folder: Records the midpoint after every epoch as a run, and the corners at the end.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The subspace.

    Raises:
        ValueError: If the corners are equal, not finite or of different layouts, `data` is empty,
            the loss is not finite, or what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> from torch import nn
        >>> from slipstream.training import TrainingPlan
        >>> loss = lambda model, batch: (model(batch) - 1).square().mean()
        >>> plan = SubspacePlan("line", descent=TrainingPlan(epochs=30, lr=0.05))
        >>> line = train_subspace(Task(nn.Linear(2, 1), [torch.eye(2)], loss), plan=plan)
        >>> sorted(line.at(0.3)), line.steps
        (['bias', 'weight'], 30)
    """
    plan, model = plan or SubspacePlan(), task.model
    corners = _starts(model, plan, initial)
    new = None if run_folder is None else NewRun.of(run_folder)
    if new is not None and new.resume and is_finished(new.folder):
        found = read(new.folder, task)
        if found.plan == plan:
            return found
        raise ValueError(
            f"{new.folder} holds a finished subspace of another plan, {found.plan}. "
            "Give another path."
        )
    training = CornerTraining(
        task,
        plan.descent,
        shape=plan.family,
        corners=corners,
        trained=range(plan.corners),
        layerwise=plan.layerwise,
        repulsion=plan.repulsion,
    )
    with recorded(
        training,
        task,
        new,
        plan={"subspace": asdict(plan)},
        start=corners,
        measure=lambda: {"cosine": mean_cosine(training.corners())} | task.validated(),
        options=RecordingOptions(
            state=UNFINISHED,
            identity={"plan": asdict(plan)},
            weights=lambda: Span(plan.family, tuple(training.corners()), task).midpoint,
        ),
    ) as keep:
        training.run(
            lambda batch: task.loss(model, batch), data=task.data, on_epoch=keep, progress=progress
        )
    trained = training.corners()
    own = tuple(corner | task.recalibrated(corner) for corner in trained)
    span, angle = Span(plan.family, own, task), mean_cosine(trained)
    result = Subspace(plan, span, tuple(training.losses), angle, training.step, training.seconds)
    if new is not None:
        save_subspace(result, new.folder)
        (new.folder / UNFINISHED).unlink()
    return result


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
        return [clone(weights_of(model)), *others]
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
