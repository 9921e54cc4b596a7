"""Transfer without source data: what a source's classifier and generator know, to any network."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from slipstream.evaluation import (
    Batch,
    Loss,
    Metric,
    batch_size,
    device_of,
    evaluate,
    inputs_of,
    to_device,
    weights_in,
)
from slipstream.recipes.pseudo_transfer.augmentation import Augmentation
from slipstream.recipes.pseudo_transfer.consistency import Consistency
from slipstream.recipes.pseudo_transfer.sampling import (
    TRIAL,
    Classifier,
    ConditionalGenerator,
    Conditioning,
    check_conditioning,
    check_samples,
    pseudo_samples,
)
from slipstream.training import Descent
from slipstream.training.loop import Descending, Progress, loss_value
from slipstream.training.recorded_training import kept
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, copy, weights_of


@dataclass(frozen=True)
class PseudoPlan:
    """How a network learns from labelled target data and synthetic inputs, as plain data."""

    weight: float = 0.1  # lambda: how much the synthetic inputs count
    consistency: Consistency = field(default_factory=Consistency)
    conditioning: Conditioning = "soft"
    ratio: int = 1  # synthetic inputs for each labelled one
    rise: float = 0.0  # share of the epochs over which the weight rises from 0
    descent: Descent = field(default_factory=lambda: Descent(epochs=60, lr=0.05))

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}.")
        if self.ratio < 1:
            raise ValueError(f"ratio must be at least 1, got {self.ratio}.")
        if not 0 <= self.rise <= 1:
            raise ValueError(f"rise must be at least 0 and at most 1, got {self.rise}.")

    def weight_at(self, epoch: int) -> float:
        """Return what the synthetic inputs count in an epoch, counted from 0.

        Example:
            >>> plan = PseudoPlan(weight=2.0, rise=0.5, descent=Descent(epochs=8))
            >>> [plan.weight_at(epoch) for epoch in (0, 1, 4)]
            [0.0, 0.5, 2.0]
        """
        rising = self.rise * self.descent.epochs
        return self.weight * min(1.0, epoch / rising) if rising else self.weight


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


def pseudo_semi_supervised(
    model: nn.Module,
    loss: Loss,
    *,
    generator: ConditionalGenerator,
    classifier: Classifier | None,
    data: Iterable[Batch],
    plan: PseudoPlan | None = None,
    initial: Weights | None = None,
    weak: Augmentation | None = None,
    strong: Augmentation | None = None,
    validation: Iterable[Batch] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    run_folder: str | Path | None = None,
    configuration: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> PseudoTransferred:
    """Learn a task from few labels and from synthetic inputs that look like its own (P-SSL).

    Each step minimises the loss on a labelled batch, plus `weight` times a loss without labels on
    what the generator makes of the source classes that these inputs look like. In that second part
    BatchNorm normalises by the synthetic batch, and no buffer of the model changes: the running
    statistics are those of the target alone, to the bit.

    Source: "Transfer Learning with Pre-trained Conditional Generative Models" (Yamaguchi, Kanai,
    Kumagai, Chijiwa, Kashima, 2022), pseudo semi-supervised learning. That running statistics are
    left alone is ours: mixed ones made a network useless.

    Args:
        model: Any module that maps inputs to logits of the target; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        generator: Of the source; makes inputs of the target's shape.
        classifier: Of the source; maps target inputs to logits. None if the plan's conditioning is
            uniform.
        data: Labelled batches of the target; if it has a method `epoch(number)`, that gives those
            of an epoch.
        plan: How.
        initial: Where to start instead of at the model's own weights: those of `pseudo_pretrain`,
            or of a transferred run.
        weak: The weak change of inputs, if it is to be another than the consistency's own.
        strong: The strong change of inputs.
        validation: Batches on which `metrics` are taken after every epoch.
        metrics: Name to a function of the network and a batch.
        run_folder: Records the model after every epoch as a run.
        configuration: What makes the run, as plain data; kept in it.
        overwrite: Whether to delete the snapshots of a run that is already there.
        resume: Whether to go on with a training that was interrupted; begins if there is none.
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
        >>> from slipstream import classification_loss
        >>> generator = ConditionalGenerator(lambda labels, _: labels, classes=2)
        >>> plan = PseudoPlan(consistency=Consistency("entropy"), descent=Descent(epochs=2))
        >>> found = pseudo_semi_supervised(
        ...     nn.Linear(2, 3), classification_loss, generator=generator,
        ...     classifier=nn.Identity(), data=[(torch.eye(2), torch.tensor([0, 2]))], plan=plan,
        ... )
        >>> found.steps, found.synthetic
        (2, 4)
    """
    plan = plan or PseudoPlan()
    network = model_at(model, initial)
    check_transfer(
        network, generator, classifier=classifier, data=data, plan=plan, weak=weak, strong=strong
    )
    source = _Source(generator, classifier, plan, weak, strong)
    training = Descending(network, plan.descent)
    steps = _Steps(network, loss, source, training)

    def measure() -> dict[str, float]:
        found = dict(training.notes[-1]["means"]) if training.notes else {}
        if validation is not None and metrics:
            there = evaluate(network, metrics, data=validation)
            found |= {f"validation_{name}": value for name, value in there.items()}
        return found

    with kept(
        training,
        recorded=network,
        run_folder=run_folder,
        recipe={"pseudo_semi_supervised": asdict(plan)},
        start=[weights_of(network)],
        configuration=configuration,
        measure=measure,
        overwrite=overwrite,
        resume=resume,
    ) as keep:

        def on_epoch() -> None:
            training.notes.append(steps.taken())
            keep()

        if not training.finished:
            training.run(steps.loss, data=data, on_epoch=on_epoch, progress=progress)
    means = {n: tuple(note["means"][n] for note in training.notes) for n in _MEANS}
    return PseudoTransferred(
        plan, copy(weights_of(network)), tuple(training.losses), **means, steps=training.step,
        synthetic=sum(note["made"] for note in training.notes), seconds=training.seconds,
    )  # fmt: skip


def check_transfer(
    model: nn.Module,
    generator: ConditionalGenerator,
    *,
    classifier: Classifier | None,
    data: Iterable[Batch],
    plan: PseudoPlan,
    weak: Augmentation | None = None,
    strong: Augmentation | None = None,
) -> None:
    """Try a source on a few inputs of the target, so that nothing fails after hours of training.

    `pseudo_semi_supervised` does so itself; call it before you pre-train.

    Args:
        model: Says where the inputs go.
        generator: Of the source.
        classifier: Of the source.
        data: Labelled batches of the target.
        plan: How the synthetic inputs are to be made, and what is learned from them.
        weak: The weak change of inputs.
        strong: The strong change of inputs.

    Raises:
        ValueError: If the generator, the classifier or the augmentations do not suit the plan and
            the data.

    Example:
        >>> hard = ConditionalGenerator(lambda labels, _: labels, classes=2, labels="hard")
        >>> given = {"classifier": nn.Identity(), "data": []}
        >>> check_transfer(nn.Identity(), hard, **given, plan=PseudoPlan(conditioning="sampled"))
    """
    if not plan.weight:
        return
    check_conditioning(generator, classifier, plan.conditioning)
    once = isinstance(data, Iterator)  # a look at it would take a batch away
    batch = None if once else next(iter(data), None)
    if batch is None:
        return
    inputs = inputs_of(to_device(batch, device_of(model)))
    if not isinstance(inputs, Tensor):
        raise ValueError(
            "data must give batches whose inputs are a tensor, as the generator makes them; got "
            f"a {type(inputs).__name__}."
        )
    few = inputs[:TRIAL]
    check_samples(generator, classifier, inputs=few, conditioning=plan.conditioning)
    plan.consistency.of(nn.Flatten(), few, weak=weak, strong=strong)


class _Part(NamedTuple):
    """What a step was made of."""

    size: int
    made: int
    supervised: float
    unsupervised: float = 0.0
    confident: float = 0.0


_MEANS = ("supervised", "unsupervised", "confident")


@dataclass(frozen=True)
class _Source:
    """What the source gives to a step: a loss on inputs that it makes."""

    generator: ConditionalGenerator
    classifier: Classifier | None
    plan: PseudoPlan
    weak: Augmentation | None
    strong: Augmentation | None

    def loss(self, network: nn.Module, inputs: Tensor, *, step: int) -> tuple[Tensor, float]:
        """The loss without labels on what is made of some inputs, and the share that counts."""
        drawing = np.random.default_rng((self.plan.descent.seed, step))
        first, second = (int(seed) for seed in drawing.integers(2**62, size=2))
        made = pseudo_samples(
            self.generator,
            self.classifier,
            inputs=inputs.repeat_interleave(self.plan.ratio, 0),
            conditioning=self.plan.conditioning,
            seed=first,
        )
        with weights_in(network, None):  # what happens to buffers stays inside
            return self.plan.consistency.of(
                network, made, seed=second, weak=self.weak, strong=self.strong
            )


class _Steps:
    """The whole loss of each step, and what its parts were in an epoch."""

    def __init__(
        self, network: nn.Module, loss: Loss, source: _Source, training: Descending
    ) -> None:
        self._network, self._loss = network, loss
        self._source, self._training = source, training
        self._parts: list[_Part] = []

    def loss(self, batch: Batch) -> Tensor:
        """The loss on a labelled batch, and on what is made of its inputs."""
        plan, step = self._source.plan, self._training.step
        own, size = self._loss(self._network, batch), batch_size(batch)
        weight, supervised = plan.weight_at(self._training.epoch), loss_value(own, step)
        if not weight:
            self._parts.append(_Part(size, 0, supervised))
            return own
        beside, confident = self._source.loss(self._network, inputs_of(batch), step=step)
        unsupervised = loss_value(beside, step)
        self._parts.append(_Part(size, plan.ratio * size, supervised, unsupervised, confident))
        return own + weight * beside

    def taken(self) -> dict[str, Any]:
        """Means over the epoch, weighted by batch size, and how much was made; begins anew."""
        parts, self._parts = self._parts, []
        count = sum(part.size for part in parts)
        means = {n: sum(p.size * getattr(p, n) for p in parts) / count for n in _MEANS}
        return {"means": means, "made": sum(part.made for part in parts)}
