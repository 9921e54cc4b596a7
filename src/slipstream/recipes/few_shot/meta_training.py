"""Learning to learn from few examples: Meta-ticket, MAML, ANIL and BOIL on one engine."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import (
    Batch,
    Loss,
    Metric,
    TaskBatch,
    batch_size,
    classification_loss,
    eval_mode,
    to_device,
    weights_in,
)
from slipstream.evaluation.batches import device_of
from slipstream.recipes.few_shot.adaptation import AfterAdaptation, head_of
from slipstream.recipes.few_shot.plan import MetaPlan
from slipstream.recipes.masks.scored_weights import ScoredWeights, maskable, neutral
from slipstream.recipes.masks.selection import Masks, churn, lowest_kept, select
from slipstream.recipes.masks.ticket import Ticket
from slipstream.recipes.masks.training import save_beside
from slipstream.training.loop import Descending, Progress
from slipstream.training.recorded_training import kept, validated
from slipstream.weights import Weights, copy, load_weights_, weights_of


@dataclass(frozen=True)
class MetaTraining:
    """Result of `train_meta`: where tasks are learned from, and how it came about."""

    plan: MetaPlan
    weights: dict[str, Tensor]  # ordinary weights; of a ticket, those that fell are 0
    ticket: Ticket | None  # of the methods that learn a mask
    losses: tuple[float, ...]  # mean loss after adaptation, of each epoch
    pruned: tuple[float, ...]  # share of the masked weights that had fallen after each epoch
    churn: tuple[float, ...]  # share of them that fell or came back in it
    steps: int
    tasks: int  # that were learned
    rounds: int  # of randomisation
    seconds: float  # of the training

    @property
    def tasks_per_second(self) -> float:
        """How fast tasks went by."""
        return self.tasks / self.seconds if self.seconds else math.inf


@dataclass(frozen=True)
class TaskScores:
    """Result of `judge_tasks`: a metric after adaptation, over many tasks."""

    mean: float
    interval: float  # half the width of the 95 % interval of the mean, by the normal distribution
    tasks: int
    batches: Tensor  # float64, (batches,): the mean of each batch


def train_meta(
    model: nn.Module,
    loss: Loss = classification_loss,
    *,
    data: Iterable[TaskBatch],
    plan: MetaPlan | None = None,
    validation: Iterable[TaskBatch] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    run_folder: str | Path | None = None,
    configuration: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> MetaTraining:
    """Learn weights, or which random weights should stay, so that few examples teach a task.

    Each step takes a batch of tasks, learns each of them by the inner steps, and moves weights or
    scores against the mean loss on the query examples; the gradient passes through the inner
    steps. A score gets the gradient straight through its mask, dL/ds = dL/dm. Of a ticket, head,
    biases and normalisation layers are not masked and not learned: they begin each task as they
    were at the start. BatchNorm layers normalise by the statistics of a task, always.

    Source: see `MetaPlan`.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch of one task to the batch's mean loss, a 0-dim tensor.
        data: Batches of tasks; if it has a method `epoch(number)`, that gives those of an epoch.
        plan: What is learned and how.
        validation: Batches of other tasks, on which `metrics` are taken after every epoch.
        metrics: Name to a function of the model and a batch of tasks, such as `AfterAdaptation`;
            recorded with the run.
        run_folder: Records the weights after every epoch as a run; a ticket is kept beside.
        configuration: What makes the run, as plain data; kept in it.
        overwrite: Whether to delete the snapshots of a run that is already there.
        resume: Whether to go on with a training that was interrupted; begins if there is none.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The weights to learn tasks from, by `adapt` or within `AfterAdaptation`.

    Raises:
        ValueError: If no weight can be masked, `data` is empty or holds no tasks, the loss is not
            finite, or what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> from slipstream.training import Descent
        >>> from slipstream.testbed.tasks import TaskForm, load_tasks
        >>> tasks = load_tasks("digits", TaskForm(ways=3, shots=2, batches=5)).train
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> plan = MetaPlan("ticket", descent=Descent(epochs=2, lr=10.0))
        >>> found = train_meta(model, data=tasks, plan=plan)
        >>> found.steps, found.tasks, list(found.ticket.masks)
        (10, 40, ['1.weight'])
    """
    plan = plan or MetaPlan()
    with weights_in(model, copy(weights_of(model))), eval_mode(model):
        training = _Training(model, loss, plan)

        def measure() -> dict[str, float]:
            return training.told() | validated(model, metrics, validation)

        keeping = kept(
            training,
            recorded=model,
            run_folder=run_folder,
            recipe={"meta-ticket": asdict(plan) | {"descent": asdict(plan.outer)}},
            start=[weights_of(model)],
            configuration=configuration,
            measure=measure,
            overwrite=overwrite,
            resume=resume,
        )
        with keeping as keep:

            def after_epoch() -> None:
                training.after_epoch()
                keep()

            if not training.finished:
                training.run(training.objective, data=data, on_epoch=after_epoch, progress=progress)
        result = training.result()
    if run_folder is not None and result.ticket is not None:
        save_beside(result.ticket, Path(run_folder))
    return result


def judge_tasks(
    model: nn.Module,
    metric: Metric,
    *,
    weights: Weights | None = None,
    data: Iterable[TaskBatch],
) -> TaskScores:
    """Return the mean of a metric after adaptation over many tasks, and how sure it is.

    Args:
        model: Any module; left as it was.
        metric: What is measured after which inner steps: an `AfterAdaptation`.
        weights: Where they start, instead of at the model's own weights.
        data: Batches of equally many tasks.

    Returns:
        Mean and interval; the interval comes from the spread of the means of batches.

    Raises:
        ValueError: If there is no batch.

    Example:
        >>> from slipstream.recipes.few_shot.adaptation import Adaptation
        >>> from slipstream.evaluation import accuracy
        >>> from slipstream.testbed.tasks import TaskForm, load_tasks
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> tasks = load_tasks("digits", TaskForm(ways=2, shots=5, queries=10)).validation
        >>> metric = AfterAdaptation(Adaptation(0.1), metric=accuracy)
        >>> scores = judge_tasks(model, metric, data=tasks)
        >>> scores.tasks, scores.mean > 0.7
        (100, True)
    """
    found, sizes, device = [], [], device_of(model)
    with weights_in(model, weights), eval_mode(model), torch.no_grad():
        for batch in data:
            found.append(float(metric(model, to_device(batch, device))))
            sizes.append(batch_size(batch))
    if not found:
        raise ValueError("data is empty: there is no task to be judged by.")
    batches, shares = torch.tensor(found).double(), torch.tensor(sizes).double()
    mean = (batches * shares).sum() / shares.sum()
    error = float(batches.std() / math.sqrt(len(batches))) if len(batches) > 1 else math.nan
    return TaskScores(float(mean), 1.96 * error, sum(sizes), batches)


class _Training(Descending):
    """Weights or scores under an optimiser, in a model that is borrowed."""

    def __init__(self, model: nn.Module, loss: Loss, plan: MetaPlan) -> None:
        self.meta, self.model = plan, model
        self._after = AfterAdaptation(plan.adaptation, loss)
        self.scored = _scored(model, plan) if plan.masked else None
        trained = None if self.scored is None else list(self.scored.scores.values())
        super().__init__(model, plan.outer, trained=trained)
        self.pruned: list[float] = []
        self.churn: list[float] = []
        self.tasks = 0
        self._masks: Masks = copy(self.scored.masks) if self.scored else {}

    def objective(self, batch: Batch) -> Tensor:
        """Return the mean loss on the query examples of a batch of tasks."""
        self.tasks += batch_size(batch)
        if self.scored is None:
            return self._after(self.model, batch)
        every = self.meta.every
        masks = self.scored.choose()
        if self.meta.redrawn and self.step and self.step % every == 0:
            self.scored.randomize(self.meta.redrawn)
        values = self.scored.random
        soft = {
            name: _StraightThrough.apply(score, masks[name].to(values[name]))  # type: ignore[no-untyped-call]
            for name, score in self.scored.scores.items()
        }
        free = {n: values.get(n, p.detach()) for n, p in self.model.named_parameters()}
        return self._after.mean(self.model, batch, free=free, masks=soft)

    def after_epoch(self) -> None:
        """Put the weights that stay into the model, and note how the masks changed."""
        if self.scored is None:
            return
        self.scored.put()
        masks = self.scored.masks
        fallen = sum(int((~mask).sum()) for mask in masks.values())
        self.pruned.append(fallen / sum(mask.numel() for mask in masks.values()))
        self.churn.append(churn(self._masks, masks))
        self._masks = copy(masks)

    def told(self) -> dict[str, float]:
        """Return what is recorded of the masks."""
        return {"pruned": self.pruned[-1], "churn": self.churn[-1]} if self.pruned else {}

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        own: dict[str, Any] = {"tasks": self.tasks}
        if self.scored is not None:
            own |= {"scored": self.scored.state_dict()}
            own |= {"pruned": list(self.pruned), "churn": list(self.churn)}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stopped."""
        super().load_state_dict(state)
        self.tasks = state["tasks"]
        if self.scored is not None:
            self.scored.load_state_dict(state["scored"])
            self.pruned, self.churn = list(state["pruned"]), list(state["churn"])
            self._masks = copy(self.scored.masks)

    def result(self) -> MetaTraining:
        """Return what there is now."""
        return MetaTraining(
            plan=self.meta,
            weights=copy(weights_of(self.model)),
            ticket=None if self.scored is None else self.scored.ticket(),
            losses=tuple(self.losses),
            pruned=tuple(self.pruned),
            churn=tuple(self.churn),
            steps=self.step,
            tasks=self.tasks,
            rounds=0 if self.scored is None else self.scored.rounds,
            seconds=self.seconds,
        )


def _scored(model: nn.Module, plan: MetaPlan) -> ScoredWeights:
    """Random weights with scores in the body of a model, the rest neutral."""
    weights = maskable(model, (*plan.exclude, *head_of(model, plan.head)))
    load_weights_(model, neutral(model))
    shares = dict.fromkeys(weights, plan.pruned)
    thresholds: dict[str, Tensor] = {}

    def choose(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if plan.threshold == "top-k":
            return select(scores, shares)
        if not thresholds:  # at the start, where the scores are those of the seed
            thresholds.update(
                {n: lowest_kept(s.detach().flatten(), plan.pruned) for n, s in scores.items()}
            )
        return {name: score >= thresholds[name] for name, score in scores.items()}

    return ScoredWeights(model, weights, initial=plan.initial, seed=plan.seed, choose=choose)


class _StraightThrough(torch.autograd.Function):
    """The mask of scores, which hands its gradient to them."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, mask: Tensor) -> Tensor:
        ctx.kind = score.dtype
        return mask

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0].to(ctx.kind), None
