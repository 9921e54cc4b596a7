"""How good a conditional generator is: what a classifier learns from its samples alone."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from slipstream.evaluation import Batch, accuracy, classification_loss, evaluate
from slipstream.recipes.pseudo_transfer.sampling import (
    Classifier,
    ConditionalGenerator,
    SyntheticBatches,
    class_probabilities,
)
from slipstream.training import Descent
from slipstream.training.loop import Progress, descend


@dataclass(frozen=True)
class QualityPlan:
    """How a generator is judged, as plain data."""

    batches: int = 100  # of an epoch, each made anew
    batch_size: int = 128
    descent: Descent = field(default_factory=lambda: Descent(epochs=10, lr=0.05))


@dataclass(frozen=True)
class GeneratorQuality:
    """Result of `generator_quality`."""

    accuracy: float  # on real data, of a classifier trained on samples
    agreement: float | None  # share of samples that the source's classifier gives their own class
    steps: int
    synthetic: int  # examples that the generator made


def generator_quality(
    model: nn.Module,
    generator: ConditionalGenerator,
    *,
    real: Iterable[Batch],
    plan: QualityPlan | None = None,
    classifier: Classifier | None = None,
    progress: Progress | None = None,
) -> GeneratorQuality:
    """Train a classifier on a generator's samples, and test it on real data.

    Source: "Classification Accuracy Score for Conditional Generative Models" (Ravuri, Vinyals,
    2019), section 3: training on samples alone, the accuracy on real examples.

    Args:
        model: A classifier of the source's classes at initial weights; left as it was.
        generator: What is judged.
        real: Labelled batches of the source that the generator has not seen: its test part.
        plan: How the classifier is trained.
        classifier: Of the source; if given, asked for the classes of an epoch of samples.
        progress: Called after each step with the steps done and their final number.

    Returns:
        The accuracies and the cost. Hold the first against that of the same model trained on as
        many real examples.

    Raises:
        ValueError: If the generator fails, a shape does not fit, or `real` is empty.

    Example:
        >>> import torch
        >>> generator = ConditionalGenerator(lambda labels, _: labels, classes=2)
        >>> plan = QualityPlan(4, 8, Descent(epochs=5))
        >>> real = [(torch.eye(2), torch.arange(2))]
        >>> generator_quality(nn.Linear(2, 2), generator, real=real, plan=plan).accuracy
        1.0
    """
    plan = plan or QualityPlan()
    data = SyntheticBatches(generator, plan.batch_size, plan.batches, plan.descent.seed)
    trained = descend(
        model, classification_loss, data=data, descent=plan.descent, progress=progress
    )
    found = evaluate(trained, {"accuracy": accuracy}, data=real)["accuracy"]
    agreed = None
    if classifier is not None:
        shares = [
            class_probabilities(classifier, inputs, classes=generator.classes).argmax(1).eq(labels)
            for inputs, labels in data.epoch(plan.descent.epochs)  # samples not trained on
        ]
        agreed = float(sum(int(share.sum()) for share in shares) / (len(data) * data.size))
    steps = plan.batches * plan.descent.epochs
    return GeneratorQuality(found, agreed, steps, steps * plan.batch_size)
