"""What side-tuning is compared with: features alone, fine-tuning, training from scratch."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss
from slipstream.recipes.side_tuning.training import Frozen
from slipstream.training import Descent
from slipstream.training.loop import Progress, descend
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, check_shapes, copy, weights_of


@dataclass(frozen=True)
class SideControls:
    """Result of `side_controls`: other networks for the task that side-tuning learned."""

    features: nn.Module  # the frozen base under a new head
    fine_tuned: nn.Module  # all of the base, under a new head
    scratch: nn.Module  # from fresh weights
    overwritten: dict[str, Tensor]  # what fine-tuning left of the base, under its old head


def side_controls(
    model: nn.Module,
    loss: Loss,
    *,
    base: nn.Module,
    weights: Weights,
    head: str,
    data: Iterable[Batch],
    descent: Descent,
    progress: Progress | None = None,
) -> SideControls:
    """Train what side-tuning is compared with, on the same data and in the same way.

    Args:
        model: The whole model for the task, at fresh weights; left as it was.
        loss: Maps a model and a batch to the batch's mean loss, a 0-dim tensor.
        base: The features that side-tuning used, `features_of(..., weights=weights, head=head)`.
        weights: Of the model that the base was made of.
        head: Name of the layer that is new for the task.
        data: Batches of the task.
        descent: How.
        progress: Called after each step of each training.

    Returns:
        The trained networks.

    Raises:
        ValueError: If the weights do not fit the model, or nothing can be trained.
    """
    body = {name: value for name, value in weights.items() if not name.startswith(f"{head}.")}
    own = weights_of(model)
    check_shapes(body, {name: tuple(value.shape) for name, value in own.items()})
    begun = model_at(model, {**own, **body})
    fine = descend(begun, loss, data=data, descent=descent, progress=progress)
    under = nn.Sequential(Frozen(base), model.get_submodule(head))
    features = descend(under, loss, data=data, descent=descent, progress=progress)
    scratch = descend(model, loss, data=data, descent=descent, progress=progress)
    overwritten = {**weights, **{n: v for n, v in weights_of(fine).items() if n in body}}
    return SideControls(features, fine, scratch, copy(overwritten))
