"""What a transfer without source data is compared with: scratch, distillation, each half alone."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, inputs_of, weights_in
from slipstream.recipes.pseudo_transfer.augmentation import Augmentation
from slipstream.recipes.pseudo_transfer.other_head import under_other_head
from slipstream.recipes.pseudo_transfer.pretraining import Pretrained
from slipstream.recipes.pseudo_transfer.sampling import (
    Classifier,
    ConditionalGenerator,
    class_probabilities,
)
from slipstream.recipes.pseudo_transfer.semi_supervised import PseudoPlan, pseudo_semi_supervised
from slipstream.training import Descent
from slipstream.training.loop import Descending, Progress, check_sized, descend
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, copy, weights_of


@dataclass(frozen=True)
class DistilPlan:
    """How a source classifier is distilled beside learning a task, as plain data."""

    weight: float = 1.0  # of the distillation
    temperature: float = 4.0
    descent: Descent = field(default_factory=lambda: Descent(epochs=60, lr=0.05))

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}.")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}.")


@dataclass(frozen=True)
class SourceDistilled:
    """Result of `distil_source`."""

    plan: DistilPlan
    weights: dict[str, Tensor]  # of the model, without the head for the source's classes
    losses: tuple[float, ...]  # mean of the whole loss, of each epoch
    steps: int
    seconds: float


def distil_source(
    model: nn.Module,
    loss: Loss,
    *,
    classifier: Classifier,
    classes: int,
    head: str,
    data: Iterable[Batch],
    plan: DistilPlan | None = None,
    initial: Weights | None = None,
    source_head: nn.Module | None = None,
    progress: Progress | None = None,
) -> SourceDistilled:
    """Learn a task, and beside it what a source classifier answers on the task's own inputs.

    The labels are others than the source's, so its answers cannot teach the task's head. The form
    that is left: a second head for the source's classes on the same network, trained by
    T^2 KL(softmax(C(x) / T), softmax(second(x) / T)). It is dropped at the end. No example is
    generated, and BatchNorm's running statistics count each batch once.

    Source: "Distilling the Knowledge in a Neural Network" (Hinton, Vinyals, Dean, 2015), section 2.

    Args:
        model: The network for the target; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        classifier: Of the source; maps target inputs to logits.
        classes: How many the source has.
        head: Name of the layer that is another for the source's classes, such as `head`.
        data: Labelled batches of the target.
        plan: How.
        initial: Where to start instead of at the model's own weights.
        source_head: The second head, if it is to be another than one like the model's own.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The trained weights.

    Raises:
        ValueError: If the classifier's logits do not fit, there is no such layer, `data` is empty
            or the loss is not finite.

    Example:
        >>> import torch
        >>> from slipstream import classification_loss
        >>> data, plan = [(torch.eye(2), torch.tensor([0, 1]))], DistilPlan(descent=Descent(2))
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        >>> found = distil_source(
        ...     model, classification_loss, classifier=nn.Linear(2, 5), classes=5, head="1",
        ...     data=data, plan=plan,
        ... )
        >>> found.steps
        2
    """
    plan = plan or DistilPlan()
    network, seed = model_at(model, initial), plan.descent.seed
    second = under_other_head(network, head=head, classes=classes, seed=seed, other=source_head)
    both = nn.ModuleList([network, second])
    training = Descending(both, plan.descent)

    def whole(batch: Batch) -> Tensor:
        inputs, own = inputs_of(batch), loss(network, batch)
        aim = class_probabilities(classifier, inputs, classes=classes, temperature=plan.temperature)
        with weights_in(second, None):  # the statistics have counted this batch
            logs = (second(inputs) / plan.temperature).log_softmax(-1)
        distance = nn.functional.kl_div(logs, aim, reduction="batchmean")
        return own + plan.weight * plan.temperature**2 * distance

    training.run(whole, data=data, progress=progress)
    return SourceDistilled(
        plan, copy(weights_of(network)), tuple(training.losses), training.step, training.seconds
    )


@dataclass(frozen=True)
class PseudoControls:
    """Result of `pseudo_controls`: the weights of other networks for the same task."""

    scratch: dict[str, Tensor]  # as many steps on the target
    longer: dict[str, Tensor]  # as many steps on the target as pre-training and target together
    distilled: dict[str, Tensor] | None  # `distil_source`, if there is a classifier
    fine_tuned: dict[str, Tensor] | None  # from the pre-trained weights, without P-SSL
    alone: dict[str, Tensor]  # P-SSL, without pre-training


def pseudo_controls(
    model: nn.Module,
    loss: Loss,
    *,
    generator: ConditionalGenerator,
    classifier: Classifier | None,
    head: str,
    data: Any,
    plan: PseudoPlan,
    pretrained: Pretrained | None = None,
    initial: Weights | None = None,
    weak: Augmentation | None = None,
    strong: Augmentation | None = None,
    progress: Progress | None = None,
) -> PseudoControls:
    """Train what a transfer without source data is compared with, on the same labels.

    Args:
        model: The network for the target; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        generator: Of the source.
        classifier: Of the source, if there is one.
        head: Name of the layer that is another for the source's classes.
        data: Labelled batches of the target, with a length.
        plan: Of P-SSL; its descent is that of every way on the target.
        pretrained: What `pseudo_pretrain` found, if it was done.
        initial: Where it started instead of at the model's own weights.
        weak: The weak change of inputs for P-SSL.
        strong: The strong change.
        progress: Called after each step of each training.

    Returns:
        The trained weights.

    Raises:
        ValueError: If anything does not fit, `data` is empty or a loss is not finite.
    """
    check_sized([data], name="data", fewest=1)
    how, start = plan.descent, model_at(model, initial)
    extra = -(-pretrained.steps // len(data)) if pretrained else 0  # epochs, rounded up

    def plain(initial: nn.Module, descent: Descent) -> dict[str, Tensor]:
        trained = descend(initial, loss, data=data, descent=descent, progress=progress)
        return copy(weights_of(trained))

    return PseudoControls(
        scratch=plain(start, how),
        longer=plain(start, replace(how, epochs=how.epochs + extra)),
        distilled=distil_source(
            start, loss, classifier=classifier, classes=generator.classes, head=head, data=data,
            plan=DistilPlan(descent=how), progress=progress,
        ).weights if classifier else None,
        fine_tuned=plain(model_at(model, pretrained.weights), how) if pretrained else None,
        alone=pseudo_semi_supervised(
            start, loss, generator=generator, classifier=classifier, data=data, plan=plan,
            weak=weak, strong=strong, progress=progress,
        ).weights,
    )  # fmt: skip
