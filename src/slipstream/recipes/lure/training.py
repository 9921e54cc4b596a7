"""LURE: learn, unlearn what matters least for new data, relearn on all data so far."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, Metric, batches_of_epoch
from slipstream.recipes.lure.unlearning import (
    check_share,
    least_salient,
    reset_weights_,
    resettable,
    weight_saliency,
)
from slipstream.training import Descent
from slipstream.training.loop import Descending, Progress, check_sized
from slipstream.training.recorded_training import kept, validated
from slipstream.training.reinitialise import fresh_weights, model_at
from slipstream.weights import Weights, copy, weights_of

Choice = Literal["saliency", "random", "none"]


@dataclass(frozen=True)
class LurePlan:
    """What is forgotten before each new chunk of data, and how is trained, as plain data.

    Example:
        >>> LurePlan(share=0.3).choice
        'saliency'
    """

    share: float = 0.2  # rho, of all weights that may be reset, over all tensors together
    choice: Choice = "saliency"  # which: the least salient; `random` and `none` are the controls
    slice_batches: int | None = None  # of the new chunk, for the saliency: the first; None is all
    descent: Descent = field(default_factory=lambda: Descent(epochs=20))  # on each chunk

    def __post_init__(self) -> None:
        check_share(self.share)
        if self.choice not in get_args(Choice):
            raise ValueError(f"choice must be saliency, random or none, got {self.choice!r}.")
        if self.slice_batches is not None and self.slice_batches < 1:
            raise ValueError(f"slice_batches must be at least 1, got {self.slice_batches}.")


@dataclass(frozen=True)
class LureStage:
    """One chunk of data: what was forgotten before it, and what was learned."""

    chunk: int  # counted from 0
    reset: int  # weights
    candidates: int  # weights that might have been reset: without those of normalisation layers
    by_tensor: Mapping[str, int]  # of `reset`
    metrics: Mapping[str, float]  # at its end, on validation data


@dataclass(frozen=True)
class Lure:
    """Result of `train_lure`."""

    plan: LurePlan
    weights: Mapping[str, Tensor]  # at the end
    stages: tuple[LureStage, ...]
    losses: tuple[float, ...]  # mean training loss of each epoch, over all data so far
    steps: int
    seconds: float  # of the training


def train_lure(
    model: nn.Module,
    loss: Loss,
    *,
    chunks: Sequence[Iterable[Batch]],
    plan: LurePlan | None = None,
    initial: Weights | None = None,
    fresh: Callable[[int], Weights] | None = None,
    validation: Iterable[Batch] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    run_folder: str | Path | None = None,
    configuration: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Lure:
    """Train on data that arrive in chunks: before each new one, forget the least salient weights.

    On the first chunk the network learns. Before every later one, the share rho of its weights
    with the least |g w| on the new data is drawn anew, and the network is trained on all data so
    far. With `choice="none"` this is a plain warm start.

    Source: "Learn, Unlearn and Relearn: An Online Learning Paradigm for Deep Neural Networks"
    (Ramkumar, Arani, Zonooz, 2023), algorithm 1.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        chunks: The batches of each chunk, with a length; if they have a method `epoch(number)`,
            that gives those of an epoch. The batches of all chunks so far come in random order.
        plan: What is forgotten, and how is trained.
        initial: Where to start, such as a transferred run's last snapshot; by default at the
            model's own weights.
        fresh: Maps a seed to fresh weights; by default `fresh_weights` of the model.
        validation: Batches on which `metrics` are taken after every epoch.
        metrics: Name to a function of the model and a batch.
        run_folder: Records the network after every epoch as a run.
        configuration: What makes the run, as plain data; kept in it.
        overwrite: Whether to delete the snapshots of a run that is already there.
        resume: Whether to go on with a training that was interrupted; begins if there is none.
        progress: Called after each step with the steps done and their number when this chunk ends.

    Returns:
        The weights, and what was forgotten at each chunk.

    Raises:
        ValueError: If a chunk is empty or has no length, the weights have another layout or
            cannot be drawn anew, the loss is not finite, or what is to be resumed is another
            training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> model = nn.Linear(2, 5)
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> from slipstream import classification_loss
        >>> plan = LurePlan(share=0.2, descent=Descent(epochs=1))
        >>> found = train_lure(model, classification_loss, chunks=[data, data], plan=plan)
        >>> [(stage.reset, stage.candidates) for stage in found.stages]
        [(0, 15), (3, 15)]
    """
    plan = plan or LurePlan()
    network = model_at(model, initial)
    check_sized(chunks, name="chunks", fewest=1)
    training = Descending(network, plan.descent, rounds=len(chunks))
    if not resettable(network):
        raise ValueError("The model has no weights that LURE may reset: only normalisation layers.")
    if plan.choice != "none" and len(chunks) > 1 and fresh is None:
        fresh_weights(network, seed=0)  # what cannot be drawn anew is told before the training

    def measure() -> dict[str, float]:
        return validated(network, metrics, validation)

    def after_epoch() -> None:
        if training.epoch % plan.descent.epochs == 0:
            training.notes[-1]["metrics"] = measure()
        keep()

    with kept(
        training,
        recorded=network,
        run_folder=run_folder,
        recipe={"lure": {**asdict(plan), "chunks": len(chunks)}},
        start=[weights_of(network)],
        configuration=configuration,
        measure=measure,
        overwrite=overwrite,
        resume=resume,
    ) as keep:
        for number in range(training.epoch // plan.descent.epochs, len(chunks)):
            if len(training.notes) == number:
                masks = _unlearn_(training, loss, plan, chunks[number], number, fresh)
                training.notes.append(_note(number, masks))
            training.run(
                lambda batch: loss(network, batch),
                data=_Joined(chunks[: number + 1], plan.descent.seed),
                on_epoch=after_epoch,
                progress=progress,
            )
    stages = tuple(LureStage(**note) for note in training.notes)
    losses = tuple(training.losses)
    return Lure(plan, copy(weights_of(network)), stages, losses, training.step, training.seconds)


def _unlearn_(
    training: Descending,
    loss: Loss,
    plan: LurePlan,
    chunk: Iterable[Batch],
    number: int,
    fresh: Callable[[int], Weights] | None,
) -> dict[str, Tensor]:
    """Reset weights before a chunk; returns which, by masks."""
    network = training.module
    parameters = dict(network.named_parameters())
    names = resettable(network)
    if not number or plan.choice == "none":
        return {name: torch.zeros_like(parameters[name], dtype=torch.bool) for name in names}
    generator = np.random.default_rng((plan.descent.seed, number, 1))
    seed = int(generator.integers(2**62))
    if plan.choice == "random":
        found = {
            name: torch.from_numpy(generator.random(tuple(parameters[name].shape)))
            for name in names
        }
    else:
        slice_ = islice(chunk, plan.slice_batches)
        measured = weight_saliency(network, loss, data=slice_)
        found = {name: measured[name] for name in names}
    masks = least_salient(found, share=plan.share)
    drawn = fresh(seed) if fresh else fresh_weights(network, seed=seed)
    reset_weights_(network, masks, fresh=drawn, optimizer=training.optimizer)
    return masks


def _note(number: int, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    by_tensor = {name: int(mask.sum()) for name, mask in masks.items()}
    candidates = sum(mask.numel() for mask in masks.values())
    reset = sum(by_tensor.values())
    return {
        "chunk": number,
        "reset": reset,
        "candidates": candidates,
        "by_tensor": by_tensor,
        "metrics": {},
    }


@dataclass(frozen=True)
class _Joined:
    """The batches of several chunks, in an order that depends on seed and epoch."""

    chunks: Sequence[Iterable[Batch]]
    seed: int
    number: int = 0

    def __len__(self) -> int:
        return sum(map(_length, self.chunks))

    def __iter__(self) -> Iterator[Batch]:
        turns = np.repeat(np.arange(len(self.chunks)), list(map(_length, self.chunks)))
        np.random.default_rng((self.seed, self.number)).shuffle(turns)
        open_ = [iter(batches_of_epoch(chunk, self.number)) for chunk in self.chunks]
        for turn in turns.tolist():
            yield from islice(open_[turn], 1)

    def epoch(self, number: int) -> "_Joined":
        """Return the batches of another epoch."""
        return _Joined(self.chunks, self.seed, number)


def _length(chunk: Any) -> int:
    return len(chunk)
