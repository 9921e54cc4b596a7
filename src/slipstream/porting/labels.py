"""A budget of labelled examples: which batches are learned from, and which are chosen by."""

from dataclasses import replace

from slipstream.evaluation import Batch, Task

_EVERY = 4  # of so many batches, one is kept to choose by


def within_budget(task: Task | None, labels: int | None) -> Task | None:
    """Return the task with no more labelled training examples than the budget.

    Args:
        task: With data, and with or without validation data.
        labels: How many examples, as the task's `batch_size` counts them; None for all.

    Returns:
        A task with the first whole batches that fit. If it had no validation data, every fourth
        batch is that now, and none is in both.

    Raises:
        ValueError: If there is no data, or the budget is less than a batch, or too small to divide.
    """
    if labels is None:
        return task
    if task is None or not task.has_data:
        raise ValueError(f"labels={labels} needs labelled data: give Task(model, data, ...).")
    batches: list[Batch] = []
    for batch in task.data:
        size = task.batch_size(batch)
        if size > labels:
            break
        labels -= size
        batches.append(batch)
    if not batches:
        raise ValueError(
            f"labels={labels} is less than the first batch, {task.batch_size(task.first_batch())}: "
            "make batches smaller, or the budget larger."
        )
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
