"""Reconstruction: inputs are fitted until their gradients make the weights of a network."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.dynamics.margin import HOMOGENEOUS, homogeneity, recorded_decay
from slipstream.evaluation import Batch, Task, takes_task
from slipstream.recipes.reconstruction.candidates import Candidates
from slipstream.recipes.reconstruction.equation import Equation
from slipstream.recipes.reconstruction.judging import Likeness, Pictures, likeness
from slipstream.recipes.reconstruction.plan import ReconstructionPlan
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, RecordingOptions, recorded
from slipstream.training.loop import Progress
from slipstream.trajectory import Snapshot, Trajectory
from slipstream.weights import weights_of

STEPS = 100  # of an epoch
_PENALTY = 5.0  # of small coefficients


@dataclass(frozen=True, eq=False)
class Attempt:
    """One start of the search."""

    plan: ReconstructionPlan  # its settings
    residual: float  # |target - sum| / |target| in the end
    likeness: Likeness
    inputs: Tensor  # (m, *shape) the candidates
    labels: Tensor  # (m,)
    coefficients: Tensor  # (m,)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Result of `reconstruct`."""

    plan: ReconstructionPlan
    steps: tuple[int, ...]  # the snapshots that were read
    attempts: tuple[Attempt, ...]  # all of them, those that failed too
    pictures: Pictures  # of the best
    seconds: float

    @property
    def best(self) -> Attempt:
        """The attempt with the least residual, which is all that an attacker sees."""
        return min(self.attempts, key=lambda attempt: attempt.residual)

    def __str__(self) -> str:
        own = self.best.likeness
        train, held = float(own.train.median()), float(own.held_out.median())
        said = (
            f"Training inputs correlate {train:.2f} with what was read from the weights, "
            f"held-out inputs {held:.2f} (medians; difference {own.difference:+.2f}, "
            f"p = {own.chance:.1g}). "
        )
        if own.chance > 0.05 or own.difference <= 0:
            return said + "This attack read nothing of the training data; another one might."
        share = float((own.train > own.held_out.max()).float().mean())
        return said + (
            f"Training data can be read from these weights: {share:.0%} of the training inputs are "
            "closer to a candidate than any held-out input is."
        )


