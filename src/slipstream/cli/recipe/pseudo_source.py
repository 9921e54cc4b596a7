"""From what a user types to a source's generator and classifier, and a few labels of each class."""

from pathlib import Path
from typing import Any

import torch

from slipstream.cli.loading import open_weights
from slipstream.cli.recipe.source_options import SourceOptions
from slipstream.cli.task_options import TaskOptions, import_function
from slipstream.evaluation import Batch, Task
from slipstream.recipes import ConditionalGenerator, PseudoSource
from slipstream.recipes.pseudo_transfer.sampling import Classifier
from slipstream.testbed import Batches, Examples, build_network, load_data
from slipstream.testbed.conditional_vae import ConditionalVAE, train_conditional_vae
from slipstream.testbed.generator_file import load_generator
from slipstream.training import TrainingPlan, trained_copy
from slipstream.training.reinitialise import model_at

WIDTH = 128  # of the networks that are made for a data set of the testbed


def open_source(named: SourceOptions, *, seed: int) -> PseudoSource:
    """Find or train the generator and the classifier of a source.

    Args:
        named: A data set of the testbed, on which a conditional VAE and an MLP are trained as far
            as they are not given. If only a generator is given, there is no classifier.
        seed: Of what is trained.

    Returns:
        The source.

    Raises:
        ValueError: If something is not what it should be.
    """
    made = None if named.classifier is None else _classifier(named.classifier)
    if named.generator is not None:
        return PseudoSource(_generator(named.generator), made)
    data = load_data(named.source, seed=0)
    batches = data.train.batches(64, seed=seed)
    vae = ConditionalVAE(data.spec.shape, classes=data.spec.classes, width=2 * WIDTH, seed=seed)
    train_conditional_vae(vae, batches, epochs=named.source_epochs, seed=seed)
    if made is None:
        fresh = build_network("mlp", data=data.spec, width=WIDTH, seed=seed)
        how = TrainingPlan.cosine(epochs=named.source_epochs, lr=0.05, seed=seed)
        made = trained_copy(Task(fresh, batches), how).eval()
    return PseudoSource(ConditionalGenerator(vae.sample, data.spec.classes), made)


def few_of_each(data: Any, count: int | None, *, size: int, seed: int) -> Any:
    """Return batches of the first `count` examples of each class, in the order of the data.

    Args:
        data: Batches `(inputs, labels)`.
        count: How many of each class; None for all, the data as they are.
        size: Of the batches.
        seed: Of their order.

    Returns:
        Batches.

    Raises:
        ValueError: If the data are no inputs and labels, or a class has fewer.
    """
    if count is None:
        return data
    inputs, labels = _joined(list(data))
    classes = sorted(set(labels.tolist()))
    rows = [torch.nonzero(labels == label).flatten() for label in classes]
    if (least := min(map(len, rows))) < count:
        raise ValueError(f"--labels is {count}, but a class has {least} examples only.")
    chosen = torch.cat([places[:count] for places in rows])
    return Batches(Examples(inputs[chosen], labels[chosen]), size, seed=seed)


def _joined(batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        inputs, labels = (torch.cat(list(parts)) for parts in zip(*batches, strict=True))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"--labels is for batches of inputs and labels: {error}.") from error
    return inputs, labels


def _generator(name: str) -> ConditionalGenerator:
    if Path(name).is_file():
        stored = load_generator(name)
        return ConditionalGenerator(stored.sample, stored.classes)
    found = import_function(name)()
    if not isinstance(found, ConditionalGenerator):
        raise ValueError(
            f"{name} must return a slipstream.recipes.ConditionalGenerator, got "
            f"{type(found).__name__}."
        )
    return found


def _classifier(name: str) -> Classifier:
    if Path(name, "run.json").is_file():
        model = TaskOptions().open(Path(name)).model
        weights = open_weights(model, run=Path(name), step=None, file=None)
        return model_at(model, weights).eval()
    found = import_function(name)()
    if not callable(found):
        raise ValueError(
            f"{name} must return a function from inputs to logits, got {type(found).__name__}."
        )
    return found  # type: ignore[no-any-return]
