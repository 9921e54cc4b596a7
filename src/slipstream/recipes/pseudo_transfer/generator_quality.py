"""How good a conditional generator is: what a classifier learns from its samples alone."""

from dataclasses import dataclass

from slipstream.evaluation import Task, accuracy, evaluate, takes_task
from slipstream.recipes.pseudo_transfer.plan import QualityPlan
from slipstream.recipes.pseudo_transfer.sampling import SyntheticBatches, class_probabilities
from slipstream.recipes.pseudo_transfer.source import PseudoSource, takes_source
from slipstream.training import trained_copy
from slipstream.training.loop import Progress


@dataclass(frozen=True)
class GeneratorQuality:
    """Result of `generator_quality`."""

    accuracy: float  # on real data, of a classifier trained on samples
    agreement: float | None  # share of samples that the source's classifier gives their own class
    steps: int
    synthetic: int  # examples that the generator made


@takes_source
@takes_task
def generator_quality(
    source: PseudoSource,
    task: Task,
    *,
    plan: QualityPlan | None = None,
    progress: Progress | None = None,
) -> GeneratorQuality:
    """Train a classifier on a generator's samples, and test it on real data.

    Source: "Classification Accuracy Score for Conditional Generative Models" (Ravuri, Vinyals,
    2019), section 3: training on samples alone, the accuracy on real examples.

    Args:
        source: The generator to measure, and perhaps the source's classifier, which is asked for
            the classes of an epoch of samples.
        task: A classifier of the source's classes at initial weights, left as it was, and labelled
            batches of the source that the generator has not seen: its test part.
        plan: How the classifier is trained.
        progress: Called after each step with the steps done and their final number.

    Returns:
        The accuracies and the cost. Compare the first with that of the same model trained on
        as many real examples.

    Raises:
        ValueError: If the generator fails, a shape does not fit, or there are no real data.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from slipstream.recipes.pseudo_transfer import ConditionalGenerator
        >>> generator = ConditionalGenerator(lambda labels, _: labels, classes=2)
        >>> from slipstream.training import TrainingPlan
        >>> plan = QualityPlan(4, 8, TrainingPlan(epochs=5))
        >>> task = Task(nn.Linear(2, 2), [(torch.eye(2), torch.arange(2))])
        >>> generator_quality(PseudoSource(generator), task, plan=plan).accuracy
        1.0
    """
    plan = plan or QualityPlan()
    made = SyntheticBatches(source.maker, plan.batch_size, plan.batches, plan.descent.seed)
    trained = trained_copy(Task(task.model, made), plan.descent, progress=progress)
    found = evaluate(trained, {"accuracy": accuracy}, data=task.data)["accuracy"]
    agreed = None
    if source.classifier is not None:
        shares = [
            class_probabilities(source.classifier, inputs, classes=source.classes)
            .argmax(1)
            .eq(labels)
            for inputs, labels in made.epoch(plan.descent.epochs)  # samples not trained on
        ]
        agreed = float(sum(int(share.sum()) for share in shares) / (len(made) * made.size))
    steps = plan.batches * plan.descent.epochs
    return GeneratorQuality(found, agreed, steps, steps * plan.batch_size)
