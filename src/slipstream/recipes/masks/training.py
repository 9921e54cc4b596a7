"""Training scores instead of weights from start to end, recorded as a run."""

from collections.abc import Mapping, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slipstream.evaluation import Task, eval_mode, takes_task, weights_in
from slipstream.recipes.masks.iterand import Iterand
from slipstream.recipes.masks.plan import IterandPlan
from slipstream.recipes.masks.selection import churn
from slipstream.recipes.masks.ticket import Ticket
from slipstream.recipes.masks.ticket_file import SCORES, TICKET, save_ticket
from slipstream.storage.new_run import NewRun
from slipstream.storage.tensor_file import tensor_chunks
from slipstream.storage.writing import write_whole
from slipstream.training import Loop, recorded
from slipstream.training.loop import Progress
from slipstream.trajectory import declare_companions
from slipstream.weights import clone, weights_of


@dataclass(frozen=True)
class IterandTraining:
    """Result of `train_iterand`: the ticket, and how it came about."""

    ticket: Ticket
    losses: tuple[float, ...]  # mean training loss of each epoch
    churn: tuple[float, ...]  # share of the weights pruned or restored, of each epoch
    steps: int
    rounds: int  # of randomisation
    seconds: float  # of the training


@takes_task
def train_iterand(
    task: Task,
    *,
    plan: IterandPlan | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> IterandTraining:
    """Train by choosing which random weights stay, with IteRand or, at `redrawn=0`, edge-popup.

    Scores are trained by SGD or AdamW, as `plan.descent` says, the weights never. The run that is
    recorded is that of the pruned network: ordinary weights at every step.

    Source: "Pruning Randomly Initialized Neural Networks with Iterative Randomization" (Chijiwa et
    al., 2021), algorithm 1.

    Args:
        task: Model, loss and data; the model is left as it was.
        plan: How many weights are pruned, how they are initialised, and how scores are trained.
        run_folder: Records the pruned network after every epoch as a run, and the ticket in the
            end.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The ticket; `result.ticket.weights` are the weights to use.

    Raises:
        ValueError: If no weight can be masked, `data` is empty, the loss is not finite, or what is
            to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from slipstream.training import TrainingPlan
        >>> loss = lambda model, batch: (model(batch) - 1).square().mean()
        >>> task = Task(nn.Linear(4, 1), [torch.eye(4)], loss)
        >>> plan = IterandPlan(pruned=0.5, descent=TrainingPlan(epochs=5, lr=0.1))
        >>> found = train_iterand(task, plan=plan)
        >>> found.ticket.pruned, found.steps
        ({'weight': 0.5}, 5)
    """
    plan, model = plan or IterandPlan(), task.model
    with weights_in(model, clone(weights_of(model))), eval_mode(model):
        training = _Training(task, plan)

        def measure() -> dict[str, float]:
            found = {"churn": training.churn[-1]} if training.churn else {}
            return found | task.validated()

        recipe, start = {"iterand": asdict(plan)}, [weights_of(model)]
        recording = recorded(training, task, run_folder, plan=recipe, start=start, measure=measure)
        with recording as keep, training.iterand.attach(training.optimizer):

            def after_epoch() -> None:
                training.note_churn()
                keep()

            training.run(
                lambda batch: task.loss(model, batch),
                data=task.data,
                on_epoch=after_epoch,
                progress=progress,
            )
        result = training.result()
    if run_folder is not None:
        save_in_run(result.ticket, NewRun.of(run_folder).folder)
    return result


class _Training(Loop):
    """Scores under an optimiser, in a model that is borrowed."""

    def __init__(self, task: Task, plan: IterandPlan) -> None:
        known = isinstance(task.data, Sized)
        steps = len(task.data) * plan.descent.epochs if known else None  # type: ignore[arg-type]
        self.iterand = Iterand(task.model, plan, steps=steps)
        trained = self.iterand.parameters()
        super().__init__(task.model, plan.descent, trained=trained, batch_size=task.batch_size)
        self.churn: list[float] = []
        self._masks = clone(self.iterand.masks)  # at the end of the last epoch

    def note_churn(self) -> None:
        """Keep how many weights were pruned or restored since the last time."""
        self.churn.append(churn(self._masks, self.iterand.masks))
        self._masks = clone(self.iterand.masks)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        own = {"iterand": self.iterand.state_dict(), "churn": list(self.churn)}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another one stopped."""
        super().load_state_dict(state)
        self.iterand.load_state_dict(state["iterand"])
        self.churn, self._masks = list(state["churn"]), clone(self.iterand.masks)

    def result(self) -> IterandTraining:
        """Return what there is now."""
        done = self.iterand
        losses, changed = tuple(self.losses), tuple(self.churn)
        return IterandTraining(done.ticket(), losses, changed, self.step, done.rounds, self.seconds)


def save_in_run(ticket: Ticket, folder: Path) -> None:
    """Write the scores, then the ticket, which says that both are whole."""
    declare_companions(folder, SCORES, TICKET)
    scores = {name: value.cpu() for name, value in (ticket.scores or {}).items()}
    write_whole(folder / SCORES, tensor_chunks(scores))
    save_ticket(ticket, folder / TICKET)
