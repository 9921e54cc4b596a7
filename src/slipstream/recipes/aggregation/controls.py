"""What aggregation is compared with: networks trained apart, added up, and one for everything."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, takes_task
from slipstream.recipes.aggregation.specialists import (
    Together,
    a_task_each,
    calibrated,
    specialist_starts,
)
from slipstream.training import TrainingPlan, trained_copy
from slipstream.training.loop import Progress
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, clone, displace, parameter_names, weights_of


@dataclass(frozen=True)
class AggregationControls:
    """Result of `aggregation_controls`."""

    apart: tuple[Weights, ...]  # a network for each data set, trained without the others
    sum: Weights  # of those
    mean: Weights  # of those
    together: Weights  # one network, trained on all data sets


@takes_task
@a_task_each
def aggregation_controls(
    tasks: Sequence[Task],
    *,
    descent: TrainingPlan,
    initial: Sequence[Weights] | None = None,
    progress: Progress | None = None,
) -> AggregationControls:
    """Train what aggregation is compared with, from the same starts and in the same way.

    Args:
        tasks: One for each data set, as of `train_aggregation`.
        descent: How.
        initial: Where each network starts, as of `train_aggregation`.
        progress: Called after each step of each training.

    Returns:
        The networks; BatchNorm's statistics of sum and mean are of all data.

    Raises:
        ValueError: If something does not fit, as of `train_aggregation`.

    Example:
        >>> import torch
        >>> task = Task(nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))])
        >>> found = aggregation_controls([task, task], descent=TrainingPlan(epochs=1))
        >>> first, second = (own["bias"] for own in found.apart)
        >>> torch.equal(found.sum["bias"], first + second)
        True
    """
    model = tasks[0].model
    starts = specialist_starts(tasks, initial=initial, seed=descent.seed)
    train = partial(trained_copy, plan=descent, progress=progress)
    apart = [
        clone(weights_of(train(replace(task, model=model_at(model, start)))))
        for start, task in zip(starts, tasks, strict=True)
    ]

    def on_all(network: nn.Module, batches: tuple[Batch, ...]) -> Tensor:
        sizes = [task.batch_size(batch) for task, batch in zip(tasks, batches, strict=True)]
        terms = [
            size / sum(sizes) * task.loss(network, batch)
            for size, task, batch in zip(sizes, tasks, batches, strict=True)
        ]
        return sum(terms[1:], start=terms[0])

    data = Together([task.data for task in tasks])
    together = train(Task(model_at(model, starts[0]), data, on_all))
    names = parameter_names(model)
    total = dict(apart[0])
    for own in apart[1:]:
        total = displace(total, {name: own[name] for name in names})
    mean = total | {name: total[name] / len(apart) for name in names}
    added, averaged = (calibrated(tasks, weights) for weights in (total, mean))
    return AggregationControls(tuple(apart), added, averaged, clone(weights_of(together)))
