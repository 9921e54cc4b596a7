"""Pseudo pre-training: a network of any architecture learns from a source's generator."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import (
    Batch,
    batchnorm_layers,
    classification_loss,
    device_of,
    eval_mode,
    inputs_of,
    recalibrate_batchnorm,
    weights_in,
)
from slipstream.recipes.pseudo_transfer.other_head import under_other_head
from slipstream.recipes.pseudo_transfer.sampling import (
    TRIAL,
    ConditionalGenerator,
    SyntheticBatches,
    check_same_shape,
)
from slipstream.training import Descent
from slipstream.training.loop import Descending, Progress
from slipstream.training.recorded_training import kept
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, copy, load_weights_, weights_of


@dataclass(frozen=True)
class PretrainPlan:
    """How a network is pre-trained on what a generator makes, as plain data."""

    batches: int = 100  # of an epoch
    batch_size: int = 128
    descent: Descent = field(default_factory=lambda: Descent(epochs=10, lr=0.05))

    def __post_init__(self) -> None:
        for name in ("batches", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Pretrained:
    """Result of `pseudo_pretrain`."""

    plan: PretrainPlan
    weights: dict[str, Tensor]  # of the model: all but the head are trained
    losses: tuple[float, ...]  # mean loss on synthetic examples, of each epoch
    steps: int
    synthetic: int  # examples that the generator made
    seconds: float


def pseudo_pretrain(
    model: nn.Module,
    generator: ConditionalGenerator,
    *,
    head: str,
    plan: PretrainPlan | None = None,
    initial: Weights | None = None,
    source_head: nn.Module | None = None,
    target: Iterable[Batch] | None = None,
    run_folder: str | Path | None = None,
    configuration: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Pretrained:
    """Pre-train a network of any architecture on examples that a source generator makes (PP).

    It learns to tell the source's classes, each as likely as any other, under a head for these;
    then its own head is put back. BatchNorm normalises by the batch meanwhile, and its running
    statistics never see synthetic examples: they are estimated on the target's inputs after every
    epoch if `target` is given, and else stay as they were.

    Source: "Transfer Learning with Pre-trained Conditional Generative Models" (Yamaguchi, Kanai,
    Kumagai, Chijiwa, Kashima, 2022), pseudo pre-training.

    Args:
        model: The network for the target, with a head for its labels; left as it was.
        generator: Of the source.
        head: Name of the layer that is another for the source's classes, such as `head`.
        plan: How.
        initial: Where to start instead of at the model's own weights, such as at a transferred
            run's last snapshot.
        source_head: The head for the source's classes, if it is to be another than one like the
            model's own: a module that maps the inputs of the layer `head` to them.
        target: Batches of the target; only inputs are looked at.
        run_folder: Records the model, its own head on, after every epoch as a run.
        configuration: What makes the run, as plain data; kept in it.
        overwrite: Whether to delete the snapshots of a run that is already there.
        resume: Whether to go on with a training that was interrupted; begins if there is none.
        progress: Called after each step with the steps done and their final number.

    Returns:
        Weights to start from on the target.

    Raises:
        ValueError: If the generator fails, its inputs do not fit, there is no such layer, the loss
            is not finite, or what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> generator = ConditionalGenerator(lambda labels, _: labels, classes=3)
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> plan = PretrainPlan(2, 8, Descent(epochs=1))
        >>> found = pseudo_pretrain(model, generator, head="1", plan=plan)
        >>> found.steps, found.synthetic, found.weights["1.weight"].shape
        (2, 16, torch.Size([2, 4]))
    """
    plan = plan or PretrainPlan()
    network, seed = model_at(model, initial), plan.descent.seed
    data = SyntheticBatches(generator, plan.batch_size, plan.batches, seed)
    under = under_other_head(
        network, head=head, classes=generator.classes, seed=seed, other=source_head
    )
    _try_pretraining(under, data, target)
    training = Descending(under, plan.descent)

    def loss(batch: Batch) -> Tensor:
        with weights_in(under, None):  # what happens to buffers stays inside
            return classification_loss(under, batch)

    with kept(
        training,
        recorded=network,
        run_folder=run_folder,
        recipe={"pseudo_pretraining": asdict(plan)},
        start=[weights_of(network), weights_of(under)],
        configuration=configuration,
        measure=dict,
        overwrite=overwrite,
        resume=resume,
    ) as keep:

        def on_epoch() -> None:
            if target is not None and batchnorm_layers(network):
                load_weights_(network, recalibrate_batchnorm(network, data=target))
            keep()

        if not training.finished:
            training.run(loss, data=data, on_epoch=on_epoch, progress=progress)
    return Pretrained(
        plan, copy(weights_of(network)), tuple(training.losses), training.step,
        training.step * plan.batch_size, training.seconds,
    )  # fmt: skip


def _try_pretraining(
    under: nn.Module, data: SyntheticBatches, target: Iterable[Batch] | None
) -> None:
    """Raise if the generator's inputs do not fit, before a step is taken or a file is written."""
    few, classes = min(data.size, TRIAL), data.generator.classes
    made, _ = next(iter(SyntheticBatches(data.generator, few, 1, data.seed)))
    if target is not None:
        batch = next(iter(target), None)
        if batch is None:
            raise ValueError("target is empty: there is no input to estimate statistics on.")
        check_same_shape(made, inputs_of(batch))
    try:
        with torch.no_grad(), eval_mode(under):
            outputs = under(made.to(device_of(under)))
    except RuntimeError as error:
        raise ValueError(
            "The model does not take what the generator makes, inputs of shape "
            f"{tuple(made.shape[1:])}: {error}."
        ) from error
    if outputs.shape != (few, classes):
        raise ValueError(
            f"Under the head for the source, the model must give {classes} logits, one for each of "
            f"the generator's classes; for {few} inputs it gives shape {tuple(outputs.shape)}."
        )
