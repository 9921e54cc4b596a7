"""What a neuron is learned and judged by: answers after a stream was absorbed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from slipstream.evaluation import TaskBatch
from slipstream.recipes.meta_neuron.neuron import MetaNeuron, NetworkState
from slipstream.recipes.meta_neuron.plan import Order
from slipstream.storage.plan_fields import check_choices


@dataclass(frozen=True)
class AfterStream:
    """A loss or a metric of a `MetaNeuron` and a batch of tasks: absorb the support, then answer.

    The support examples of a task are its stream, one example after another, each seen once. It is
    a loss like any other, of a model and a `TaskBatch`; every network is born from the same seed.

    Example:
        >>> from slipstream.testbed.tasks import TaskForm, load_tasks
        >>> tasks = load_tasks("digits", TaskForm(ways=3, shots=2)).validation
        >>> AfterStream(metric="accuracy")(MetaNeuron((64, 8, 3)), tasks.batch(0)).shape
        torch.Size([])
    """

    order: Order = "class"  # as the tasks have it, class by class, or shuffled
    metric: Literal["loss", "accuracy"] = "loss"
    seed: int = 0  # of the networks' first weights and of the random order

    def __post_init__(self) -> None:
        check_choices(self)

    def __call__(self, model: nn.Module, batch: TaskBatch) -> Tensor:
        """Return the mean over the query examples of all tasks, a 0-dim tensor.

        Raises:
            TypeError: If the model is no `MetaNeuron`, or the batch holds no tasks.
        """
        if not isinstance(model, MetaNeuron) or not isinstance(batch, TaskBatch):
            kinds = f"{type(model).__name__} and a {type(batch).__name__}"
            raise TypeError(f"AfterStream takes a MetaNeuron and a TaskBatch, got a {kinds}.")
        generator = torch.Generator().manual_seed(self.seed)
        (inputs, labels), (queries, truth) = as_streams(batch, self.order, generator)
        state = model.born(len(labels), generator)
        _, logits = model(state, inputs, labels, queries)
        if self.metric == "accuracy":
            return share_right(logits, truth)
        return nn.functional.cross_entropy(logits.flatten(0, 1), truth.flatten())


def share_right(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the share of the queries whose class has the highest logit, a 0-dim tensor."""
    right: Tensor = logits.argmax(-1) == truth
    return right.float().mean()


def as_streams(batch: TaskBatch, order: Order, generator: torch.Generator) -> TaskBatch:
    """Return tasks whose classes have new names, drawn for each stream, in an order.

    Args:
        batch: Tasks, whose support examples come class by class.
        order: Whether they stay so, or are shuffled.
        generator: Draws names and order; on the CPU.

    Returns:
        The tasks; the label of a class says nothing of when it comes.
    """
    (inputs, labels), (queries, truth) = batch
    rows = torch.arange(len(labels), device=labels.device)[:, None]
    classes = 1 + int(max(labels.max(), truth.max()))
    names = _drawn_orders((len(labels), classes), generator).to(labels.device)
    at = torch.arange(labels.shape[1]).expand_as(labels)
    if order == "random":
        at = _drawn_orders(tuple(labels.shape), generator)
    at = at.to(labels.device)
    return TaskBatch(
        (inputs[rows, at], names[rows, labels[rows, at]]), (queries, names[rows, truth])
    )


def losses_along(
    call: Callable[..., tuple[NetworkState, Tensor]],
    state: NetworkState,
    batch: TaskBatch,
    unroll: int,
) -> Iterator[Tensor]:
    """Yield the loss after each piece of the streams, of the queries whose classes came by then.

    Args:
        call: A `MetaNeuron`.
        state: Where the networks begin; the state of one piece is a constant for the next.
        batch: Tasks; the support is the stream.
        unroll: Updates in a piece.

    Yields:
        The cross entropy, a 0-dim tensor.
    """
    (inputs, labels), (queries, truth) = batch
    for begin in range(0, labels.shape[1], unroll):
        end = begin + unroll
        state, logits = call(state.detached(), inputs[:, begin:end], labels[:, begin:end], queries)
        seen = (labels[:, None, :end] == truth[:, :, None]).any(-1).flatten()
        each = nn.functional.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="none")
        yield (each * seen).sum() / seen.sum().clamp(min=1)


def _drawn_orders(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A random order in each row."""
    return torch.rand(shape, generator=generator).argsort(-1)
