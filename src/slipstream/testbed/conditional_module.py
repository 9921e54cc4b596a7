"""What generators whose classes can be mixed have in common, and how they are trained."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task
from slipstream.training import Progress, TrainingPlan, TrainingResult, train


class ConditionalModule(nn.Module):
    """Has an embedding of each class, and the ends of the inputs that were seen in training."""

    embedding: nn.Embedding
    classes: int

    def __init__(self) -> None:
        """Begin with inputs from 0 to 1."""
        super().__init__()
        self.register_buffer("ends", torch.tensor([0.0, 1.0]))  # lowest and highest input

    def _condition(self, labels: Tensor) -> Tensor:
        """The embedding of a class, or the mean over a mixture of classes."""
        if labels.is_floating_point():
            return labels.to(self.embedding.weight) @ self.embedding.weight
        embedded: Tensor = self.embedding(labels)
        return embedded


def train_conditional(
    model: ConditionalModule,
    data: Iterable[Batch],
    *,
    epochs: int = 20,
    lr: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a generator in place, by Adam with a cosine schedule.

    Args:
        model: What to train, on the device to train on; maps inputs and labels to its loss.
        data: Batches `(inputs, labels)`; can be gone through again and again.
        epochs: Passes over the data.
        lr: Learning rate at the start.
        seed: Of the noise.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        Losses, number of steps and time.

    Raises:
        ValueError: If `data` is empty or its inputs are all equal, a label is of no class, or the
            loss is not finite.
    """
    _learn_ends_(model.get_buffer("ends"), data, classes=model.classes)
    task = Task(model, data, lambda model, batch: model(*batch))
    plan = TrainingPlan(epochs, "adam", lr, schedule="cosine", seed=seed)
    return train(task, plan, progress=progress)


def _learn_ends_(ends: Tensor, data: Iterable[Batch], *, classes: int) -> None:
    """Set the lowest and the highest input of some data, (2,), and look at its labels."""
    low, high = float("inf"), float("-inf")
    for inputs, labels in data:
        low, high = min(low, float(inputs.min())), max(high, float(inputs.max()))
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels must be classes from 0 to {classes - 1}, got {labels}.")
    if not 0 < high - low < float("inf"):
        raise ValueError(
            f"data must hold inputs of different finite values, got {low} to {high}: it is empty "
            "or damaged."
        )
    ends.copy_(torch.tensor([low, high], device=ends.device))
