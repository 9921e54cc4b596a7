"""Training scores instead of weights from start to end, recorded as a run."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slipstream.evaluation import (
    Batch,
    Loss,
    Metric,
    device_of,
    eval_mode,
    evaluate,
    weights_in,
)
from slipstream.evaluation.determinism import batch_digest
from slipstream.landscape.checkpoint import Checkpoint
from slipstream.landscape.corner_training import Descent, loss_value
from slipstream.recipes.iterand import Iterand
from slipstream.recipes.iterand_plan import IterandPlan
from slipstream.recipes.selection import churn
from slipstream.recipes.ticket import Ticket
from slipstream.recipes.ticket_file import SCORES, TICKET, load_ticket, save_ticket
from slipstream.trajectory import Recorder, Schedule
from slipstream.trajectory.run_folder import write_whole
from slipstream.trajectory.tensor_file import tensor_chunks
from slipstream.weights import copy, load_weights_, weights_of

DESCRIPTION, UNFINISHED = "iterand.json", "unfinished.pt"  # in the run folder


@dataclass(frozen=True)
class IterandTraining:
    """Result of `train_iterand`: the ticket, and how it came about."""

    ticket: Ticket
    losses: tuple[float, ...]  # mean training loss of each epoch
    churn: tuple[float, ...]  # share of the weights that fell or came back, of each epoch
    steps: int
    rounds: int  # of randomisation
    seconds: float  # of the training


def train_iterand(
    model: nn.Module,
    loss: Loss,
    *,
    data: Iterable[Batch],
    plan: IterandPlan | None = None,
    validation: Iterable[Batch] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    run_folder: str | Path | None = None,
    configuration: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[int, int | None], object] | None = None,
) -> IterandTraining:
    """Train by choosing which random weights stay, with IteRand or, at `redrawn=0`, edge-popup.

    Scores are trained by SGD or AdamW, as `plan.descent` says, the weights never. The run that is
    recorded is that of the pruned network: ordinary weights at every step.

    Source: "Pruning Randomly Initialized Neural Networks with Iterative Randomization" (Chijiwa et
    al., 2021), algorithm 1.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        data: Training batches; if it has a method `epoch(number)`, that gives those of an epoch.
        plan: How many weights fall, how they are drawn, and how scores are trained.
        validation: Batches on which `metrics` are taken after every epoch.
        metrics: Name to a function of the model and a batch; recorded with the run.
        run_folder: Records the pruned network after every epoch as a run, and the ticket in the
            end.
        configuration: What makes the run, as plain data; kept in it.
        overwrite: Whether to delete the snapshots of a run that is already there.
        resume: Whether to go on with a training that was interrupted; begins if there is none.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The ticket; `result.ticket.weights` are the weights to use.

    Raises:
        ValueError: If no weight can be masked, `data` is empty, the loss is not finite, or what is
            to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> from slipstream.landscape import Descent
        >>> model = nn.Linear(4, 1)
        >>> loss = lambda model, batch: (model(batch) - 1).square().mean()
        >>> plan = IterandPlan(pruned=0.5, descent=Descent(epochs=5, lr=0.1))
        >>> found = train_iterand(model, loss, data=[torch.eye(4)], plan=plan)
        >>> found.ticket.pruned, found.steps
        ({'weight': 0.5}, 5)
    """
    plan = plan or IterandPlan()
    with weights_in(model, copy(weights_of(model))), eval_mode(model):
        training = _Training(model, loss, plan, data)
        if run_folder is None:
            training.run(progress=progress)
            return training.result()
        folder = Path(run_folder)
        if resume and (folder / DESCRIPTION).is_file():
            return _finished(folder, plan)

        def measure() -> dict[str, float]:
            if validation is None or not metrics:
                return {}
            found = evaluate(model, metrics, data=validation)
            return {f"validation_{name}": value for name, value in found.items()}

        made_of = {**(configuration or {}), "recipe": {"iterand": asdict(plan)}}
        how = {"configuration": made_of, "seed": plan.seed, "overwrite": overwrite}
        return _record(training, folder, measure, resume=resume, progress=progress, **how)


def _record(
    training: "_Training",
    folder: Path,
    measure: Callable[[], dict[str, float]],
    *,
    resume: bool,
    progress: Callable[[int, int | None], object] | None,
    **how: Any,
) -> IterandTraining:
    """Train to the end, and keep the run and the ticket in a folder."""
    model, plan = training.model, training.iterand.plan
    start = batch_digest([weights_of(model)]).hex()
    checkpoint = Checkpoint(folder / UNFINISHED, {"plan": asdict(plan), "start": start})
    state = checkpoint.read() if resume else None
    if state is not None:
        training.load_state_dict(state)
    step = training.iterand.step
    nothing = Schedule.at(())  # besides the ends of epochs, which wait for their metrics
    recorder = Recorder(folder, model, schedule=nothing, resume=state is not None, step=step, **how)

    def keep() -> None:
        trained = {"train_loss": training.losses, "churn": training.churn}
        found = {name: values[-1] for name, values in trained.items() if values}
        recorder.record(
            step=training.iterand.step, epoch=len(training.losses), metrics=found | measure()
        )

    with recorder:
        if state is None:
            for name in (DESCRIPTION, TICKET, SCORES, UNFINISHED):
                (folder / name).unlink(missing_ok=True)
            checkpoint.offer(training.state_dict, last=True)
        if recorder.last_kept is None:
            keep()
        training.run(checkpoint=checkpoint, on_epoch=keep, progress=progress)
    result = training.result()
    _save(result, plan, folder)
    checkpoint.path.unlink()
    return result


class _Training:
    """Scores under an optimiser, epoch by epoch, in a model that is borrowed."""

    def __init__(
        self, model: nn.Module, loss: Loss, plan: IterandPlan, data: Iterable[Batch]
    ) -> None:
        self.model, self._loss, self._data = model, loss, data
        self._length = len(data) if isinstance(data, Sized) else None
        self._steps = None if self._length is None else self._length * plan.descent.epochs
        self.iterand = Iterand(model, plan, steps=self._steps)
        self._descent = plan.descent
        self._optimizer = plan.descent.build(self.iterand.parameters())
        self.losses: list[float] = []
        self.churn: list[float] = []
        self._seconds = 0.0

    def run(
        self,
        *,
        checkpoint: Checkpoint | None = None,
        on_epoch: Callable[[], object] | None = None,
        progress: Callable[[int, int | None], object] | None = None,
    ) -> None:
        """Train to the end of the plan."""

        def update(batch: Batch) -> float:
            self._optimizer.zero_grad()
            value = self._loss(self.model, batch)
            found = loss_value(value, self.iterand.step)
            torch.autograd.backward(value)
            self._optimizer.step()
            if progress is not None:
                progress(self.iterand.step, self._steps)
            return found

        with self.iterand.attach(self._optimizer):
            while len(self.losses) < self._descent.epochs:
                began = time.perf_counter()
                self._epoch(update)
                self._seconds += time.perf_counter() - began
                if on_epoch is not None:
                    on_epoch()
                if checkpoint is not None:
                    last = len(self.losses) == self._descent.epochs
                    checkpoint.offer(self.state_dict, last=last)

    def result(self) -> IterandTraining:
        """Return what there is now."""
        done = self.iterand
        losses, changed = tuple(self.losses), tuple(self.churn)
        return IterandTraining(
            done.ticket(), losses, changed, done.step, done.rounds, self._seconds
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return {
            "iterand": self.iterand.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "buffers": copy(dict(self.model.named_buffers())),
            "losses": list(self.losses),
            "churn": list(self.churn),
            "seconds": self._seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stopped."""
        load_weights_(self.model, state["buffers"])
        self.iterand.load_state_dict(state["iterand"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.losses, self.churn = list(state["losses"]), list(state["churn"])
        self._seconds = state["seconds"]

    def _epoch(self, update: Callable[[Batch], float]) -> None:
        epoch, before = len(self.losses), copy(self.iterand.masks)
        device = device_of(self.model)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            # One stream for each epoch, so that a resumed run draws what this one would.
            generator = np.random.default_rng((self._descent.seed, epoch))
            torch.manual_seed(int(generator.integers(2**62)))
            loss = self._descent.epoch_of_steps(
                self.model, self._data, self._optimizer, update, epoch=epoch, length=self._length
            )
        self.losses.append(loss)
        self.churn.append(churn(before, self.iterand.masks))


def _save(result: IterandTraining, plan: IterandPlan, folder: Path) -> None:
    """Write scores and ticket, then the description, which says that both are whole."""
    scores = {name: value.cpu() for name, value in (result.ticket.scores or {}).items()}
    write_whole(folder / SCORES, tensor_chunks(scores))
    save_ticket(result.ticket, folder / TICKET)
    told = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "ticket"}
    described = {"plan": asdict(plan), **told}
    write_whole(folder / DESCRIPTION, [json.dumps(described, indent=1).encode()])


def _finished(folder: Path, plan: IterandPlan) -> IterandTraining:
    """What an earlier call has finished."""
    try:
        described = json.loads((folder / DESCRIPTION).read_bytes())
        given = described.pop("plan")
        made = IterandPlan(**{**given, "descent": Descent(**given["descent"])})
        found = IterandTraining(
            load_ticket(folder),
            tuple(described.pop("losses")),
            tuple(described.pop("churn")),
            **described,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The training in {folder} cannot be read: {error}.") from error
    if made != plan:
        raise ValueError(
            f"{folder} holds a finished training of another plan, {made}. Give another path."
        )
    return found
