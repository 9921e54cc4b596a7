"""What a transfer without source data is compared with: scratch, distillation, each half alone."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, inputs_of, takes_task, weights_in
from slipstream.recipes.pseudo_transfer.other_head import under_other_head
from slipstream.recipes.pseudo_transfer.plan import DistilPlan, PseudoPlan
from slipstream.recipes.pseudo_transfer.pretraining import Pretrained
from slipstream.recipes.pseudo_transfer.sampling import class_probabilities
from slipstream.recipes.pseudo_transfer.semi_supervised import pseudo_semi_supervised
from slipstream.recipes.pseudo_transfer.source import PseudoSource, takes_source
from slipstream.training import Loop, TrainingPlan, check_sized, trained_copy
from slipstream.training.loop import Progress
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, clone, weights_of


@dataclass(frozen=True)
class SourceDistilled:
    """Result of `distil_source`."""

    plan: DistilPlan
    weights: dict[str, Tensor]  # of the model, without the head for the source's classes
    losses: tuple[float, ...]  # mean of the whole loss, of each epoch
    steps: int
    seconds: float


@takes_source
@takes_task
def distil_source(
    source: PseudoSource,
    task: Task,
    *,
    head: str,
    plan: DistilPlan | None = None,
    initial: Weights | None = None,
    progress: Progress | None = None,
) -> SourceDistilled:
    """Learn a task, and what a source classifier answers on the task's own inputs.

    The task has other labels than the source, whose answers cannot teach the task's head: a second
    head for the source's classes, on the same network, is trained by
    T^2 KL(softmax(C(x) / T), softmax(second(x) / T)), and dropped at the end. No example is
    generated, and BatchNorm's running statistics count each batch once.

    Source: "Distilling the Knowledge in a Neural Network" (Hinton, Vinyals, Dean, 2015), section 2.

    Args:
        source: Its classifier, which maps target inputs to logits, and the number of its classes;
            perhaps its head, the second one, if it is to be another than one like the model's own.
        task: The network for the target, left as it was, and labelled batches of the target.
        head: Name of the layer that is replaced for the source's classes, such as `head`.
        plan: How.
        initial: Where to start instead of at the model's own weights.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The trained weights.

    Raises:
        ValueError: If the classifier's logits do not fit, there is no such layer, `data` is empty
            or the loss is not finite.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        >>> task = Task(model, [(torch.eye(2), torch.tensor([0, 1]))])
        >>> source = PseudoSource(classifier=nn.Linear(2, 5), classes=5)
        >>> plan = DistilPlan(descent=TrainingPlan(epochs=2))
        >>> found = distil_source(source, task, head="1", plan=plan)
        >>> found.steps
        2
    """
    plan = plan or DistilPlan()
    if source.classifier is None:
        raise ValueError("The source has no classifier: give PseudoSource(classifier=...).")
    asked, classes, temperature = source.classifier, source.classes, plan.temperature
    network, seed = model_at(task.model, initial), plan.descent.seed
    second = under_other_head(network, head=head, classes=classes, seed=seed, other=source.head)
    both = nn.ModuleList([network, second])
    training = Loop(both, plan.descent, batch_size=task.batch_size)

    def whole(batch: Batch) -> Tensor:
        inputs, own = inputs_of(batch), task.loss(network, batch)
        aim = class_probabilities(asked, inputs, classes=classes, temperature=temperature)
        with weights_in(second, None):  # the statistics have counted this batch
            logs = (second(inputs) / temperature).log_softmax(-1)
        distance = nn.functional.kl_div(logs, aim, reduction="batchmean")
        return own + plan.weight * temperature**2 * distance

    training.run(whole, data=task.data, progress=progress)
    return SourceDistilled(
        plan, clone(weights_of(network)), tuple(training.losses), training.step, training.seconds
    )


@dataclass(frozen=True)
class PseudoControls:
    """Result of `pseudo_controls`: the weights of other networks for the same task."""

    scratch: dict[str, Tensor]  # as many steps on the target
    longer: dict[str, Tensor]  # as many steps on the target as pre-training and target together
    distilled: dict[str, Tensor] | None  # `distil_source`, if there is a classifier
    fine_tuned: dict[str, Tensor] | None  # from the pre-trained weights, without P-SSL
    alone: dict[str, Tensor]  # P-SSL, without pre-training


@takes_source
@takes_task
def pseudo_controls(
    source: PseudoSource,
    task: Task,
    *,
    head: str,
    plan: PseudoPlan,
    pretrained: Pretrained | None = None,
    initial: Weights | None = None,
    progress: Progress | None = None,
) -> PseudoControls:
    """Train what a transfer without source data is compared with, on the same labels.

    Args:
        source: As of `pseudo_semi_supervised`.
        task: The network for the target, left as it was, and labelled batches, with a length.
        head: Name of the layer that is replaced for the source's classes.
        plan: Of P-SSL; every control trains on the target by its descent.
        pretrained: What `pseudo_pretrain` found, if it was done.
        initial: Where it started instead of at the model's own weights.
        progress: Called after each step of each training.

    Returns:
        The trained weights.

    Raises:
        ValueError: If anything does not fit, `data` is empty or a loss is not finite.
    """
    check_sized([task.data], name="data", fewest=1)
    how, begun = plan.descent, replace(task, model=model_at(task.model, initial))
    extra = -(-pretrained.steps // len(task.data)) if pretrained else 0  # type: ignore[arg-type]  # epochs, rounded up

    def plain(task: Task, descent: TrainingPlan) -> dict[str, Tensor]:
        return clone(weights_of(trained_copy(task, descent, progress=progress)))

    distilled = fine_tuned = None
    if source.classifier:
        distil = DistilPlan(descent=how)
        distilled = distil_source(source, begun, head=head, plan=distil, progress=progress).weights
    if pretrained:
        fine_tuned = plain(replace(task, model=model_at(task.model, pretrained.weights)), how)
    return PseudoControls(
        scratch=plain(begun, how),
        longer=plain(begun, replace(how, epochs=how.epochs + extra)),
        distilled=distilled,
        fine_tuned=fine_tuned,
        alone=pseudo_semi_supervised(source, begun, plan=plan, progress=progress).weights,
    )
