"""Budgets of examples: which are learned from, which are chosen by, which are only looked at."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from slipstream.evaluation import Batch, Task

_EVERY = 4  # of so many batches, one is kept to choose by


def within_budget(
    task: Task | None, labels: int | None, unlabelled: int | None = None
) -> Task | None:
    """Return the task with no more examples than the budgets.

    Args:
        task: With data, and with or without validation data.
        labels: How many labelled training examples, as the task's `batch_size` counts them; None
            for all.
        unlabelled: How many examples without labels: of the task's own, or the inputs of its
            training data; None for all, or those of the labelled ones.

    Returns:
        A task with the first whole batches that fit. If it had no validation data, every fourth
        labelled batch is that now, and none is in both.

    Raises:
        ValueError: If there is no data, or a budget is less than a batch, or too small to divide.
    """
    if unlabelled is not None:
        if task is None or not (task.has_data or task.unlabelled is not None):
            raise ValueError(f"unlabelled={unlabelled} needs data: give Task(model, data, ...).")
        if task.unlabelled is None and isinstance(task.data, Iterator):
            task = replace(task, data=list(task.data))
        seen = _first(task, task.unlabelled_batches, unlabelled, "unlabelled")
        task = replace(task, unlabelled=seen)
    elif task is not None and task.unlabelled is not None:
        task = replace(task, unlabelled=list(task.unlabelled))
    if labels is None:
        return task
    if task is None or not task.has_data:
        raise ValueError(f"labels={labels} needs labelled data: give Task(model, data, ...).")
    batches = _first(task, task.data, labels, "labels")
    if task.validation is not None:
        return replace(task, data=batches)
    if len(batches) == 1:
        raise ValueError(
            "labels gives one batch, which cannot be both learned from and chosen by: make "
            "batches smaller, or give validation data."
        )
    kept = range(_EVERY - 1, len(batches), _EVERY) or range(len(batches) - 1, len(batches))
    data = [batch for number, batch in enumerate(batches) if number not in kept]
    return replace(task, data=data, validation=[batches[number] for number in kept])


def _first(task: Task, data: Iterable[Batch], budget: int, name: str) -> list[Batch]:
    """The first batches that a budget is enough for."""
    found: list[Batch] = []
    left = budget
    for batch in data:
        size = task.batch_size(batch)
        if size > left and not found:
            raise ValueError(
                f"{name}={budget} is less than the first batch, {size}: make batches smaller, or "
                "the budget larger."
            )
        if size > left:
            break
        left -= size
        found.append(batch)
    if not found:
        raise ValueError(f"{name}={budget}, but there is no batch.")
    return found
