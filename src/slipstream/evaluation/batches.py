"""Batches of any kind: how many examples, on which device, and the losses that take them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slipstream.storage.fingerprints import tensors_in

Batch = Any
Loss = Callable[[nn.Module, Batch], Tensor]  # the mean over the batch, 0-dim
Metric = Callable[[nn.Module, Batch], Tensor | float]  # the mean over the batch


class TaskBatch(NamedTuple):
    """Tasks of equal size: what each is learned from, and what it is judged by then.

    Every tensor has an axis of the tasks in front, (tasks, examples, ...).
    """

    support: Batch
    query: Batch


def classification_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross entropy of `model` on a batch `(inputs, labels)`."""
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)


def squared_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean of half the squared distance of `model`'s outputs from the targets.

    Args:
        model: Maps inputs to outputs with one row for each example.
        batch: `(inputs, targets)`; targets have the shape of the outputs, or are whole numbers:
            classes, which stand for unit vectors.

    Returns:
        `sum (f - y)^2 / (2 n)` over all outputs of the n examples, a 0-dim tensor.

    Raises:
        ValueError: If targets are neither of the two.

    Example:
        >>> squared_loss(nn.Identity(), (torch.tensor([[3.0, 1.0]]), torch.tensor([1])))
        tensor(4.5000)
    """
    inputs, targets = batch
    outputs: Tensor = model(inputs)
    if not targets.is_floating_point():
        targets = nn.functional.one_hot(targets, outputs.shape[-1])
    if targets.shape != outputs.shape:
        raise ValueError(
            f"targets must be classes, or have the shape of the outputs, {tuple(outputs.shape)}; "
            f"theirs is {tuple(targets.shape)}."
        )
    total: Tensor = (outputs - targets).square().sum()
    return total / (2 * len(outputs))


def accuracy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the share of a batch `(inputs, labels)` that `model` classifies correctly."""
    inputs, labels = batch
    correct: Tensor = model(inputs).argmax(-1) == labels
    return correct.float().mean()


def batch_size(batch: Batch) -> int:
    """Return the length of the first tensor in `batch` that has a length.

    Args:
        batch: A tensor, or tuples, lists and mappings of them, nested as you like.

    Returns:
        The number of examples.

    Raises:
        ValueError: If there is no such tensor.

    Example:
        >>> batch_size({"inputs": [torch.zeros(5, 3)], "labels": torch.zeros(5)})
        5
    """
    for tensor in tensors_in(batch):
        if tensor.dim() > 0:
            return len(tensor)
    raise ValueError(
        f"A batch must hold a tensor with one row for each example; this {type(batch).__name__} "
        "holds none. Tensors, tuples, lists and mappings of them are looked through."
    )


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Return `batch` with every tensor on `device`; what is not a tensor is passed on."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first tensor of `model`, the CPU if it has none."""
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def inputs_of(batch: Batch) -> Batch:
    """Return the model's inputs: the first item of a tuple or list, else the batch itself.

    Of a batch of tasks, these are the inputs of all support examples, in one axis.
    """
    if isinstance(batch, TaskBatch):
        inputs = inputs_of(batch.support)
        if isinstance(inputs, Mapping):
            return {name: value.flatten(0, 1) for name, value in inputs.items()}
        return inputs.flatten(0, 1)
    return batch[0] if isinstance(batch, tuple | list) else batch


def batches_of_epoch(data: Iterable[Batch], epoch: int) -> Iterable[Batch]:
    """Return the batches of an epoch: `data.epoch(epoch)` if there is such a method, or `data`."""
    reshuffle: Callable[[int], Iterable[Batch]] | None = getattr(data, "epoch", None)
    return reshuffle(epoch) if callable(reshuffle) else data


def sized_batches(
    model: nn.Module, data: Iterable[Batch], size: Callable[[Batch], int] = batch_size
) -> Iterator[tuple[Batch, int]]:
    """Yield the batches on the model's device, each with its size.

    Args:
        model: Says where the batches go.
        data: Batches, not necessarily of equal size.
        size: What a batch weighs: its examples, or its tokens.

    Yields:
        A batch and its size.

    Raises:
        ValueError: At the end, if there was no batch.
    """
    device = device_of(model)
    empty = True
    for batch in data:
        empty = False
        yield to_device(batch, device), size(batch)
    if empty:
        raise ValueError("data is empty: there is no batch to average over.")
