"""Transfer without source data: what a source's classifier and generator know, to any network."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, inputs_of, takes_task, weights_in
from slipstream.recipes.pseudo_transfer.plan import PseudoPlan
from slipstream.recipes.pseudo_transfer.sampling import TRIAL, check_conditioning, check_same_shape
from slipstream.recipes.pseudo_transfer.source import PseudoSource, takes_source
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, loss_value, recorded
from slipstream.training.loop import Progress
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, clone, weights_of


@dataclass(frozen=True)
class PseudoTransferred:
    """Result of `pseudo_semi_supervised`."""

    plan: PseudoPlan
    weights: dict[str, Tensor]  # of the model
    losses: tuple[float, ...]  # mean of the whole loss, of each epoch
    supervised: tuple[float, ...]  # mean loss on labelled target examples, of each epoch
    unsupervised: tuple[float, ...]  # mean loss on synthetic inputs, before its weight
    confident: tuple[float, ...]  # share of the synthetic inputs that counted
    steps: int
    synthetic: int  # inputs that the generator made
    seconds: float


@takes_source
@takes_task
def pseudo_semi_supervised(
    source: PseudoSource,
    task: Task,
    *,
    plan: PseudoPlan | None = None,
    initial: Weights | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> PseudoTransferred:
    """Learn a task from few labels and from synthetic inputs that look like its own (P-SSL).

    Each step minimises the loss on a labelled batch, plus `weight` times a loss without labels on
    what the generator makes of the source classes that these inputs look like. In that second part
    BatchNorm normalises by the synthetic batch, and no buffer of the model changes: the running
    statistics are those of the target alone, to the bit.

    Source: "Transfer Learning with Pre-trained Conditional Generative Models" (Yamaguchi, Kanai,
    Kumagai, Chijiwa, Kashima, 2022), pseudo semi-supervised learning. Leaving the running
    statistics alone is ours: with mixed ones a network is useless.

    Args:
        source: Its generator makes inputs of the target's shape; its classifier is needed unless
            the plan's conditioning is uniform.
        task: The model maps inputs to logits of the target and is left as it was; the data are
            labelled batches of the target.
        plan: How.
        initial: Where to start instead of at the model's own weights: those of `pseudo_pretrain`,
            or of a transferred run.
        run_folder: Records the model after every epoch as a run.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The weights, with the parts of the loss.

    Raises:
        ValueError: If the generator takes no soft labels where the plan asks for them, the
            classifier's logits or the generator's inputs do not fit, `data` is empty, the loss is
            not finite, or what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> import torch
        >>> from slipstream.recipes import Consistency
        >>> from slipstream.training import TrainingPlan
        >>> from slipstream.recipes.pseudo_transfer import ConditionalGenerator
        >>> generator = ConditionalGenerator(lambda labels, _: labels, classes=2)
        >>> source = PseudoSource(generator, classifier=nn.Identity())
        >>> task = Task(nn.Linear(2, 3), [(torch.eye(2), torch.tensor([0, 2]))])
        >>> plan = PseudoPlan(consistency=Consistency("entropy"), descent=TrainingPlan(epochs=2))
        >>> found = pseudo_semi_supervised(source, task, plan=plan)
        >>> found.steps, found.synthetic
        (2, 4)
    """
    plan = plan or PseudoPlan()
    network = model_at(task.model, initial)
    task = replace(task, model=network)
    check_transfer(source, task, plan=plan)
    training = Loop(network, plan.descent, batch_size=task.batch_size)
    steps = _Steps(source, task, plan, training)

    def measure() -> dict[str, float]:
        found = dict(training.notes[-1]["means"]) if training.notes else {}
        return found | task.validated()

    def on_epoch() -> None:
        training.notes.append(steps.taken())
        keep()

    recipe, start = {"pseudo_semi_supervised": asdict(plan)}, [weights_of(network)]
    with recorded(training, task, run_folder, plan=recipe, start=start, measure=measure) as keep:
        training.run(steps.loss, data=task.data, on_epoch=on_epoch, progress=progress)
    means = {n: tuple(note["means"][n] for note in training.notes) for n in _MEANS}
    return PseudoTransferred(
        plan, clone(weights_of(network)), tuple(training.losses), **means, steps=training.step,
        synthetic=sum(note["made"] for note in training.notes), seconds=training.seconds,
    )  # fmt: skip


@takes_source
@takes_task
def check_transfer(source: PseudoSource, task: Task, *, plan: PseudoPlan) -> None:
    """Try a source on a few inputs of the target, so that nothing fails after hours of training.

    `pseudo_semi_supervised` does so itself; call it before you pre-train.

    Args:
        source: Generator, classifier and augmentations.
        task: The model and labelled batches of the target.
        plan: How the synthetic inputs are to be made, and what is learned from them.

    Raises:
        ValueError: If the generator, the classifier or the augmentations do not suit the plan and
            the data.

    Example:
        >>> from slipstream.recipes.pseudo_transfer import ConditionalGenerator
        >>> hard = ConditionalGenerator(lambda labels, _: labels, classes=2, labels="hard")
        >>> source = PseudoSource(hard, classifier=nn.Identity())
        >>> check_transfer(source, Task(nn.Identity()), plan=PseudoPlan(conditioning="sampled"))
    """
    if not plan.weight:
        return
    check_conditioning(source.maker, source.classifier, plan.conditioning)
    once = isinstance(task.data, Iterator)  # a look at it would take a batch away
    batch = None if once else next(iter(task.data), None)
    if batch is None:
        return
    inputs = inputs_of(task.to(batch))
    if not isinstance(inputs, Tensor):
        raise ValueError(
            "data must give batches whose inputs are a tensor, as the generator makes them; got "
            f"a {type(inputs).__name__}."
        )
    few = inputs[:TRIAL]
    check_same_shape(source.samples(few, conditioning=plan.conditioning), few)
    plan.consistency.of(nn.Flatten(), few, weak=source.weak, strong=source.strong)


class _Part(NamedTuple):
    """What a step was made of."""

    size: int
    made: int
    supervised: float
    unsupervised: float = 0.0
    confident: float = 0.0


_MEANS = ("supervised", "unsupervised", "confident")


class _Steps:
    """The whole loss of each step, and what its parts were in an epoch."""

    def __init__(self, source: PseudoSource, task: Task, plan: PseudoPlan, training: Loop) -> None:
        self._source, self._task, self._plan, self._training = source, task, plan, training
        self._parts: list[_Part] = []

    def loss(self, batch: Batch) -> Tensor:
        """The loss on a labelled batch, and on what is made of its inputs."""
        plan, task, step = self._plan, self._task, self._training.step
        own, size = task.loss(task.model, batch), task.batch_size(batch)
        weight, supervised = plan.weight_at(self._training.epoch), loss_value(own, step)
        if not weight:
            self._parts.append(_Part(size, 0, supervised))
            return own
        unlabelled, confident = self._unlabelled(inputs_of(batch), step)
        unsupervised = loss_value(unlabelled, step)
        self._parts.append(_Part(size, plan.ratio * size, supervised, unsupervised, confident))
        return own + weight * unlabelled

    def _unlabelled(self, inputs: Tensor, step: int) -> tuple[Tensor, float]:
        """The loss without labels on what is made of some inputs, and the share that counts."""
        plan, source, network = self._plan, self._source, self._task.model
        drawing = np.random.default_rng((plan.descent.seed, step))
        first, second = (int(seed) for seed in drawing.integers(2**62, size=2))
        inputs = inputs.repeat_interleave(plan.ratio, 0)
        made = source.samples(inputs, conditioning=plan.conditioning, seed=first)
        with weights_in(network, None):  # buffers are restored at the end
            return plan.consistency.of(
                network, made, seed=second, weak=source.weak, strong=source.strong
            )

    def taken(self) -> dict[str, Any]:
        """Means over the epoch, weighted by batch size, and how much was made; starts the next."""
        parts, self._parts = self._parts, []
        count = sum(part.size for part in parts)
        means = {n: sum(p.size * getattr(p, n) for p in parts) / count for n in _MEANS}
        return {"means": means, "made": sum(part.made for part in parts)}
