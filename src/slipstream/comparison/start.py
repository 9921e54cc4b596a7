"""Which of some checkpoints is the best start for new data, by a few labelled batches."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

import torch

from slipstream.comparison.names import correspond
from slipstream.comparison.opening import Given, Opened, open_given
from slipstream.comparison.plan import FEWEST, StartPlan
from slipstream.evaluation import Batch, Task, eval_mode
from slipstream.porting.stored import Stored
from slipstream.storage.tensor_form import TensorForm
from slipstream.training import Loop, TrainingPlan
from slipstream.weights import Weights, load_weights_, unwrapped, weights_of

FRESH = "fresh"  # the weights that the task's model has


@dataclass(frozen=True)
class StartCandidate:
    """A start, and what it is worth after some steps."""

    name: str
    loss: float  # on batches that it was not fitted on, after the steps, at the best rate
    loss_before: float  # the same, as it is
    rate: float | None  # the best learning rate; None without steps, or if all diverged
    kept: tuple[str, ...]  # tensors of the model that it has none for: a head of another size


@dataclass(frozen=True)
class StartChoice:
    """Result of `choose_start`."""

    best: StartCandidate
    candidates: tuple[StartCandidate, ...]  # the best first, the model's own weights among them
    margin: float  # how far the second one is behind, in standard errors of the difference
    gradients: int  # that all trials took together
    forward_passes: int  # that judging took, besides

    def __str__(self) -> str:
        lines = [
            f"{one.name}: loss {one.loss:.4g} ({one.loss_before:.4g} as it is)"
            for one in self.candidates
        ]
        lines.append(
            f"best: {self.best.name}, {self.margin:.1f} standard errors before the next; "
            f"{self.gradients} gradients and {self.forward_passes} forward passes"
        )
        return "\n".join(lines)


def choose_start(
    starts: Sequence[Given] | Mapping[str, Given],
    task: Task,
    *,
    plan: StartPlan | None = None,
    progress: Callable[[int, int, str], object] | None = None,
) -> StartChoice:
    """Find the best start for new data: fine-tune each one a little, and judge it on the rest.

    Every second batch is held out, then the halves change places, so each batch is judged on once
    and never by what was fitted on it. Per start, this costs `2 * len(rates) * steps` gradients and
    `batches * (1 + len(rates))` forward passes.

    Args:
        starts: Runs, files, folders or weights, as of `compare_checkpoints`; one is enough.
        task: The model, with the labelled batches. What the model has now is tried as well.
        plan: How long each is tried.
        progress: Called before each start, with its number, how many there are, and its name.

    Returns:
        All starts, the best first, and what it cost.

    Raises:
        ValueError: If there is no start, fewer than two batches, or a start fits the model nowhere.
    """
    plan = plan or StartPlan()
    opened = open_given(starts)
    batches = [task.to(batch) for batch in islice(task.data, plan.batches)]
    if len(batches) < FEWEST:
        raise ValueError(
            f"data must hold at least two batches, one to fit and one to judge on, got "
            f"{len(batches)}: use a smaller batch size."
        )
    own = weights_of(unwrapped(task.model))
    given = {one.name: _filled(one, own) for one in opened} | {FRESH: (dict(own), ())}
    tried = []
    for number, (name, (weights, kept)) in enumerate(given.items()):
        if progress:
            progress(number, len(given), name)
        tried.append(_tried(name, weights, kept, _Trial(task, batches, plan)))
    tried.sort(key=lambda one: one[0].loss)
    return StartChoice(
        tried[0][0],
        tuple(candidate for candidate, _ in tried),
        _margin(tried[0][1], tried[1][1]),
        gradients=2 * len(plan.rates) * plan.steps * len(given),
        forward_passes=len(batches) * (1 + len(plan.rates) * (plan.steps > 0)) * len(given),
    )


def _filled(one: Opened, own: Weights) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The weights of a start under the model's names, and what the model keeps."""
    forms = {name: TensorForm.of(value) for name, value in own.items()}
    model = Opened("the model", "weights", Stored(one.stored.path, own, {}, forms, {}))
    pairs = dict(correspond(one, model).pairs)
    if not pairs:
        raise ValueError(f"{one.name} has no tensor that the model has: they are different ones.")
    found = {there: one.read(here) for here, there in pairs.items()}
    return {**own, **found}, tuple(name for name in own if name not in found)


@dataclass(frozen=True)
class _Trial:
    """What all starts are tried on."""

    task: Task
    batches: Sequence[Batch]
    plan: StartPlan

    def judge(self, weights: Weights, rate: float | None) -> list[float]:
        """Return the loss on each batch, by what was fitted on the other half of them."""
        losses = [math.inf] * len(self.batches)
        for half in (0, 1):
            task = replace(self.task, model=copy.deepcopy(unwrapped(self.task.model)))
            load_weights_(task.model, weights)
            if rate is not None and not self._fit(task, self.batches[1 - half :: 2], rate):
                return losses
            with eval_mode(task.model), torch.no_grad():
                for n in range(half, len(self.batches), 2):
                    losses[n] = float(task.loss(task.model, self.batches[n]))
        return [loss if math.isfinite(loss) else math.inf for loss in losses]

    def _fit(self, task: Task, batches: Sequence[Batch], rate: float) -> bool:
        """Take the steps; say whether the loss stayed finite."""
        plan = self.plan
        how = TrainingPlan(epochs=1, optimizer=plan.optimizer, lr=rate, seed=plan.seed)
        loop = Loop(task.model, how, batch_size=task.batch_size)
        data = list(islice(cycle(batches), plan.steps))
        try:
            loop.run(lambda batch: task.loss(task.model, batch), data=data)
        except ValueError as error:
            if "finite" not in str(error):
                raise
            return False
        return True

    def mean(self, losses: Sequence[float]) -> float:
        """Return the mean over the examples."""
        sizes = [self.task.batch_size(batch) for batch in self.batches]
        return math.fsum(x * n for x, n in zip(losses, sizes, strict=True)) / sum(sizes)


def _tried(
    name: str, weights: Weights, kept: tuple[str, ...], trial: _Trial
) -> tuple[StartCandidate, list[float]]:
    before = trial.judge(weights, None)
    by_rate: dict[float | None, list[float]] = {None: before}
    if trial.plan.steps:
        by_rate = {rate: trial.judge(weights, rate) for rate in trial.plan.rates}
    rate, losses = min(by_rate.items(), key=lambda one: trial.mean(one[1]))
    mean = trial.mean(losses)
    best = rate if math.isfinite(mean) else None
    return StartCandidate(name, mean, trial.mean(before), best, kept), losses


def _margin(first: Sequence[float], second: Sequence[float]) -> float:
    """The mean difference over its standard error, batch by batch."""
    apart = [b - a for a, b in zip(first, second, strict=True)]
    mean = math.fsum(apart) / len(apart)
    if not math.isfinite(mean):
        return math.inf
    spread = math.fsum((x - mean) ** 2 for x in apart) / (len(apart) - 1) / len(apart)
    return mean / math.sqrt(spread) if spread else math.inf if mean else 0.0
