"""What several networks predict together."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from slipstream.evaluation.batches import Batch, inputs_of, sized_batches
from slipstream.evaluation.borrowing import eval_mode, weights_in
from slipstream.weights import Weights


def class_probabilities(model: nn.Module, batch: Batch) -> Tensor:
    """Return the softmax of what `model` says of the inputs of a batch: (examples, classes)."""
    outputs: Tensor = model(inputs_of(batch))
    return outputs.softmax(-1)


def ensemble(
    model: nn.Module,
    *,
    members: Sequence[Weights],
    data: Iterable[Batch],
    predict: Callable[[nn.Module, Batch], Tensor] = class_probabilities,
) -> Tensor:
    """Return the mean of what the model predicts with the weights of each member, in eval mode.

    Args:
        model: Any module; left as it was.
        members: Weights of the model, each with BatchNorm statistics of its own.
        data: Batches; passed over once for each member, so in the same order each time.
        predict: Maps the model and a batch to a prediction for each example.

    Returns:
        The mean prediction for every example of `data`, in order: (examples, ...).

    Raises:
        ValueError: If there is no member, or `data` is empty.

    Example:
        >>> members = [{"weight": torch.tensor([[w]])} for w in (1.0, 3.0)]
        >>> batches, model = [torch.ones(2, 1)], nn.Linear(1, 1, bias=False)
        >>> ensemble(model, members=members, data=batches, predict=lambda model, x: model(x))
        tensor([[2.],
                [2.]])
    """
    if not members:
        raise ValueError("members is empty: an ensemble needs the weights of one network or more.")

    def predicted(weights: Weights) -> Tensor:
        with weights_in(model, weights), eval_mode(model), torch.no_grad():
            return torch.cat([predict(model, batch) for batch, _ in sized_batches(model, data)])

    total = predicted(members[0])
    for weights in members[1:]:
        total += predicted(weights)
    return total / len(members)
