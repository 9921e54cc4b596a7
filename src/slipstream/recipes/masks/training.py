"""Training scores instead of weights from start to end, recorded as a run."""

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from slipstream.evaluation import Batch, Loss, Metric, eval_mode, weights_in
from slipstream.recipes.masks.iterand import Iterand
from slipstream.recipes.masks.plan import IterandPlan
from slipstream.recipes.masks.selection import churn
from slipstream.recipes.masks.ticket import Ticket
from slipstream.recipes.masks.ticket_file import SCORES, TICKET, save_ticket
from slipstream.storage.tensor_file import tensor_chunks
from slipstream.storage.writing import write_whole
from slipstream.training.loop import Descending
from slipstream.training.recorded_training import kept, validated
from slipstream.trajectory import declare_companions
from slipstream.weights import copy, weights_of


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
        >>> import torch
        >>> from slipstream.training import Descent
        >>> model = nn.Linear(4, 1)
        >>> loss = lambda model, batch: (model(batch) - 1).square().mean()
        >>> plan = IterandPlan(pruned=0.5, descent=Descent(epochs=5, lr=0.1))
        >>> found = train_iterand(model, loss, data=[torch.eye(4)], plan=plan)
        >>> found.ticket.pruned, found.steps
        ({'weight': 0.5}, 5)
    """
    plan = plan or IterandPlan()
    with weights_in(model, copy(weights_of(model))), eval_mode(model):
        training = _Training(model, plan, len(data) if isinstance(data, Sized) else None)

        def measure() -> dict[str, float]:
            found = {"churn": training.churn[-1]} if training.churn else {}
            return found | validated(model, metrics, validation)

        keeping = kept(
            training,
            recorded=model,
            run_folder=run_folder,
            recipe={"iterand": asdict(plan)},
            start=[weights_of(model)],
            configuration=configuration,
            measure=measure,
            overwrite=overwrite,
            resume=resume,
        )
        with keeping as keep, training.iterand.attach(training.optimizer):

            def after_epoch() -> None:
                training.note_churn()
                keep()

            if not training.finished:
                training.run(
                    lambda batch: loss(model, batch),
                    data=data,
                    on_epoch=after_epoch,
                    progress=progress,
                )
        result = training.result()
    if run_folder is not None:
        save_beside(result.ticket, Path(run_folder))
    return result


class _Training(Descending):
    """Scores under an optimiser, in a model that is borrowed."""

    def __init__(self, model: nn.Module, plan: IterandPlan, batches: int | None) -> None:
        steps = None if batches is None else batches * plan.descent.epochs
        self.iterand = Iterand(model, plan, steps=steps)
        super().__init__(model, plan.descent, trained=self.iterand.parameters())
        self.churn: list[float] = []
        self._masks = copy(self.iterand.masks)  # at the end of the last epoch

    def note_churn(self) -> None:
        """Keep how many weights fell or came back since the last time."""
        self.churn.append(churn(self._masks, self.iterand.masks))
        self._masks = copy(self.iterand.masks)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        own = {"iterand": self.iterand.state_dict(), "churn": list(self.churn)}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stopped."""
        super().load_state_dict(state)
        self.iterand.load_state_dict(state["iterand"])
        self.churn, self._masks = list(state["churn"]), copy(self.iterand.masks)

    def result(self) -> IterandTraining:
        """Return what there is now."""
        done = self.iterand
        losses, changed = tuple(self.losses), tuple(self.churn)
        return IterandTraining(done.ticket(), losses, changed, self.step, done.rounds, self.seconds)


def save_beside(ticket: Ticket, folder: Path) -> None:
    """Write the scores, then the ticket, which says that both are whole."""
    declare_companions(folder, SCORES, TICKET)
    scores = {name: value.cpu() for name, value in (ticket.scores or {}).items()}
    write_whole(folder / SCORES, tensor_chunks(scores))
    save_ticket(ticket, folder / TICKET)
