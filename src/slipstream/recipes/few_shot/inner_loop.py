"""The inner loop: plain gradient steps on the examples of one task, or of many at once."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.utils._pytree import tree_map

from slipstream.evaluation.batches import Batch, Loss, TaskBatch, batch_size
from slipstream.evaluation.swapped_weights import functional_call
from slipstream.recipes.few_shot.plan import Adaptation
from slipstream.recipes.few_shot.task_layers import in_place, task_layers
from slipstream.recipes.patterns import matching


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
    if not names:
        raise ValueError(f"{type(model).__name__} has no parameters.")
    if patterns:
        found = {name for one in patterns for name in matching(names, one, name="head")}
        return [name for name in names if name in found]
    owner = names[-1].rpartition(".")[0]
    return [name for name in names if name.rpartition(".")[0] == owner]


class BoundFunction(nn.Module):
    """A function of a model and a batch, as a module that holds the model."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Batch], Any]) -> None:
        """Hold both; neither is copied."""
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Batch) -> Any:
        """Call the function."""
        return self.function(self.model, batch)


class InnerLoop:
    """The inner loop of one model."""

    def __init__(
        self,
        adaptation: Adaptation,
        model: nn.Module,
        loss: Loss,
        free: Mapping[str, Tensor] | None,
        masks: Mapping[str, Tensor] | None,
    ) -> None:
        """Begin at the parameters of the model, or at `free`, times `masks`."""
        self._how, self._loss = adaptation, BoundFunction(model, loss)
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
            return call_at(self._loss, {**self._held, **self._masked(free)}, support)

        for _ in range(self._how.steps):
            slopes = grad(loss_at)(now)
            if not self._how.second_order:
                slopes = {name: slope.detach() for name, slope in slopes.items()}
            now = {name: value - self._how.rate * slopes[name] for name, value in now.items()}
        return {**self._held, **self._masked(now)}

    def learn_together(self, batch: TaskBatch, judge: BoundFunction) -> Tensor:
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
                    loss = call_at(self._loss, weights, support) * tasks  # the sum over tasks
                    seen = {name: layer.seen() for name, layer in layers.items()}
                    at = [value for values in seen.values() for value in values]
                    slopes = iter(
                        torch.autograd.grad(loss, at, create_graph=double, materialize_grads=True)
                    )
                for name, layer in layers.items():
                    layer.learn(list(islice(slopes, len(seen[name]))), how.rate)
            return torch.as_tensor(call_at(judge, weights, query))

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


def call_at(call: BoundFunction, weights: Mapping[str, Tensor], batch: Batch) -> Any:
    """Return what a function returns with other weights in its model."""
    return functional_call(call, {f"model.{n}": v for n, v in weights.items()}, (batch,))
