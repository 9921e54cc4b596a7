"""What side-tuning is compared with: features alone, fine-tuning, training from scratch."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from slipstream.evaluation import Task, takes_task
from slipstream.recipes.modules import Frozen
from slipstream.training import TrainingPlan, trained_copy
from slipstream.training.loop import Progress
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, check_shapes, clone, weights_of


@dataclass(frozen=True)
class SideControls:
    """Result of `side_controls`: other networks for the task that side-tuning learned."""

    features: nn.Module  # the frozen base under a new head
    fine_tuned: nn.Module  # all of the base, under a new head
    scratch: nn.Module  # from initial weights
    overwritten: dict[str, Tensor]  # what fine-tuning left of the base, under its old head


@takes_task
def side_controls(
    task: Task,
    *,
    base: nn.Module,
    weights: Weights,
    head: str,
    descent: TrainingPlan,
    progress: Progress | None = None,
) -> SideControls:
    """Train what side-tuning is compared with, on the same data and in the same way.

    Args:
        task: Its model is the whole one for the task, at initial weights; left as it was.
        base: The features that side-tuning used, `features_of(..., weights=weights, head=head)`.
        weights: Of the model that the base was made of.
        head: Name of the layer that is new for the task.
        descent: How.
        progress: Called after each step of each training.

    Returns:
        The trained networks.

    Raises:
        ValueError: If the weights do not fit the model, or nothing can be trained.
    """
    model, own = task.model, weights_of(task.model)
    body = {name: value for name, value in weights.items() if not name.startswith(f"{head}.")}
    check_shapes(body, {name: tuple(value.shape) for name, value in own.items()})
    starts = (
        nn.Sequential(Frozen(base), model.get_submodule(head)),
        model_at(model, {**own, **body}),
        model,
    )
    features, fine, scratch = (
        trained_copy(replace(task, model=start), descent, progress=progress) for start in starts
    )
    overwritten = {**weights, **{n: v for n, v in weights_of(fine).items() if n in body}}
    return SideControls(features, fine, scratch, clone(overwritten))
