"""How well a task is learned from given weights: losses and metrics after a few inner steps."""

import copy as copying
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from slipstream.evaluation import Task, takes_task
from slipstream.evaluation.batches import (
    Batch,
    Loss,
    Metric,
    TaskBatch,
    batch_size,
    classification_loss,
)
from slipstream.evaluation.batchnorm import batch_statistics
from slipstream.evaluation.swapped_weights import eval_mode, weights_in
from slipstream.recipes.few_shot.inner_loop import BoundFunction, InnerLoop, call_at
from slipstream.recipes.few_shot.plan import Adaptation, Batching
from slipstream.recipes.few_shot.task_layers import batchnorm_in_parts
from slipstream.weights import Weights, clone, weights_of


@dataclass(frozen=True)
class AfterAdaptation:
    """The loss of a batch of tasks after each was learned from its own support examples.

    L = mean over tasks of loss(w - alpha grad loss(w; support); query), which is a loss like any
    other, of a model and a `TaskBatch`: it can be trained, transferred and plotted. With `metric`,
    that is taken of the query examples instead. BatchNorm layers normalise by the statistics of
    the batch, and leave theirs alone.

    Source: "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (Finn, Abbeel,
    Levine, 2017), equation 1.

    Example:
        >>> bowl = lambda model, batch: (model.weight - batch.mean()).square().sum() / 2
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> tasks = TaskBatch(torch.tensor([[4.0], [8.0]]), torch.tensor([[4.0], [8.0]]))
        >>> AfterAdaptation(Adaptation(rate=0.5), bowl)(model, tasks).item()  # (2 + 8) / 2
        5.0
    """

    adaptation: Adaptation = field(default_factory=Adaptation)
    loss: Loss = classification_loss
    metric: Metric | None = None  # must return a tensor; the loss if not given

    def __call__(self, model: nn.Module, batch: TaskBatch) -> Tensor:
        """Return the mean over the tasks of the batch, a 0-dim tensor."""
        return self.mean(model, batch)

    def mean(
        self,
        model: nn.Module,
        batch: TaskBatch,
        *,
        free: Mapping[str, Tensor] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the mean over the tasks of the batch, a 0-dim tensor.

        All tasks pass through the model together, in layers that hold apart what each learned, or
        else by vmap: whichever is proven, on the first batch that a model sees, to give the same
        values and gradients as one task after another.

        Args:
            model: Any module; in the mode it is in.
            batch: Tasks of equal size.
            free: See `each`.
            masks: See `each`.

        Returns:
            The loss, or the metric.

        Raises:
            ValueError: As `each`.
        """
        if self._batching(model, batch) != "together":
            return self.each(model, batch, free=free, masks=masks).mean()
        learner = InnerLoop(self.adaptation, model, self.loss, free, masks)
        with batch_statistics(model):
            return learner.learn_together(batch, BoundFunction(model, self.metric or self.loss))

    def each(
        self,
        model: nn.Module,
        batch: TaskBatch,
        *,
        free: Mapping[str, Tensor] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the loss, or the metric, of each task.

        Args:
            model: Any module; in the mode it is in.
            batch: Tasks of equal size.
            free: What the inner steps move, a tensor for each parameter; the model's own
                parameters if not given.
            masks: What some of them are multiplied with before the model runs, in [0, 1]: so what
                a mask prunes has no part in the function, and does not move.

        Returns:
            A value for each task, (tasks,).

        Raises:
            ValueError: If the batch is not a `TaskBatch`, or its tasks cannot be batched in the way
                that is asked for.
        """
        batching = self._batching(model, batch)
        learner = InnerLoop(self.adaptation, model, self.loss, free, masks)
        judge = BoundFunction(model, self.metric or self.loss)

        def one(task: TaskBatch) -> Any:
            return call_at(judge, learner.learn(task.support), task.query)

        with batch_statistics(model), batchnorm_in_parts(model):
            if batching == "none":
                tasks = [tree_map(lambda t, n=n: t[n], batch) for n in range(batch_size(batch))]
                return torch.stack([torch.as_tensor(one(task)) for task in tasks])
            found: Tensor = vmap(one, randomness="different")(batch)
            return found

    def _batching(self, model: nn.Module, batch: TaskBatch) -> Batching:
        """How the tasks of a batch are computed."""
        if not isinstance(batch, TaskBatch):
            raise ValueError(
                f"A batch must be a TaskBatch(support, query), got a {type(batch).__name__}: "
                "learning from few examples needs batches of tasks."
            )
        asked = self.adaptation.batching
        if batch_size(batch) == 1:
            return "none"
        ways: tuple[Batching, ...] = ("together", "vmap") if asked == "auto" else (asked,)
        for way in ways:
            if way == "none" or self._proven(way, model, batch):
                return way
        if asked != "auto":
            raise ValueError(
                f"batching={asked!r} does not give the values that one task after another gives "
                f"with this {type(model).__name__}; let the method be chosen: batching='auto'."
            )
        return "none"

    def _proven(self, way: Batching, model: nn.Module, batch: TaskBatch) -> bool:
        known = _PROVEN.setdefault(model, {})
        key = (self, way)
        if key not in known:
            known[key] = agrees(self, way, model, batch)
        return known[key]


_PROVEN: WeakKeyDictionary[nn.Module, dict[tuple[AfterAdaptation, Batching], bool]] = (
    WeakKeyDictionary()
)


def agrees(objective: AfterAdaptation, way: Batching, model: nn.Module, batch: TaskBatch) -> bool:
    """Return whether tasks may be computed in a way at once, in float64 on the first two of them.

    They may not pass together if examples of different tasks meet anywhere, in an operation over
    the batch or in a loss that is not a mean, or if a layer with inner steps cannot keep them
    apart. Under vmap, PyTorch takes wrong second derivatives of some operators, such as
    `layer_norm`.

    Args:
        objective: What is computed.
        way: `together` or `vmap`.
        model: Any module; left as it was.
        batch: Tasks of equal size.

    Returns:
        Whether the mean of both, and its gradient, are those of one task after another.
    """
    double = copying.deepcopy(model).double().eval()
    two = tree_map(lambda t: t[:2].double() if t.is_floating_point() else t[:2], batch)
    parameters = [p for p in double.parameters() if p.requires_grad]

    def found(way: Batching) -> list[Tensor]:
        alike = replace(objective, adaptation=replace(objective.adaptation, batching=way))
        values = []
        for wanted in (alike, replace(alike, metric=None)):
            _PROVEN.setdefault(double, {})[wanted, way] = True
            values.append(wanted.mean(double, two))
        slopes = torch.autograd.grad(values[-1], parameters, materialize_grads=True)
        return [*(value.detach() for value in values), *slopes]

    with torch.enable_grad():
        try:
            expected, given = found("none"), found(way)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False  # an error of the model itself comes again, one task after another
    scale = max(float(value.abs().max()) for value in expected if value.numel())
    if not math.isfinite(scale):  # the loss says so where it is needed
        return False
    return all(
        torch.allclose(a, b, rtol=1e-6, atol=1e-7 * scale)
        for a, b in zip(given, expected, strict=True)
    )


@takes_task
def adapt(
    task: Task,
    *,
    support: Batch,
    adaptation: Adaptation | None = None,
    weights: Weights | None = None,
) -> dict[str, Tensor]:
    """Learn one task from a few examples, by the inner steps alone.

    Args:
        task: Model and loss. The model is left as it was; in eval mode meanwhile, BatchNorm by
            batch statistics.
        support: The examples, a batch.
        adaptation: How.
        weights: Where to start, instead of the model's own.

    Returns:
        Ordinary weights of the model, buffers included.

    Raises:
        ValueError: If a pattern of the head matches nothing.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> loss = lambda model, batch: (model(batch) - 1).square().mean() / 2
        >>> adapt(Task(model, loss=loss), support=torch.ones(3, 1), adaptation=Adaptation(0.25))
        {'weight': tensor([[0.2500]])}
    """
    model, how = task.model, adaptation or Adaptation()
    with weights_in(model, weights), eval_mode(model), batch_statistics(model):
        found = InnerLoop(how, model, task.loss, None, None).learn(support)
        found = clone({name: value.detach() for name, value in found.items()})
    kept = {**weights_of(model), **(weights or {})}
    return {name: found.get(name, value).detach().clone() for name, value in kept.items()}
