"""Learning the maps of a neuron: by gradients through truncated unrolls, or by a population."""

import copy as copying
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from slipstream.evaluation import Batch, Task, TaskBatch, takes_task
from slipstream.recipes.meta_neuron.neuron import MetaNeuron, NetworkState
from slipstream.recipes.meta_neuron.plan import NeuronPlan
from slipstream.recipes.meta_neuron.streams import AfterStream, as_streams, losses_along
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, loss_value, recorded
from slipstream.training.loop import Progress
from slipstream.weights import clone, weights_of


@dataclass(frozen=True)
class NeuronTraining:
    """Result of `train_neuron`."""

    plan: NeuronPlan
    weights: dict[str, Tensor]  # of the maps; of a population, the best one's
    losses: tuple[float, ...]  # mean over each epoch, of the queries seen along the streams
    steps: int
    seconds: float  # of the training


@takes_task
def train_neuron(
    task: Task,
    *,
    plan: NeuronPlan | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> NeuronTraining:
    """Learn the maps that let networks absorb a stream in one pass, whatever its order.

    Each step takes a batch of tasks, whose support examples are streams for new random networks.
    After every `unroll` updates the queries of all classes seen so far are answered. By gradient,
    the loss of each piece passes back through its updates and no further; in a population, the
    better half by the mean loss stays and is copied with mutations.

    Source: "A Meta-Learned Neuron model for Continual Learning" (Siry, 2021), whose search is the
    population.

    Args:
        task: The model is a `MetaNeuron`, left as it was; the data are batches of few-shot tasks,
            such as `ClassTasks`, whose labels mean another class in each stream. Validation data
            and metrics are of the same kind; see `AfterStream`.
        plan: How.
        run_folder: Records the maps after every epoch as a run.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The maps.

    Raises:
        TypeError: If the model is no `MetaNeuron`, or a batch holds no tasks.
        ValueError: If `data` is empty, the loss is not finite, or what is to be resumed is another
            training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> from slipstream.testbed.tasks import TaskForm, load_tasks
        >>> from slipstream.training import TrainingPlan
        >>> tasks = load_tasks("digits", TaskForm(ways=3, shots=4, batches=2)).train
        >>> plan = NeuronPlan(unroll=6, descent=TrainingPlan(epochs=1, optimizer="adam", lr=1e-3))
        >>> train_neuron(Task(MetaNeuron((64, 8, 3)), tasks), plan=plan).steps
        2
    """
    plan = plan or NeuronPlan()
    if not isinstance(task.model, MetaNeuron):
        kind = type(task.model).__name__
        raise TypeError(f"The model to train must be a MetaNeuron, got a {kind}.")
    neuron = copying.deepcopy(task.model)
    if not isinstance(task.loss, AfterStream):
        task = replace(
            task, loss=AfterStream(), metrics={"accuracy": AfterStream(metric="accuracy")}
        )
    task = replace(task, model=neuron)
    training = _Population(neuron, plan) if plan.search == "population" else _Unrolled(neuron, plan)
    with recorded(
        training,
        task,
        run_folder,
        plan={"meta_neuron": asdict(plan)},
        start=[weights_of(neuron)],
    ) as keep:
        training.run(
            lambda batch: task.loss(neuron, batch), data=task.data, on_epoch=keep, progress=progress
        )
    losses = tuple(training.losses)
    return NeuronTraining(plan, clone(weights_of(neuron)), losses, training.step, training.seconds)


class _Unrolled(Loop):
    """Gradients that pass through one piece of the streams at a time."""

    def __init__(self, neuron: MetaNeuron, plan: NeuronPlan) -> None:
        self.neuron, self.how = neuron, plan
        super().__init__(neuron, plan.descent)

    def update(self, loss: Callable[[Batch], Tensor], batch: Batch) -> float:
        """Take a step on a batch of tasks; the loss of the whole stream is not needed."""
        self.optimizer.zero_grad()
        found = []
        for part in losses_along(self.neuron, *self.born_for(batch), self.how.unroll):
            found.append(loss_value(part, self.step))
            torch.autograd.backward(part)
        # Long unrolls have rare steep places; their gradients would undo many steps.
        nn.utils.clip_grad_norm_(self.neuron.parameters(), self.how.clip)
        self.optimizer.step()
        return math.fsum(found) / len(found)

    def born_for(self, batch: Batch) -> tuple[NetworkState, TaskBatch]:
        """Return new networks, and the streams that they will meet."""
        if not isinstance(batch, TaskBatch):
            raise TypeError(f"data must hold TaskBatches, got a {type(batch).__name__}.")
        generator = torch.Generator().manual_seed(int(self.generator.integers(2**62)))
        streams = as_streams(batch, self.how.order, generator)
        return self.neuron.born(len(streams.query[1]), generator), streams


class _Population(_Unrolled):
    """Candidates in a leading axis of the weights: the better half stays, copies of it mutate."""

    def __init__(self, neuron: MetaNeuron, plan: NeuronPlan) -> None:
        super().__init__(neuron, plan)
        generator = torch.Generator().manual_seed(plan.descent.seed)
        self.candidates = {
            name: value.detach()
            + plan.mutation * _noise((plan.population, *value.shape), generator)
            for name, value in neuron.named_parameters()
        }

    def update(self, loss: Callable[[Batch], Tensor], batch: Batch) -> float:
        """Let a generation pass on a batch of tasks."""
        state, streams = self.born_for(batch)  # the same for all candidates

        def fitness(weights: Mapping[str, Tensor]) -> Tensor:
            def call(*given: Any) -> Any:
                return functional_call(self.neuron, dict(weights), given)

            return torch.stack(list(losses_along(call, state, streams, self.how.unroll))).mean()

        with torch.no_grad():
            losses = vmap(fitness)(self.candidates)
            value = loss_value(losses.min(), self.step)
            best = losses.argsort()[: len(losses) // 2]
            generator = torch.Generator().manual_seed(int(self.generator.integers(2**62)))
            for name, parameter in self.neuron.named_parameters():
                kept = self.candidates[name][best]
                parameter.copy_(kept[0])
                moved = kept + self.how.mutation * _noise(kept.shape, generator).to(kept)
                self.candidates[name] = torch.cat([kept, moved])
        return value

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return super().state_dict() | {"candidates": self.candidates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another one stopped."""
        super().load_state_dict(state)
        self.candidates = dict(state["candidates"])


def _noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator)
