"""Whether checkpoints are new, or copies of known ones: by their errors and by their weights."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slipstream.comparison.opening import Given, open_given
from slipstream.comparison.plan import MemorisationPlan
from slipstream.evaluation import Task, eval_mode, weights_in
from slipstream.landscape.similarity import predicted_classes
from slipstream.matching import match_weights
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory.run_files import run_folders_in
from slipstream.weights import Weights, difference, is_continuous, norm, weights_of

LEFT_OUT = "a known one, left out"


@dataclass(frozen=True)
class Nearest:
    """One checkpoint, and the known ones that are most like it."""

    name: str
    accuracy: float
    overlap: float  # wrong answers that both give over those that either gives; 1 if none are wrong
    same_errors: str  # the known checkpoint with the largest overlap
    distance: float  # after the best permutation, over the norm of the checkpoint
    same_weights: str  # the known checkpoint with the smallest distance


@dataclass(frozen=True)
class NoveltyRow:
    """A set of checkpoints, or a baseline."""

    name: str
    each: tuple[Nearest, ...]

    @property
    def accuracy(self) -> float:
        """Mean over the set."""
        return statistics.fmean(one.accuracy for one in self.each)

    @property
    def overlap(self) -> float:
        """Mean over the set."""
        return statistics.fmean(one.overlap for one in self.each)

    @property
    def distance(self) -> float:
        """Mean over the set."""
        return statistics.fmean(one.distance for one in self.each)


@dataclass(frozen=True)
class Memorisation:
    """Result of `measure_memorisation`: the sets that were given, then the baselines."""

    rows: tuple[NoveltyRow, ...]
    known: int  # checkpoints

    def __getitem__(self, name: str) -> NoveltyRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"There is no row {name!r}; there are {[row.name for row in self.rows]}.")

    def copies(self, name: str) -> int:
        """Return how many of a set are nearer to a known one than known ones are to each other."""
        apart = min(one.distance for one in self[LEFT_OUT].each)
        return sum(one.distance < apart for one in self[name].each)


def measure_memorisation(
    sets: Mapping[str, Sequence[Given]],
    known: str | Path | Sequence[Given],
    task: Task,
    *,
    groups: NeuronGroups | None = None,
    plan: MemorisationPlan | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Memorisation:
    """Compare checkpoints with known ones, such as those that a model of checkpoints learned from.

    For each, the largest overlap of its wrong answers with those of a known one, and the smallest
    distance to a known one after `match_weights`. Good networks share their errors anyway, so the
    baselines have to be read beside it: known ones against all others, known ones with noise, and
    averages of known ones, plain and after matching.

    Source: error overlap and baselines are those of "Generative Modeling of Weights:
    Generalization or Memorization?" (Zeng, Yin, Xu, Liu, 2025).

    Args:
        sets: Checkpoints by the name of their row: run folders (the last snapshot, or `RUN@STEP`),
            files, or weights.
        known: The same; a folder of run folders stands for all of them.
        task: The model, left as it was, and the labelled batches that errors are counted on.
        groups: What may be permuted; found and proven when not given.
        plan: The baselines.
        progress: Called after each checkpoint with how many are done, and how many there are.

    Returns:
        A row for each set and baseline.

    Raises:
        ValueError: If a checkpoint lacks a tensor of the model, a set is empty, there are fewer
            known ones than an average is of, or the model returns no classes.
    """
    plan = plan or MemorisationPlan()
    groups = find_neuron_groups(task.model, task.example()) if groups is None else groups
    held = _read(_spread([known] if isinstance(known, str | Path) else known), task, "known")
    if len(held) <= plan.averaged:
        raise ValueError(
            f"known must hold more than {plan.averaged} checkpoints, got {len(held)}: give all "
            "that were learned from."
        )
    measured: list[tuple[str, str, Weights, str | None]] = []  # set, name, weights, left out
    for name, given in sets.items():
        measured += [
            (name, one, weights, None) for one, weights in _read(given, task, name).items()
        ]
    measured += _baselines(held, groups, plan)
    library = _Library(task, groups, held)
    found: dict[str, list[Nearest]] = {}
    for number, (row, name, weights, without) in enumerate(measured, start=1):
        found.setdefault(row, []).append(library.nearest(name, weights, without))
        if progress is not None:
            progress(number, len(measured))
    rows = tuple(NoveltyRow(name, tuple(each)) for name, each in found.items())
    return Memorisation(rows, len(held))


def _spread(given: Sequence[Given]) -> list[Given]:
    """What was given, with the runs in a folder instead of that folder."""
    found: list[Given] = []
    for one in given:
        found += (run_folders_in(one) if isinstance(one, str | Path) else []) or [one]
    return found


def _read(given: Sequence[Given], task: Task, what: str) -> dict[str, Weights]:
    """The weights of checkpoints by their names."""
    if not given:
        raise ValueError(f"{what} is empty: give at least one checkpoint.")
    read: dict[str, Weights] = {}
    for one in open_given(given):
        if missing := [name for name in weights_of(task.model) if name not in one.forms]:
            raise ValueError(f"{one.name} lacks the tensor {missing[0]!r} that the model has.")
        read[one.name] = {name: one.read(name) for name in weights_of(task.model)}
    return read


def _baselines(
    known: Mapping[str, Weights], groups: NeuronGroups, plan: MemorisationPlan
) -> Iterator[tuple[str, str, Weights, str | None]]:
    generator = np.random.default_rng(plan.seed)
    names = [list(known)[n] for n in generator.permutation(len(known))[: plan.controls]]
    for name in names:
        yield LEFT_OUT, name, known[name], name
    noise = torch.Generator().manual_seed(plan.seed)
    for size in plan.noise:
        for name in names:
            yield f"noise {size:g}", name, _noisy(known[name], size, noise), None
    for row in ("average", "matched average"):
        for name in names:
            others = [other for other in known if other != name]
            chosen = generator.choice(others, plan.averaged - 1, replace=False)
            members = [known[other] for other in chosen]
            if row == "matched average":
                members = [_matched(one, known[name], groups) for one in members]
            yield row, name, _mean([known[name], *members]), None


def _noisy(weights: Weights, size: float, generator: torch.Generator) -> Weights:
    return {
        name: value
        + size * value.square().mean().sqrt() * torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for name, value in weights.items()
    }


def _matched(weights: Weights, target: Weights, groups: NeuronGroups) -> Weights:
    return match_weights(weights, target, groups=groups).source_to_target.apply(weights)


def _mean(members: Sequence[Weights]) -> Weights:
    return {
        name: torch.stack([one[name] for one in members]).mean(0) if is_continuous(value) else value
        for name, value in members[0].items()
    }


class _Library:
    """The known checkpoints with their errors."""

    def __init__(self, task: Task, groups: NeuronGroups, known: Mapping[str, Weights]) -> None:
        self.task, self.groups, self.known = task, groups, known
        self.batches = list(task.data)
        self.wrong = torch.stack([self.errors(weights) for weights in known.values()])

    def errors(self, weights: Weights) -> Tensor:
        """Return which examples are answered wrongly, (examples,)."""
        wrong = []
        with eval_mode(self.task.model), torch.no_grad(), weights_in(self.task.model, weights):
            for batch in map(self.task.to, self.batches):
                classes = predicted_classes(self.task.model, batch, self.task.forward)
                wrong.append((classes != batch[1]).cpu())
        return torch.cat(wrong)

    def nearest(self, name: str, weights: Weights, without: str | None) -> Nearest:
        """Return what a checkpoint is most like, one of the known ones left out."""
        wrong = self.errors(weights)
        both, either = (self.wrong & wrong).sum(1), (self.wrong | wrong).sum(1)
        overlaps = torch.where(either > 0, both / either.clamp(min=1), 1.0).tolist()
        names = [other for other in self.known if other != without]
        by_errors = dict(zip(self.known, overlaps, strict=True))
        alike = max(names, key=by_errors.__getitem__)
        moving = {n: v for n, v in weights.items() if is_continuous(v)}
        apart = {other: self._distance(moving, self.known[other]) for other in names}
        near = min(names, key=apart.__getitem__)
        return Nearest(
            name,
            float((~wrong).double().mean()),
            by_errors[alike],
            alike,
            apart[near] / (norm(moving) or 1.0),
            near,
        )

    def _distance(self, weights: Weights, known: Weights) -> float:
        """How far a known checkpoint is, with its neurons in the best order."""
        other = {name: known[name] for name in weights}
        return norm(difference(_matched(other, weights, self.groups), weights))
