"""LURE: learn, unlearn what matters least for new data, relearn on all data so far."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slipstream.evaluation import Batch, Task, batches_of_epoch, takes_task
from slipstream.recipes.lure.plan import LurePlan
from slipstream.recipes.lure.unlearning import (
    least_salient,
    reset_weights_,
    resettable,
    weight_saliency,
)
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, check_sized, fresh_weights, recorded
from slipstream.training.loop import Progress
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, clone, weights_of


@dataclass(frozen=True)
class LureStage:
    """One chunk of data: what was reset before it, and what was learned."""

    chunk: int  # counted from 0
    reset: int  # weights
    candidates: int  # weights that could be reset: all but those of normalisation layers
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


@takes_task
def train_lure(
    task: Task,
    *,
    chunks: Sequence[Iterable[Batch]],
    plan: LurePlan | None = None,
    initial: Weights | None = None,
    fresh: Callable[[int], Weights] | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> Lure:
    """Train on data that arrive in chunks: before each new one, reset the least salient weights.

    On the first chunk the network learns. Before every later one, the share rho of its weights
    with the least |g w| on the new data is re-initialised, and the network is trained on all data
    so far. With `choice="none"` this is a plain warm start.

    Source: "Learn, Unlearn and Relearn: An Online Learning Paradigm for Deep Neural Networks"
    (Ramkumar, Arani, Zonooz, 2023), algorithm 1.

    Args:
        task: Model, loss and validation data; `chunks` stand in for its training data.
        chunks: The batches of each chunk, with a length; if they have a method `epoch(number)`,
            that gives those of an epoch. The batches of all chunks so far come in random order.
        plan: How much is reset, and how the network is trained.
        initial: Where to start, such as a transferred run's last snapshot; by default at the
            model's own weights.
        fresh: Maps a seed to new initial weights; by default `fresh_weights` of the model.
        run_folder: Records the network after every epoch as a run.
        progress: Called after each step with the steps done and their number when this chunk ends.

    Returns:
        The weights, and what was reset before each chunk.

    Raises:
        ValueError: If a chunk is empty or has no length, the weights have another layout or
            cannot be re-initialised, the loss is not finite, or what is to be resumed is another
            training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> from torch import nn
        >>> from slipstream.training import TrainingPlan
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> plan = LurePlan(share=0.2, descent=TrainingPlan(epochs=1))
        >>> found = train_lure(Task(nn.Linear(2, 5)), chunks=[data, data], plan=plan)
        >>> [(stage.reset, stage.candidates) for stage in found.stages]
        [(0, 15), (3, 15)]
    """
    plan = plan or LurePlan()
    network = model_at(task.model, initial)
    task = replace(task, model=network)
    check_sized(chunks, name="chunks", fewest=1)
    training = Loop(network, plan.descent, rounds=len(chunks), batch_size=task.batch_size)
    if not resettable(network):
        raise ValueError("The model has no weights that LURE may reset: only normalisation layers.")
    if plan.choice != "none" and len(chunks) > 1 and fresh is None:
        fresh_weights(network, seed=0)  # raises before the training what would be raised in it

    def after_epoch() -> None:
        if training.epoch % plan.descent.epochs == 0:
            training.notes[-1]["metrics"] = task.validated()
        keep()

    recipe = {"lure": {**asdict(plan), "chunks": len(chunks)}}
    start = [weights_of(network)]
    with recorded(training, task, run_folder, plan=recipe, start=start) as keep:
        for number in range(training.epoch // plan.descent.epochs, len(chunks)):
            if len(training.notes) == number:
                new = replace(task, data=chunks[number])
                training.notes.append(_note(number, _unlearn_(training, new, plan, number, fresh)))
            training.run(
                lambda batch: task.loss(network, batch),
                data=_Joined(chunks[: number + 1], plan.descent.seed),
                on_epoch=after_epoch,
                progress=progress,
            )
    stages = tuple(LureStage(**note) for note in training.notes)
    losses = tuple(training.losses)
    return Lure(plan, clone(weights_of(network)), stages, losses, training.step, training.seconds)


def _unlearn_(
    training: Loop, task: Task, plan: LurePlan, number: int, fresh: Callable[[int], Weights] | None
) -> dict[str, Tensor]:
    """Reset weights before a chunk, the task's data; returns which, as masks."""
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
        measured = weight_saliency(replace(task, data=islice(task.data, plan.slice_batches)))
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
