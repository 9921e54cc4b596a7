"""How well a task is learned from given weights: losses and metrics after a few inner steps."""

import copy as copying
import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

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
from slipstream.recipes.few_shot.task_layers import batchnorm_in_parts, in_place, task_layers
from slipstream.weights import Weights, copy, weights_of

Adapted = Literal["all", "head", "body"]
Batching = Literal["auto", "together", "vmap", "none"]  # none: one task after another


@dataclass(frozen=True)
class Adaptation:
    """The inner loop, as plain data: plain gradient steps on the examples of one task.

    Example:
        >>> Adaptation(adapted="tail")
        Traceback (most recent call last):
        ...
        ValueError: adapted must be all, head or body, got 'tail'.
    """

    rate: float = 0.4  # of the inner steps, alpha
    steps: int = 1
    adapted: Adapted = "all"  # all is MAML; only the head, ANIL; only the body, BOIL
    head: tuple[str, ...] = ()  # patterns of its tensors; the last layer with weights if empty
    second_order: bool = True  # whether the meta-gradient passes through the inner gradients
    sparse: bool = False  # weights that are 0 in a matrix that is not all 0 stay 0
    batching: Batching = "auto"  # of the tasks: the first of the others that is proven

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate}.")
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}.")
        for name, kind in {"adapted": Adapted, "batching": Batching}.items():
            if getattr(self, name) not in get_args(kind):
                *most, last = get_args(kind)
                known = f"{', '.join(most)} or {last}"
                raise ValueError(f"{name} must be {known}, got {getattr(self, name)!r}.")
        if isinstance(self.head, str):
            raise ValueError(f"head must list patterns, got a text: write head=({self.head!r},).")
        object.__setattr__(self, "head", tuple(self.head))


