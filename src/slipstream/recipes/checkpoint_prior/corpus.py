"""Runs as training data: all checkpoints that have a metric, as flat weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from slipstream.matching import match_weights
from slipstream.recipes.checkpoint_prior.tokens import TokenLayout
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.trajectory import Layout, Trajectory
from slipstream.trajectory.run_files import run_folders_in
from slipstream.weights import Weights

FEWEST = 10  # runs
Runs = str | Path | Sequence[str | Path | Trajectory]


@dataclass(frozen=True, eq=False)
class Corpus:
    """The checkpoints of all runs, one run after another."""

    weights: Tensor  # (checkpoints, numbers), float32
    metric: Tensor  # (checkpoints,), float32
    first: Tensor  # the first checkpoint of each run, (runs,), int64
    count: Tensor  # the checkpoints of each run, (runs,), int64

    @classmethod
    def read(cls, runs: Runs, layout: TokenLayout, expected: Layout, *, metric: str) -> "Corpus":
        """Read all snapshots that have the metric.

        Args:
            runs: A folder of run folders, or the runs.
            layout: Which tensors are read.
            expected: What every run must hold.
            metric: A metric that the runs recorded, on validation data.

        Returns:
            The corpus.

        Raises:
            ValueError: If there are fewer than ten runs, one is of another architecture, or lacks
                the metric, or the metric or weights are not finite.
        """
        named = _named(runs)
        if len(named) < FEWEST:
            raise ValueError(
                f"runs must hold at least {FEWEST} runs to learn from, got {len(named)}: record "
                "more of the same architecture from other seeds."
            )
        read = [_read(name, run, layout, expected, metric) for name, run in named]
        count = torch.tensor([len(values) for _, values in read])
        return cls(
            torch.cat([weights for weights, _ in read]),
            torch.cat([values for _, values in read]),
            count.cumsum(0) - count,
            count,
        )

    def __len__(self) -> int:
        return len(self.count)

    @property
    def last(self) -> Tensor:
        """The last checkpoint of each run, (runs,)."""
        return self.first + self.count - 1

    def take(self, runs: Tensor) -> "Corpus":
        """Return some of the runs, without copying the weights."""
        return replace(self, first=self.first[runs], count=self.count[runs])

    def pairs(
        self, size: int, generator: torch.Generator, *, from_start: float = 0.0
    ) -> tuple[Tensor, ...]:
        """Return random runs' checkpoints i <= j: their weights, then their metrics."""
        run = torch.randint(len(self), (size,), generator=generator)
        at = torch.rand(2, size, generator=generator).sort(0).values
        at[0, torch.rand(size, generator=generator) < from_start] = 0
        early, late = self.first[run] + (at * self.count[run]).long()
        return self.weights[early], self.weights[late], self.metric[early], self.metric[late]

    def best(self) -> float:
        """Return what the best tenth of the runs ended with."""
        ends = self.metric[self.last]
        rises = ends.mean() > self.metric[self.first].mean()
        return float(ends.quantile(0.9 if rises else 0.1))

    def aligned(self, layout: TokenLayout, groups: NeuronGroups) -> "Corpus":
        """Return the runs with their neurons in the order of the first one, by the last weights."""
        weights = self.weights.clone()
        target = layout.unflatten(weights[self.last[0]])
        for first, last in zip(self.first.tolist(), self.last.tolist(), strict=True):
            places, signs = alignment(weights[last], target, layout, groups)
            weights[first : last + 1] = weights[first : last + 1, places] * signs
        return replace(self, weights=weights)


def alignment(
    flat: Tensor, target: Weights, layout: TokenLayout, groups: NeuronGroups
) -> tuple[Tensor, Tensor]:
    """Return what brings flat weights closest to a target: `flat[places] * signs`."""
    found = match_weights(layout.unflatten(flat), target, groups=groups)
    return layout.moves(found.source_to_target)


def _named(runs: Runs) -> list[tuple[str, Trajectory]]:
    """Runs with a name for messages."""
    if isinstance(runs, str | Path) and not Path(runs).is_dir():
        raise FileNotFoundError(f"{runs} is not a folder: name one with run folders in it.")
    given = run_folders_in(runs) if isinstance(runs, str | Path) else runs
    return [
        (f"run {number}", run) if isinstance(run, Trajectory) else (str(run), Trajectory.open(run))
        for number, run in enumerate(given, start=1)
    ]


def _read(
    name: str, run: Trajectory, layout: TokenLayout, expected: Layout, metric: str
) -> tuple[Tensor, Tensor]:
    """The flat weights and the metric of every snapshot that has it."""
    try:
        expected.check(run.layout.tensors, where=name)
    except ValueError as error:
        raise ValueError(f"{error} All runs must be of one architecture: leave it out.") from error
    with_metric = [snapshot for snapshot in run if metric in snapshot.metrics]
    if len(with_metric) < 2:
        known = ", ".join(dict.fromkeys(key for s in run for key in s.metrics)) or "none"
        raise ValueError(
            f"metric: {name} has {metric!r} at {len(with_metric)} snapshots, two are needed. It "
            f"recorded {known}: name one of these, or log it, recorder.log({metric}=...)."
        )
    values = torch.tensor([snapshot.metrics[metric] for snapshot in with_metric])
    weights = torch.stack([layout.flatten(snapshot.weights).float() for snapshot in with_metric])
    finite = values.isfinite() & weights.isfinite().all(1)
    if not finite.all():
        bad = int((~finite).nonzero()[0])
        what = "its weights" if math.isfinite(values[bad]) else f"{metric!r}"
        raise ValueError(
            f"{name}: at step {with_metric[bad].step} {what} are not finite: leave that run out."
        )
    return weights, values
