"""The life of one network under learned maps: a stream absorbed, and recorded as a run."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from slipstream.evaluation import Task, takes_task
from slipstream.recipes.meta_neuron.neuron import MetaNeuron, NetworkState
from slipstream.storage.new_run import NewRun
from slipstream.training.loop import Progress
from slipstream.trajectory import Recorder
from slipstream.weights import clone, weights_of


class LivingNetwork(nn.Module):
    """One network with its weights as parameters and the states of its units as a buffer.

    It answers like any classifier. The maps that rule it are not among its weights.
    """

    def __init__(self, neuron: MetaNeuron, *, seed: int = 0) -> None:
        """Let a network be born.

        Args:
            neuron: The maps.
            seed: Of the first weights.
        """
        super().__init__()
        self._neuron = (neuron,)  # in a tuple, so that it is not a submodule
        state = neuron.born(1, torch.Generator().manual_seed(seed))
        self.layers = nn.ParameterList(nn.Parameter(w[0]) for w in state.weights)
        self.units: Tensor
        self.register_buffer("units", state.units[0])

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (examples, ...) to logits, (examples, classes)."""
        return self._neuron[0].logits(self._state(), inputs[None])[0]

    @torch.no_grad()
    def absorb_(self, inputs: Tensor, labels: Tensor) -> None:
        """Learn labelled examples, (examples, ...), one after another."""
        state = self._state()
        for one, label in zip(torch.split(inputs, 1), torch.split(labels, 1), strict=True):
            state = self._neuron[0].update(state, one, label)
        for own, weight in zip(self.layers, state.weights, strict=True):
            own.copy_(weight[0])
        self.units.copy_(state.units[0])

    def _state(self) -> NetworkState:
        return NetworkState(tuple(weight[None] for weight in self.layers), self.units[None])


@dataclass(frozen=True)
class Life:
    """Result of `live`."""

    network: LivingNetwork  # at the end
    weights: dict[str, Tensor]  # its own
    steps: int  # examples that it absorbed


@takes_task
def live(
    task: Task,
    *,
    every: int = 10,
    seed: int = 0,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> Life:
    """Let a network absorb a stream of labelled examples under learned maps, and record its life.

    Every example is one step; there is no optimiser.

    Args:
        task: The model is a `MetaNeuron` with learned maps, left as it was; the data are batches
            `(inputs, labels)` in the order of the stream. Validation data are batches of examples,
            measured at every snapshot.
        every: Steps between two snapshots.
        seed: Of the network's first weights.
        run_folder: Records the network's weights and the states of its units as a run; it is made
            at once, so there is nothing to resume.
        progress: Called after each step with the steps done.

    Returns:
        The network.

    Raises:
        TypeError: If the model is no `MetaNeuron`.
        ValueError: If `data` is empty, a label has no class, or a weight is no longer finite.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> stream = [(torch.eye(4), torch.tensor([0, 0, 1, 1]))]
        >>> live(Task(MetaNeuron((4, 3, 2)), stream)).steps
        4
    """
    if not isinstance(task.model, MetaNeuron):
        raise TypeError(f"The model must be a MetaNeuron, got a {type(task.model).__name__}.")
    network = LivingNetwork(task.model, seed=seed)
    own = replace(task, model=network).repeatable()
    new = None if run_folder is None else NewRun.of(run_folder)
    recorder = None
    if new is not None:
        recipe = {"meta_neuron": {"every": every, "sizes": list(task.model.sizes)}}
        recorder = Recorder(
            new.folder,
            network,
            configuration={**new.configuration, "recipe": recipe},
            seed=seed,
            overwrite=new.overwrite,
        )
    step = 0
    with recorder or nullcontext():
        for step, (one, label) in enumerate(_examples(own), start=1):
            if recorder and (step - 1) % every == 0:
                recorder.record(step=step - 1, metrics=own.validated())
            network.absorb_(one, label)
            if progress:
                progress(step, None)
        if recorder:
            recorder.record(step=step, metrics=own.validated())
    return Life(network, clone(weights_of(network)), step)


def _examples(task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """The examples of a stream, one by one."""
    classes, empty = task.model.layers[-1].shape[1], True  # type: ignore[index]
    for batch in task.data:
        inputs, labels = task.to(batch)
        empty = False
        if not torch.isfinite(inputs).all():
            raise ValueError("The stream holds a NaN or an infinity: leave these examples out.")
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ValueError(
                f"The stream has the labels {int(labels.min())} to {int(labels.max())}, but the "
                f"networks have {classes} classes: give the MetaNeuron other sizes."
            )
        yield from zip(torch.split(inputs, 1), torch.split(labels, 1), strict=True)
    if empty:
        raise ValueError("data is empty: there is nothing to absorb.")
