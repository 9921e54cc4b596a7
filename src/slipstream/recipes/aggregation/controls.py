"""What aggregation is compared with: networks trained apart, added up, and one for everything."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, batch_size
from slipstream.recipes.aggregation.training import Together, calibrated, specialist_starts
from slipstream.training import Descent
from slipstream.training.loop import Progress, descend
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, copy, displace, parameter_names, weights_of


@dataclass(frozen=True)
class AggregationControls:
    """Result of `aggregation_controls`."""

    apart: tuple[Weights, ...]  # a network for each data set, trained without the others
    sum: Weights  # of those
    mean: Weights  # of those
    together: Weights  # one network, trained on all data sets


def aggregation_controls(
    model: nn.Module,
    loss: Loss,
    *,
    data: Sequence[Iterable[Batch]],
    descent: Descent,
    initial: Sequence[Weights] | None = None,
    progress: Progress | None = None,
) -> AggregationControls:
    """Train what aggregation is compared with, from the same starts and in the same way.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        data: Batches of each data set.
        descent: How.
        initial: Where each network starts, as of `train_aggregation`.
        progress: Called after each step of each training.

    Returns:
        The networks; BatchNorm's statistics of sum and mean are of all data.

    Raises:
        ValueError: If something does not fit, as of `train_aggregation`.

    Example:
        >>> from slipstream import classification_loss
        >>> import torch
        >>> data = [[(torch.eye(2), torch.tensor([0, 1]))]] * 2
        >>> how = Descent(epochs=1)
        >>> model = nn.Linear(2, 2)
        >>> found = aggregation_controls(model, classification_loss, data=data, descent=how)
        >>> first, second = (own["bias"] for own in found.apart)
        >>> torch.equal(found.sum["bias"], first + second)
        True
    """
    starts = specialist_starts(model, data=data, initial=initial, seed=descent.seed)
    apart = [
        copy(
            weights_of(
                descend(model_at(model, start), loss, data=part, descent=descent, progress=progress)
            )
        )
        for start, part in zip(starts, data, strict=True)
    ]

    def on_all(network: nn.Module, batches: tuple[Batch, ...]) -> Tensor:
        sizes = [batch_size(batch) for batch in batches]
        terms = [n / sum(sizes) * loss(network, b) for n, b in zip(sizes, batches, strict=True)]
        return sum(terms[1:], start=terms[0])

    one = model_at(model, starts[0])
    together = descend(one, on_all, data=Together(data), descent=descent, progress=progress)
    others = [{name: own[name] for name in parameter_names(model)} for own in apart[1:]]
    total = dict(apart[0])
    for other in others:
        total = displace(total, other)
    mean = total | {n: total[n] / len(apart) for n in parameter_names(model)}
    added, averaged = (calibrated(model, loss, weights, data) for weights in (total, mean))
    return AggregationControls(tuple(apart), added, averaged, copy(weights_of(together)))
