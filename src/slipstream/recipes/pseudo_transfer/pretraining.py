"""Pseudo pre-training: a network of any architecture learns from a source's generator."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from slipstream.evaluation import (
    Batch,
    Task,
    batchnorm_layers,
    classification_loss,
    device_of,
    eval_mode,
    inputs_of,
    recalibrate_batchnorm,
    takes_task,
    weights_in,
)
from slipstream.recipes.pseudo_transfer.other_head import under_other_head
from slipstream.recipes.pseudo_transfer.plan import PretrainPlan
from slipstream.recipes.pseudo_transfer.sampling import TRIAL, SyntheticBatches, check_same_shape
from slipstream.recipes.pseudo_transfer.source import PseudoSource, takes_source
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, recorded
from slipstream.training.loop import Progress
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, clone, load_weights_, weights_of


@dataclass(frozen=True)
class Pretrained:
    """Result of `pseudo_pretrain`."""

    plan: PretrainPlan
    weights: dict[str, Tensor]  # of the model: all but the head are trained
    losses: tuple[float, ...]  # mean loss on synthetic examples, of each epoch
    steps: int
    synthetic: int  # examples that the generator made
    seconds: float


@takes_source
@takes_task
def pseudo_pretrain(
    source: PseudoSource,
    task: Task,
    *,
    head: str,
    plan: PretrainPlan | None = None,
    initial: Weights | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> Pretrained:
    """Pre-train a network of any architecture on examples that a source generator makes (PP).

    It learns the source's classes, all equally likely, under a head for these; then its own head
    is put back. BatchNorm normalises by the batch meanwhile, and its running
    statistics never see synthetic examples: they are estimated on the target's inputs after every
    epoch if the task has data, and else stay as they were.

    Source: "Transfer Learning with Pre-trained Conditional Generative Models" (Yamaguchi, Kanai,
    Kumagai, Chijiwa, Kashima, 2022), pseudo pre-training.

    Args:
        source: Its generator, and perhaps its head: a module that maps the inputs of the layer
            `head` to the source's classes.
        task: The network for the target, with a head for its labels; left as it was. If it has
            data, their inputs are what BatchNorm's statistics are estimated on.
        head: Name of the layer that is replaced for the source's classes, such as `head`.
        plan: How.
        initial: Where to start instead of at the model's own weights, such as at a transferred
            run's last snapshot.
        run_folder: Records the model, with its own head, after every epoch as a run.
        progress: Called after each step with the steps done and their final number.

    Returns:
        Weights to start from on the target.

    Raises:
        ValueError: If the generator fails, its inputs do not fit, there is no such layer, the loss
            is not finite, or what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> from slipstream.recipes.pseudo_transfer import ConditionalGenerator
        >>> generator = ConditionalGenerator(lambda labels, _: labels, classes=3)
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> from slipstream.training import TrainingPlan
        >>> plan = PretrainPlan(2, 8, TrainingPlan(epochs=1))
        >>> found = pseudo_pretrain(PseudoSource(generator), Task(model), head="1", plan=plan)
        >>> found.steps, found.synthetic, found.weights["1.weight"].shape
        (2, 16, torch.Size([2, 4]))
    """
    plan = plan or PretrainPlan()
    network, seed = model_at(task.model, initial), plan.descent.seed
    data = SyntheticBatches(source.maker, plan.batch_size, plan.batches, seed)
    under = under_other_head(
        network, head=head, classes=source.classes, seed=seed, other=source.head
    )
    _try_pretraining(under, data, task.data)
    training = Loop(under, plan.descent)

    def loss(batch: Batch) -> Tensor:
        with weights_in(under, None):  # buffers are restored at the end
            return classification_loss(under, batch)

    def on_epoch() -> None:
        if task.data != () and batchnorm_layers(network):
            load_weights_(
                network, recalibrate_batchnorm(network, data=task.data, forward=task.forward)
            )
        keep()

    with recorded(
        training,
        replace(task, model=network),
        run_folder,
        plan={"pseudo_pretraining": asdict(plan)},
        start=[weights_of(network), weights_of(under)],
        measure=dict,
    ) as keep:
        training.run(loss, data=data, on_epoch=on_epoch, progress=progress)
    return Pretrained(
        plan, clone(weights_of(network)), tuple(training.losses), training.step,
        training.step * plan.batch_size, training.seconds,
    )  # fmt: skip


def _try_pretraining(under: nn.Module, data: SyntheticBatches, target: Iterable[Batch]) -> None:
    """Raise if the generator's inputs do not fit, before a step is taken or a file is written."""
    few, classes = min(data.size, TRIAL), data.generator.classes
    made, _ = next(iter(SyntheticBatches(data.generator, few, 1, data.seed)))
    if target != ():
        batch = next(iter(target), None)
        if batch is None:
            raise ValueError("data is empty: there is no input to estimate statistics on.")
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
