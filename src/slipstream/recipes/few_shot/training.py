"""Learning to learn from few examples: Meta-ticket, MAML, ANIL and BOIL on one engine."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import (
    Batch,
    Metric,
    Task,
    batch_size,
    eval_mode,
    evaluate,
    takes_task,
    weights_in,
)
from slipstream.recipes.few_shot.adaptation import AfterAdaptation
from slipstream.recipes.few_shot.inner_loop import head_of
from slipstream.recipes.few_shot.plan import MetaPlan
from slipstream.recipes.masks.scored_weights import ScoredWeights, maskable, neutral
from slipstream.recipes.masks.selection import Masks, churn, lowest_kept, select
from slipstream.recipes.masks.ticket import Ticket
from slipstream.recipes.masks.training import save_in_run
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, recorded
from slipstream.training.loop import Progress
from slipstream.weights import clone, load_weights_, weights_of


@dataclass(frozen=True)
class MetaTraining:
    """Result of `train_meta`: where tasks are learned from, and how it came about."""

    plan: MetaPlan
    weights: dict[str, Tensor]  # ordinary weights; of a ticket, pruned ones are 0
    ticket: Ticket | None  # of the methods that learn a mask
    losses: tuple[float, ...]  # mean loss after adaptation, of each epoch
    pruned: tuple[float, ...]  # share of the masked weights that is pruned after each epoch
    churn: tuple[float, ...]  # share of them that was pruned or restored in it
    steps: int
    tasks: int  # few-shot tasks learned
    rounds: int  # of randomisation
    seconds: float  # of the training

    @property
    def tasks_per_second(self) -> float:
        """How many few-shot tasks were learned per second."""
        return self.tasks / self.seconds if self.seconds else math.inf


@takes_task
def train_meta(
    task: Task,
    *,
    plan: MetaPlan | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> MetaTraining:
    """Learn weights, or which random weights should stay, so that few examples teach a task.

    Each step takes a batch of tasks, learns each of them by the inner steps, and moves weights or
    scores against the mean loss on the query examples; the gradient passes through the inner
    steps. A score gets the gradient straight through its mask, dL/ds = dL/dm. Of a ticket, head,
    biases and normalisation layers are not masked and not learned: each task starts from their
    initial values. BatchNorm layers normalise by the statistics of a task, always.

    Source: see `MetaPlan`.

    Args:
        task: The model, left as it was; its data are batches of few-shot tasks, and its loss is
            that of a batch of one of them, or an `AfterAdaptation` of such a loss. Its metrics,
            functions of a model and a `TaskBatch`, are taken on its validation data after every
            epoch; by default the loss after adaptation.
        plan: What is learned and how.
        run_folder: Records the weights after every epoch as a run; the ticket is written beside it.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The weights to learn tasks from, by `adapt` or within `AfterAdaptation`.

    Raises:
        ValueError: If no weight can be masked, `data` is empty or holds no tasks, the loss is not
            finite, or what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> from slipstream.training import TrainingPlan
        >>> from slipstream.testbed.tasks import TaskForm, load_tasks
        >>> tasks = load_tasks("digits", TaskForm(ways=3, shots=2, batches=5)).train
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> plan = MetaPlan("ticket", descent=TrainingPlan(epochs=2, lr=10.0))
        >>> found = train_meta(Task(model, tasks), plan=plan)
        >>> found.steps, found.tasks, list(found.ticket.masks)
        (10, 40, ['1.weight'])
    """
    plan, model = plan or MetaPlan(), task.model
    with weights_in(model, clone(weights_of(model))), eval_mode(model):
        training = _Training(task, plan)

        def after_epoch() -> None:
            training.after_epoch()
            keep()

        with recorded(
            training,
            task,
            run_folder,
            plan={"meta-ticket": asdict(plan) | {"descent": asdict(plan.outer)}},
            start=[weights_of(model)],
            measure=lambda: training.metrics() | _validated(task, plan),
        ) as keep:
            training.run(
                training.objective, data=task.data, on_epoch=after_epoch, progress=progress
            )
        result = training.result()
    if run_folder is not None and result.ticket is not None:
        save_in_run(result.ticket, NewRun.of(run_folder).folder)
    return result


def _validated(task: Task, plan: MetaPlan) -> dict[str, float]:
    """The metrics on validation data; by default the loss after adaptation."""
    if task.validation is None or isinstance(task.loss, AfterAdaptation):
        return task.validated()
    after = AfterAdaptation(replace(plan.adaptation, sparse=plan.masked), task.loss)
    metrics: Mapping[str, Metric] = task.metrics or {"loss": after}
    found = evaluate(task.model, metrics, data=task.validation)
    return {f"validation_{name}": value for name, value in found.items()}


class _Training(Loop):
    """Weights or scores under an optimiser, in a model that is borrowed."""

    def __init__(self, task: Task, plan: MetaPlan) -> None:
        self.meta, self.model = plan, task.model
        loss = task.loss.loss if isinstance(task.loss, AfterAdaptation) else task.loss
        self._after = AfterAdaptation(plan.adaptation, loss)
        self.scored = _scored(self.model, plan) if plan.masked else None
        trained = None if self.scored is None else list(self.scored.scores.values())
        super().__init__(self.model, plan.outer, trained=trained)
        self.pruned: list[float] = []
        self.churn: list[float] = []
        self.tasks = 0
        self._masks: Masks = clone(self.scored.masks) if self.scored else {}

    def objective(self, batch: Batch) -> Tensor:
        """Return the mean loss on the query examples of a batch of tasks."""
        self.tasks += batch_size(batch)
        if self.scored is None:
            return self._after(self.model, batch)
        masks = self.scored.choose()
        if self.meta.redrawn and self.step and self.step % self.meta.every == 0:
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
        self._masks = clone(masks)

    def metrics(self) -> dict[str, float]:
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
        """Continue where another one stopped."""
        super().load_state_dict(state)
        self.tasks = state["tasks"]
        if self.scored is not None:
            self.scored.load_state_dict(state["scored"])
            self.pruned, self.churn = list(state["pruned"]), list(state["churn"])
            self._masks = clone(self.scored.masks)

    def result(self) -> MetaTraining:
        """Return the present result."""
        return MetaTraining(
            plan=self.meta,
            weights=clone(weights_of(self.model)),
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
