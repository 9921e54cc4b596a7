"""Decompose a recorded run into modes, streamed: never more than a block of it in memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.modes.grouping import Grouping, Reference, combinations, group_rows, standardised
from slipstream.modes.modes import Modes
from slipstream.modes.sampling import check_real, draw, owners, rows_of
from slipstream.modes.statistics import blocks, check_finite, computed_in, regress_
from slipstream.trajectory import Trajectory

Progress = Callable[[str, int, int], None]  # what comes next, its number, and how many there are
FEWEST_STEPS = 3


def fit_modes(
    trajectory: Trajectory,
    *,
    modes: int = 10,
    samples: int = 1000,
    reference: Reference = "member",
    grouping: Grouping = "complete",
    seed: int = 0,
    progress: Progress | None = None,
) -> Modes:
    """Decompose a run into a few modes, whose members move in step or against each other.

    A sample of the weights is grouped by the absolute correlations of their histories; each group
    gets a reference; then every weight is assigned to the reference it correlates with most, and
    fitted to it by least squares. The run is read once, in blocks.

    Args:
        trajectory: At least three snapshots.
        modes: The number of modes M.
        samples: The number of weights K that are grouped.
        reference: `member`, the paper's: the weight with the largest mean |correlation| in its
            group. `component`: the group's first principal component, which is less noisy.
        grouping: `complete` linkage, the paper's; `average` linkage; `k-means`, for many samples.
        seed: Of the sample, and of the first centres of `k-means`.
        progress: Called before each tensor.

    Returns:
        The modes, and how much of the motion they explain.

    Raises:
        ValueError: If there are too few snapshots, no weight moves, fewer sampled weights move
            than there should be modes, or the run holds a NaN or an infinity.

    Source: "Enhancing Neural Training via a Correlated Dynamics Model" (Brokman et al., 2024),
    its decomposition after training.

    Example:
        >>> time = torch.linspace(0, 1, 5)
        >>> run = [{"w": torch.tensor([t, 3 - 2 * t, t * t]), "fixed": torch.ones(2)} for t in time]
        >>> found = fit_modes(Trajectory.from_weights(run), modes=2)
        >>> found
        Modes(2 modes of 1 tensors over 5 steps, 100.0% of the motion explained)
        >>> found.assignment["w"], found.b["w"]
        (tensor([0, 0, 1], dtype=torch.uint8), tensor([0.5000, 2.0000, 0.3750]))
    """
    check_length(trajectory)
    sample, _ = sample_rows(trajectory, samples, seed=seed)
    labels = group_rows(sample, modes, grouping=grouping, seed=seed)
    references = combinations(sample, labels, reference=reference) @ sample
    names = trajectory.layout.learned
    fitted: dict[str, _Fitted] = {}
    kept = {}
    for number, name in enumerate(trajectory.layout.tensors):
        if progress is not None:
            progress(name, number, len(trajectory.layout.tensors))
        found = _fit(trajectory, name, references) if name in names else None
        if found is not None and found.motion.any():
            fitted[name] = found
        else:
            kept[name] = _kept(trajectory, name)
    return Modes(
        layout=trajectory.layout,
        steps=tuple(trajectory.steps),
        references=references,
        assignment={name: found.assignment for name, found in fitted.items()},
        a={name: found.a for name, found in fitted.items()},
        b={name: found.b for name, found in fitted.items()},
        kept=kept,
        motion=torch.stack([found.motion for found in fitted.values()]),
        explained=torch.stack([found.explained for found in fitted.values()]),
        samples=sample.float(),
        sample_modes=labels,
    )


def sample_rows(trajectory: Trajectory, samples: int, *, seed: int) -> tuple[Tensor, list[str]]:
    """Return standardised histories of sampled weights that move, and the tensor of each.

    Args:
        trajectory: The run.
        samples: How many weights to draw.
        seed: Of the draw.

    Returns:
        (weights, steps) float64, and as many names.

    Raises:
        ValueError: If none moves, or one is a NaN.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    sizes = {name: math.prod(trajectory.shapes[name]) for name in trajectory.layout.learned}
    rows, names = _drawn(trajectory, sizes, samples, seed)
    if names and set(names) != set(sizes):  # frozen tensors would take their share of the sample
        rows, names = _drawn(trajectory, {n: sizes[n] for n in sizes if n in names}, samples, seed)
    if not names:
        raise ValueError("No sampled weight ever moves in this run: there is no mode to find.")
    return rows, names


def check_length(trajectory: Trajectory) -> None:
    """Raise if the run has too few snapshots for a decomposition, or complex weights."""
    if len(trajectory) < FEWEST_STEPS:
        raise ValueError(
            f"The run has {len(trajectory)} snapshots; modes need at least {FEWEST_STEPS}: "
            "record more often, for example with Schedule.every(10)."
        )
    tensors = trajectory.layout.tensors
    check_real({name: tensors[name].dtype for name in trajectory.layout.learned})


@dataclass(frozen=True)
class _Fitted:
    """What is known of one tensor."""

    assignment: Tensor  # in the shape of the tensor, like a and b
    a: Tensor
    b: Tensor
    motion: Tensor  # (modes,) float64
    explained: Tensor  # (modes,) float64


def _drawn(
    trajectory: Trajectory, sizes: dict[str, int], samples: int, seed: int
) -> tuple[Tensor, list[str]]:
    positions = draw(sizes, samples, seed=seed)
    if not positions:
        return torch.empty(0), []
    rows = standardised(rows_of(trajectory, positions))
    moves = rows.any(1)
    moving = zip(owners(positions), moves.tolist(), strict=True)
    return rows[moves], [name for name, moved in moving if moved]


def _fit(trajectory: Trajectory, name: str, references: Tensor) -> _Fitted:
    form = trajectory.layout.tensors[name]
    modes, steps = references.shape
    size = math.prod(form.shape)
    assignment = torch.empty(size, dtype=torch.uint8 if modes <= 256 else torch.int16)
    a, b = (torch.empty(size, dtype=computed_in(form.dtype)) for _ in range(2))
    motion, explained = (torch.zeros(modes, dtype=torch.float64) for _ in range(2))
    for at, block in blocks(trajectory, name):
        regression = regress_(block, references)
        check_finite(regression, block, name, trajectory.steps)
        # With references of one length, the largest slope is the largest correlation.
        mode = regression.slopes.abs().max(0).indices  # argmax takes nine times as long
        assignment[at] = mode
        torch.gather(regression.slopes, 0, mode[None], out=a[None, at])
        b[at] = regression.mean
        motion += torch.bincount(mode, regression.motion.double(), minlength=modes)
        explained += torch.bincount(mode, a[at].double().square(), minlength=modes) * steps
    assignment, a, b = (value.view(form.shape) for value in (assignment, a, b))
    return _Fitted(assignment, a, b, motion, torch.minimum(explained, motion))


def _kept(trajectory: Trajectory, name: str) -> Tensor:
    """A tensor that follows no mode: at every step, or once if it never changes."""
    rows = trajectory[name]
    return rows[:1].clone() if bool((rows == rows[:1]).all()) else rows