@dataclass(frozen=True)
class AfterAdaptation:
    """The loss of a batch of tasks after each was learned from its own support examples.

    L = mean over tasks of loss(w - alpha grad loss(w; support); query), which is a loss like any
    other, of a model and a `TaskBatch`: it can be trained, transferred and drawn. With `metric`,
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
        numbers and gradients as one task after another.

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
        learner = _Learner(self.adaptation, model, self.loss, free, masks)
        with batch_statistics(model):
            return learner.learn_together(batch, _Call(model, self.metric or self.loss))

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
            One number for each task, (tasks,).

        Raises:
            ValueError: If the batch is no `TaskBatch`, or its tasks cannot be batched in the way
                that is asked for.
        """
        batching = self._batching(model, batch)
        learner = _Learner(self.adaptation, model, self.loss, free, masks)
        judge = _Call(model, self.metric or self.loss)

        def one(task: TaskBatch) -> Any:
            return _at(judge, learner.learn(task.support), task.query)

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
                f"batching={asked!r} does not give the numbers that one task after another gives "
                f"with this {type(model).__name__}; let it be chosen: batching='auto'."
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
    the batch or in a loss that is no mean, or if a layer with inner steps is none that can hold
    them apart. Under vmap, PyTorch takes wrong second derivatives of some operators, such as
    `layer_norm`.

    Args:
        objective: What is computed.
        way: `together` or `vmap`.
        model: Any module; left as it was.
        batch: Tasks of equal size.

    Returns:
        Whether the mean of both, and its gradient, are those of one task after another.
    """
    twin = copying.deepcopy(model).double().eval()
    two = tree_map(lambda t: t[:2].double() if t.is_floating_point() else t[:2], batch)
    parameters = [p for p in twin.parameters() if p.requires_grad]

    def found(way: Batching) -> list[Tensor]:
        alike = replace(objective, adaptation=replace(objective.adaptation, batching=way))
        values = []
        for wanted in (alike, replace(alike, metric=None)):
            _PROVEN.setdefault(twin, {})[wanted, way] = True
            values.append(wanted.mean(twin, two))
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


def adapt(
    model: nn.Module,
    loss: Loss,
    *,
    support: Batch,
    adaptation: Adaptation | None = None,
    weights: Weights | None = None,
) -> dict[str, Tensor]:
    """Learn one task from a few examples, by the inner steps alone.

    Args:
        model: Any module; left as it was; in eval mode meanwhile, BatchNorm by batch statistics.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        support: The examples, a batch of one task.
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
        >>> adapt(model, loss, support=torch.ones(3, 1), adaptation=Adaptation(rate=0.25))
        {'weight': tensor([[0.2500]])}
    """
    with weights_in(model, weights), eval_mode(model), batch_statistics(model):
        found = _Learner(adaptation or Adaptation(), model, loss, None, None).learn(support)
        found = copy({name: value.detach() for name, value in found.items()})
    kept = {**weights_of(model), **(weights or {})}
    return {name: found.get(name, value).detach().clone() for name, value in kept.items()}


def head_of(model: nn.Module, patterns: tuple[str, ...] = ()) -> list[str]:
    """Return the names of the head's parameters.

    Args:
        model: Any module.
        patterns: Of the names; if there is none, the head is the last layer that has parameters.

    Returns:
        The names, in the order of the model.

    Raises:
        ValueError: If a pattern matches nothing, or there is no parameter.

    Example:
        >>> head_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
        ['2.weight', '2.bias']
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"head: {pattern!r} matches no parameter; there are {', '.join(names)}."
            )
    if not names:
        raise ValueError(f"{type(model).__name__} has no parameters.")
    if patterns:
        return [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    owner = names[-1].rpartition(".")[0]
    return [name for name in names if name.rpartition(".")[0] == owner]


class _Call(nn.Module):
    """A function of a model and a batch, as a module that holds the model."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Batch], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Batch) -> Any:
        return self.function(self.model, batch)


class _Learner:
    """The inner loop of one model."""

    def __init__(
        self,
        adaptation: Adaptation,
        model: nn.Module,
        loss: Loss,
        free: Mapping[str, Tensor] | None,
        masks: Mapping[str, Tensor] | None,
    ) -> None:
        self._how, self._loss = adaptation, _Call(model, loss)
        values = dict(model.named_parameters()) if free is None else dict(free)
        if masks is None and adaptation.sparse:
            masks = {n: (v != 0).to(v) for n, v in values.items() if _is_sparse(v)}
        self._masks = dict(masks or {})
        moved = self._moved(model)
        self._start = {name: value for name, value in values.items() if name in moved}
        self._held = self._masked({n: v for n, v in values.items() if n not in moved})

    def learn(self, support: Batch) -> dict[str, Tensor]:
        """Return the weights after the inner steps, masked."""
        now = self._start

        def loss_at(free: dict[str, Tensor]) -> Any:
            return _at(self._loss, {**self._held, **self._masked(free)}, support)

        for _ in range(self._how.steps):
            slopes = grad(loss_at)(now)
            if not self._how.second_order:
                slopes = {name: slope.detach() for name, slope in slopes.items()}
            now = {name: value - self._how.rate * slopes[name] for name, value in now.items()}
        return {**self._held, **self._masked(now)}

    def learn_together(self, batch: TaskBatch, judge: _Call) -> Tensor:
        """Return the mean over tasks, all in one pass."""
        tasks, how, model = batch_size(batch), self._how, self._loss.model
        double = how.second_order and torch.is_grad_enabled()
        layers = task_layers(
            model,
            tasks=tasks,
            moved=list(self._start),
            # m g for the step, times m for the weights; a gradient passes through the first only
            # where it passes through g.
            masks={n: m * (m if double else m.detach()) for n, m in self._masks.items()},
            keep="none" if not double else "single" if how.steps == 1 else "several",
        )
        support, query = (tree_map(lambda t: t.flatten(0, 1), part) for part in batch)
        weights = {**self._held, **self._masked(self._start)}
        with in_place(model, layers):
            for _ in range(how.steps):
                with torch.enable_grad():
                    loss = _at(self._loss, weights, support) * tasks  # the sum over tasks
                    seen = {name: layer.seen() for name, layer in layers.items()}
                    at = [value for values in seen.values() for value in values]
                    slopes = iter(
                        torch.autograd.grad(loss, at, create_graph=double, materialize_grads=True)
                    )
                for name, layer in layers.items():
                    layer.learn(list(islice(slopes, len(seen[name]))), how.rate)
            return torch.as_tensor(_at(judge, weights, query))

    def _moved(self, model: nn.Module) -> list[str]:
        """Which parameters the inner steps move."""
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        if self._how.adapted == "all":
            return trained
        head = head_of(model, self._how.head)
        return [name for name in trained if (name in head) == (self._how.adapted == "head")]

    def _masked(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks = self._masks
        return {n: v * masks[n] if n in masks else v for n, v in values.items()}


def _is_sparse(value: Tensor) -> bool:
    """Whether some entries of a matrix are 0, but not all."""
    return value.dim() > 1 and 0 < int(value.count_nonzero()) < value.numel()


def _at(call: _Call, weights: Mapping[str, Tensor], batch: Batch) -> Any:
    """What a function returns with other weights in its model."""
    return functional_call(call, {f"model.{n}": v for n, v in weights.items()}, (batch,))
