"""How well few-shot tasks are learned, and how sure that is."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.evaluation import Metric, Task, batch_size, eval_mode, takes_task, weights_in
from slipstream.weights import Weights


@dataclass(frozen=True)
class TaskScores:
    """Result of `judge_tasks`: a metric after adaptation, over many tasks."""

    mean: float
    interval: float  # half the width of the 95 % interval of the mean, by the normal distribution
    tasks: int
    batches: Tensor  # float64, (batches,): the mean of each batch


@takes_task
def judge_tasks(metric: Metric, task: Task, *, weights: Weights | None = None) -> TaskScores:
    """Return the mean of a metric after adaptation over many tasks, and how sure it is.

    Args:
        metric: What is measured after which inner steps: an `AfterAdaptation`.
        task: Its data are batches of equally many few-shot tasks; the model is left as it was.
        weights: Where the inner steps start, instead of at the model's own weights.

    Returns:
        Mean and interval; the interval comes from the spread of the means of batches.

    Raises:
        ValueError: If there is no batch.

    Example:
        >>> from torch import nn
        >>> from slipstream.evaluation import accuracy
        >>> from slipstream.recipes.few_shot import Adaptation, AfterAdaptation
        >>> from slipstream.testbed.tasks import TaskForm, load_tasks
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> tasks = load_tasks("digits", TaskForm(ways=2, shots=5, queries=10)).validation
        >>> metric = AfterAdaptation(Adaptation(0.1), metric=accuracy)
        >>> scores = judge_tasks(metric, Task(model, tasks))
        >>> scores.tasks, scores.mean > 0.7
        (100, True)
    """
    found, sizes, model = [], [], task.model
    with weights_in(model, weights), eval_mode(model), torch.no_grad():
        for batch in task.data:
            found.append(float(metric(model, task.to(batch))))
            sizes.append(batch_size(batch))
    if not found:
        raise ValueError("data is empty: there are no tasks to measure on.")
    batches, shares = torch.tensor(found).double(), torch.tensor(sizes).double()
    mean = (batches * shares).sum() / shares.sum()
    error = float(batches.std() / math.sqrt(len(batches))) if len(batches) > 1 else math.nan
    return TaskScores(float(mean), 1.96 * error, sum(sizes), batches)
