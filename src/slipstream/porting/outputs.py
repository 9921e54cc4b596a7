"""What networks compute: the outputs that a port should have, on inputs without labels."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, eval_mode, weights_in
from slipstream.storage.fingerprints import tensors_in
from slipstream.weights import Weights

Outputs = tuple[Tensor, ...]
_KEPT = 1 << 24  # outputs that are kept; of more batches they are computed again


def outputs_of(found: object) -> Outputs:
    """Return the tensors that a model computes, of whatever it returns.

    Args:
        found: A tensor, or a nest of them; of what has `logits`, as in transformers, only those.

    Returns:
        All tensors of floating point in it.

    Raises:
        ValueError: If there is none.
    """
    named = found.get("logits") if isinstance(found, Mapping) else getattr(found, "logits", None)
    tensors = tuple(
        t for t in tensors_in(found if named is None else named) if t.is_floating_point()
    )
    if not tensors:
        raise ValueError(
            f"The model returns a {type(found).__name__} without a tensor of floating point, so "
            "there are no outputs to carry: give Task(..., forward=...) that returns them."
        )
    return tensors


def computed(task: Task, weights: Weights, batch: Batch) -> Outputs:
    """Return the outputs at some weights, in eval mode, in float32 or better."""
    with weights_in(task.model, weights), eval_mode(task.model), torch.no_grad():
        return tuple(_wide(t) for t in outputs_of(task.forward(task.model, task.to(batch))))


@dataclass
class TargetFunction:
    """The function that a port should compute: `B(x) + A*(x) - A(x)`, or `A*(x)`.

    Source: "Tuning Language Models by Proxy" (Liu, Han, Wang, Tsvetkov, Choi, Smith, 2024).
    """

    task: Task
    batches: Sequence[Batch]  # on which it is known
    from_base: Weights
    fine_tuned: Weights
    to_base: Weights
    itself: bool = False  # A*'s outputs themselves
    _kept: dict[int, tuple[Outputs, ...]] = field(default_factory=dict)

    def of(self, number: int) -> Outputs:
        """Return the outputs that the port should have on a batch."""
        return self._known(number)[int(self.itself)]

    def change(self, number: int) -> Outputs:
        """Return `A*(x) - A(x)`: how the fine-tune changed the outputs of its own base."""
        return self._known(number)[2]

    def _known(self, number: int) -> tuple[Outputs, ...]:
        if number in self._kept:
            return self._kept[number]
        base, tuned, own = (
            computed(self.task, weights, self.batches[number])
            for weights in (self.from_base, self.fine_tuned, self.to_base)
        )
        change = tuple(last - first for last, first in zip(tuned, base, strict=True))
        moved = tuple(mine + step for mine, step in zip(own, change, strict=True))
        if (len(self._kept) + 1) * sum(t.numel() for t in change) <= _KEPT:
            self._kept[number] = (moved, tuned, change)
        return moved, tuned, change


class _Changed(nn.Module):
    """A model whose outputs are multiplied, or raised by a constant."""

    def __init__(self, model: nn.Module, *, factor: float = 1.0, more: float = 0.0) -> None:
        super().__init__()
        self.model, self.factor, self.more = model, factor, more

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs) * self.factor + self.more


def are_logits(task: Task, batch: Batch) -> bool:
    """Return whether the loss sees the outputs as logits: not a constant added to all of them.

    Args:
        task: The model with its loss.
        batch: A labelled batch.

    Returns:
        Whether that is so; False of losses that need more than a call of the model.
    """
    models = [_Changed(task.model), _Changed(task.model, more=1.0), _Changed(task.model, factor=2)]
    try:
        with eval_mode(task.model), torch.no_grad():
            first, raised, doubled = (float(task.loss(m, task.to(batch))) for m in models)
    except (TypeError, AttributeError):
        return False
    return math.isclose(first, raised, rel_tol=1e-4) and not math.isclose(first, doubled)


def last_parameters(
    model: nn.Module, names: Collection[str], run: Callable[[], Tensor]
) -> list[str]:
    """Return the parameters that no other layer's input depends on, and a result does.

    Args:
        model: The model, which is run in eval mode.
        names: Parameters among which they are.
        run: Runs the model, and returns a number that depends on what it computes.

    Returns:
        Their names.
    """
    parameters = {n: p for n, p in model.named_parameters() if n in names and p.requires_grad}
    layers = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs = [t for t in tensors_in((args, kwargs)) if t.is_floating_point()]
        seen.extend(t.sum() for t in inputs if t.requires_grad)

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    try:
        with eval_mode(model), torch.enable_grad():
            result = run()
    finally:
        for hook in hooks:
            hook.remove()
    if not parameters or not result.requires_grad:
        return []
    values = list(parameters.values())
    used = torch.autograd.grad(result, values, allow_unused=True, retain_graph=True)
    inner: tuple[Tensor | None, ...] = (None,) * len(values)
    if seen:
        inner = torch.autograd.grad(seen, values, allow_unused=True)
    return [
        n for n, u, i in zip(parameters, used, inner, strict=True) if u is not None and i is None
    ]


def _wide(value: Tensor) -> Tensor:
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))