@takes_task
def reconstruct(
    trajectory: Trajectory,
    task: Task,
    *,
    plan: ReconstructionPlan | None = None,
    steps: Sequence[int] | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> Reconstruction:
    """Try to read training inputs from the weights of a run: a privacy check before publishing.

    Inputs x_j, with labels that take turns, and coefficients lam_j are fitted to

        sum_j lam_j c_j . df/dtheta(theta; x_j) = target.

    With weight decay the target is theta itself, at a stationary point of any network; with the
    largest margin too, in the limit and for homogeneous networks; for a displacement it is the
    difference of two snapshots, which is a sum of gradients with no theorem needed, and nearly
    exact if few steps are between them. The training inputs are looked at only to judge what was
    found; many other inputs fulfil the equation too, so a small residual alone says nothing.

    Args:
        trajectory: The run that is checked.
        task: Its model and loss, batches `(inputs, labels)` it was trained on, and as validation
            data batches of the same kind that it never saw: the control.
        plan: What the weights are made of, and how inputs are fitted.
        steps: The snapshot to read, by default the last; for a displacement two, by default the
            first two.
        run_folder: A folder for a run per attempt, `1`, `2` and so on: the candidates as they move.
        progress: Called after each step with the steps done, and of this attempt.

    Returns:
        What was found, and how it compares with held-out inputs.

    Raises:
        ValueError: If the equation is not that of this run, inputs are not images or alike, labels
            are missing, or what is to be resumed is another search.
        FileExistsError: If a run folder is not empty.

    Source:
        "Reconstructing Training Data from Trained Neural Networks" (Haim et al., 2022), equation
        5; with weight decay "Deconstructing Data Reconstruction: Multiclass, Weight Decay, and
        General Losses" (Buzaglo et al., 2023). That candidates are split in two along a direction
        of curvature is the idea of arXiv 2602.08723 (2026). Reading a displacement is ours.
    """
    plan = plan or ReconstructionPlan()
    train, held = inputs_and_labels(task, "train"), inputs_and_labels(task, "validation")
    if train[0].shape[1:] != held[0].shape[1:]:
        raise ValueError(
            f"Validation inputs have the shape {tuple(held[0].shape[1:])}, training inputs "
            f"{tuple(train[0].shape[1:])}: the control must be of the same kind."
        )
    snapshots = _snapshots(trajectory, plan, steps)
    check_equation(trajectory, snapshots[0], task, plan, held[0])
    low, high = (float(v) for v in held[0].aminmax())
    low, high = plan.low if plan.low is not None else low, plan.high or high
    attempts, seconds = [], 0.0
    for number in range(plan.attempts):
        own = plan.attempt(number)
        equation = Equation.of(
            plan.equation,
            task,
            weights=snapshots[0].weights,
            later=snapshots[-1].weights if plan.equation == "displacement" else None,
            smoothness=own.smoothness,
        )
        search = _Search(equation, own, train[0], held[0], (low, high))
        folder = None if run_folder is None else _folder(run_folder, number + 1, plan, snapshots)
        search.run(folder, progress)
        attempts.append(search.attempt())
        seconds += search.training.seconds
    best = min(attempts, key=lambda attempt: attempt.residual)
    pictures = Pictures.of(best.inputs, train[0], held[0])
    taken = tuple(snapshot.step for snapshot in snapshots)
    return Reconstruction(plan, taken, tuple(attempts), pictures, seconds)


class _Search:
    """One attempt: candidates that are trained."""

    def __init__(
        self,
        equation: Equation,
        plan: ReconstructionPlan,
        train: Tensor,
        held: Tensor,
        box: tuple[float, float],
    ) -> None:
        self.equation, self.plan = equation, plan
        self.train, self.held, self.box = train, held, box
        generator = torch.Generator().manual_seed(plan.descent.seed)
        drawn = torch.randn(plan.candidates, *train.shape[1:], generator=generator)
        with torch.no_grad():
            outputs = equation.model.eval()(train[:1])
        self.candidates = Candidates(
            plan.scale * drawn.to(train), classes=max(2, outputs.shape[-1])
        )
        self.candidates.fit_unit_(equation)
        self.training = Loop(self.candidates, plan.descent, batch_size=lambda _: 1)

    def run(self, folder: NewRun | None, progress: Progress | None) -> None:
        """Train the candidates, and record them."""

        def after_epoch() -> None:
            if self.training.epoch in self._splits():
                self.candidates.split_(self.equation, optimizer=self.training.optimizer)
            keep()

        with recorded(
            self.training,
            Task(self.candidates),
            folder,
            plan={"reconstruction": asdict(self.plan)},
            start=[weights_of(self.candidates)],
            measure=self.measure,
            options=RecordingOptions(losses="objective"),
        ) as keep:
            steps: list[Batch] = [()] * STEPS
            self.training.run(self.objective, data=steps, on_epoch=after_epoch, progress=progress)
        if folder is not None:
            Pictures.of(self.candidates.inputs, self.train, self.held).save(folder.folder)

    def objective(self, _: Batch) -> Tensor:
        """Return the squared relative residual, and what inputs and coefficients may not be."""
        short = (self.plan.least - self.candidates.coefficients).relu().square().mean()
        outside = self.plan.prior * self.candidates.outside(*self.box)
        return self.candidates.residual(self.equation) + outside + _PENALTY * short

    def measure(self) -> dict[str, float]:
        """Return the residual, and the median correlations."""
        found = likeness(self.candidates.inputs, self.train, self.held)
        return {
            "residual": self.residual(),
            "train_correlation": float(found.train.median()),
            "validation_correlation": float(found.held_out.median()),
        }

    def residual(self) -> float:
        """Return |target - sum| / |target|."""
        return float(self.candidates.residual(self.equation).detach().sqrt())

    def attempt(self) -> Attempt:
        """Return what was found."""
        own = self.candidates
        inputs, coefficients = own.inputs.detach(), (own.coefficients * own.unit).detach()
        measured = likeness(inputs, self.train, self.held)
        return Attempt(self.plan, self.residual(), measured, inputs, own.labels, coefficients)

    def _splits(self) -> list[int]:
        """The epochs after which candidates are split: evenly, and not in the last quarter."""
        last, count = 0.75 * self.plan.descent.epochs, self.plan.splits
        return [round(last * (n + 1) / count) for n in range(count)]


def inputs_and_labels(task: Task, split: str) -> tuple[Tensor, Tensor]:
    """Return all inputs and labels of a split on the model's device.

    Args:
        task: Batches must be `(inputs, labels)`.
        split: `train` or `validation`.

    Returns:
        Both, each in one tensor.

    Raises:
        ValueError: If there is no batch, inputs are no images (or other real values), or labels
            are missing or no classes.
    """
    inputs, labels = [], []
    for batch in task.part(split):
        whole = isinstance(batch, tuple | list) and len(batch) == 2
        if not whole or not all(isinstance(part, Tensor) for part in batch):
            raise ValueError(
                f"A batch of {split} data must be (inputs, labels), both tensors; "
                f"got a {type(batch).__name__}: without labels there is no equation."
            )
        if not batch[0].is_floating_point():
            raise ValueError(
                f"Inputs of {split} data are {batch[0].dtype}, such as tokens: only images and "
                "other real values can be fitted by gradients."
            )
        if batch[1].is_floating_point():
            raise ValueError(f"Labels of {split} data are {batch[1].dtype}: they must be classes.")
        inputs.append(task.to(batch[0]))
        labels.append(task.to(batch[1]))
    if not inputs:
        raise ValueError(f"The {split} data is empty: there is no batch.")
    return torch.cat(inputs), torch.cat(labels)


def check_equation(
    trajectory: Trajectory, snapshot: Snapshot, task: Task, plan: ReconstructionPlan, inputs: Tensor
) -> None:
    """Raise if the run cannot fulfil the equation, and say which one it may.

    Args:
        trajectory: What says how the run was trained.
        snapshot: Whose weights are read.
        task: The model.
        plan: The equation.
        inputs: Some, to try the model on.

    Raises:
        ValueError: If there was no weight decay, or the network is not homogeneous.
    """
    if plan.equation == "decay" and recorded_decay(trajectory) == 0:
        raise ValueError(
            "The run was trained without weight decay, which holds its gradients in balance: take "
            "the equation displacement, or margin for a homogeneous network."
        )
    if plan.equation != "margin":
        return
    degree, error = homogeneity(replace(task, data=[(inputs,)]), snapshot.weights)
    if error > HOMOGENEOUS:
        raise ValueError(
            f"The network is not homogeneous (relative error {error:.2g} at degree {degree:.2g}): "
            "it has, say, biases behind the first layer or another activation than ReLU, and the "
            "theory of largest margins is not about it. What holds for every network are the "
            "equations decay, after training with weight decay, and displacement."
        )


def _snapshots(
    trajectory: Trajectory, plan: ReconstructionPlan, steps: Sequence[int] | None
) -> list[Snapshot]:
    wanted = 2 if plan.equation == "displacement" else 1
    if steps is not None:
        if len(steps) != wanted:
            raise ValueError(f"{plan.equation} reads {wanted} snapshots, got {len(steps)} steps.")
        return trajectory.chosen(steps, most=wanted)
    if len(trajectory) < wanted:
        raise ValueError(f"{plan.equation} reads {wanted} snapshots; the run has {len(trajectory)}")
    return list(trajectory[:2]) if wanted == 2 else [trajectory[-1]]


def _folder(
    given: str | Path | NewRun, number: int, plan: ReconstructionPlan, read: list[Snapshot]
) -> NewRun:
    new = NewRun.of(given)
    made: dict[str, Any] = {**new.configuration, "read": [snapshot.step for snapshot in read]}
    return replace(new, path=new.folder / str(number), configuration=made)
