"""Metrics and gradients over a data set: means weighted by batch size, the model untouched."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from slipstream.evaluation.batches import Batch, Loss, Metric, batch_size, sized_batches
from slipstream.evaluation.swapped_weights import eval_mode, weights_in
from slipstream.weights import Weights, unwrapped


def evaluate(
    model: nn.Module,
    metrics: Mapping[str, Metric],
    *,
    weights: Weights | None = None,
    data: Iterable[Batch],
    batch_size: Callable[[Batch], int] = batch_size,
) -> dict[str, float]:
    """Return the mean of every metric over the examples of `data`, in eval mode.

    Args:
        model: Any module; left as it was.
        metrics: Name to a function of the model and a batch that returns the batch's mean.
        weights: What to evaluate instead of the model's own tensors.
        data: Batches, not necessarily of equal size.
        batch_size: What a batch weighs in the mean: its examples, or its tokens.

    Returns:
        Name to mean, weighted by batch size and summed in float64.

    Raises:
        ValueError: If `data` is empty.

    Example:
        >>> batches = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0])]
        >>> evaluate(nn.Identity(), {"mean": lambda model, batch: batch.mean()}, data=batches)
        {'mean': 2.0}
    """
    totals = dict.fromkeys(metrics, 0.0)
    count = 0
    with weights_in(model, weights), eval_mode(model), torch.no_grad():
        for batch, size in sized_batches(model, data, batch_size):
            count += size
            for name, metric in metrics.items():
                totals[name] += size * float(metric(model, batch))
    return {name: total / count for name, total in totals.items()}


def gradient(
    model: nn.Module,
    loss: Loss,
    *,
    weights: Weights | None = None,
    data: Iterable[Batch],
    batch_size: Callable[[Batch], int] = batch_size,
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss over the examples of `data`, in eval mode.

    Eval mode makes it a function of weights and data alone: BatchNorm uses its running
    statistics, dropout is off.

    Args:
        model: Any module; left as it was, its `.grad` fields included.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        weights: Where to take the gradient, instead of at the model's own tensors.
        data: Batches, not necessarily of equal size.
        batch_size: What a batch weighs in the mean: its examples, or its tokens.

    Returns:
        Every parameter that requires a gradient by name, in the parameter's dtype, summed in
        float32 or better; zeros where the loss does not depend on it.

    Raises:
        ValueError: If `data` is empty, or a batch loss is not finite, not 0-dim, or depends on no
            parameter.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> batches = [torch.ones(3, 1), torch.full((1, 1), 5.0)]
        >>> gradient(model, lambda model, batch: model(batch).mean(), data=batches)
        {'weight': tensor([[2.]])}
    """
    trained = {name: p for name, p in unwrapped(model).named_parameters() if p.requires_grad}
    means = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for name, p in trained.items()
    }
    count = 0
    with weights_in(model, weights), eval_mode(model), torch.enable_grad():
        for number, (batch, size) in enumerate(sized_batches(model, data, batch_size)):
            count += size
            value = checked_loss(loss(model, batch), number)
            slopes = torch.autograd.grad(value, list(trained.values()), materialize_grads=True)
            for mean, slope in zip(means.values(), slopes, strict=True):
                mean.lerp_(slope.to_dense().to(mean), size / count)
    return {name: mean.to(trained[name].dtype) for name, mean in means.items()}


def checked_loss(value: Tensor, number: int) -> Tensor:
    """Return the loss of batch `number`, or raise if no gradient can be taken of it."""
    if value.dim() > 0:
        raise ValueError(
            f"loss must return the batch's mean, a 0-dim tensor; its shape is {tuple(value.shape)}."
        )
    if not math.isfinite(value.item()):
        raise ValueError(f"The loss of batch {number} (counted from 0) is {value.item()}.")
    if not value.requires_grad:
        raise ValueError("The loss depends on no parameter that requires a gradient.")
    return value
