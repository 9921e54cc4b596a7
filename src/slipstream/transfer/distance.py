"""How far what one network answers is from what another one answers."""

from torch import Tensor, nn

from slipstream.evaluation import Task, accuracy, classification_loss


def classifies(task: Task) -> bool:
    """Return whether the outputs are logits of classes, by the loss and the metrics.

    Args:
        task: The model with its loss.

    Returns:
        Whether that is so.
    """
    return task.loss is classification_loss or any(
        metric is accuracy or name == "accuracy" for name, metric in task.measured.items()
    )


def divergence(given: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of the class probabilities of logits.

    Args:
        given: (..., classes) logits that are trained.
        wanted: (..., classes) those to come near to.

    Returns:
        The mean over all but the classes, a 0-dim tensor.

    Example:
        >>> import torch
        >>> divergence(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log())
        tensor(0.1308)
    """
    own, other = (v.reshape(-1, v.shape[-1]).log_softmax(-1) for v in (given, wanted.to(given)))
    return nn.functional.kl_div(own, other, reduction="batchmean", log_target=True)


def output_distance(given: Tensor, wanted: Tensor, classes: bool) -> Tensor:
    """Return the divergence of class probabilities, or half the squared distance.

    Args:
        given: (examples, ...) outputs.
        wanted: (examples, ...) those to come near to.
        classes: Whether they are logits.

    Returns:
        The mean over the examples, a 0-dim tensor.
    """
    if classes:
        return divergence(given, wanted)
    return (given - wanted).square().sum() / (2 * len(given))
