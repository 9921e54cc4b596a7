"""Nowcasting: predict the weights some steps ahead, and jump there if a held-out loss falls."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from slipstream.averaging.averages import rounded, weighted_sum
from slipstream.evaluation import Task, device_of, probe_determinism
from slipstream.evaluation.swapped_weights import eval_mode
from slipstream.trajectory import Trajectory
from slipstream.trajectory.optimizer_steps import after_each_step
from slipstream.weights import Weights, clone, load_weights_, unwrapped

Predictor = Callable[[Trajectory, int], Weights]  # the latest snapshots, and a step -> parameters


@dataclass(frozen=True)
class NowcastPlan:
    """When to jump, and how far.

    A window of `snapshots` lies `gap` steps apart. A straight line is fitted to each weight over
    the window, and read off some steps ahead of the present one. 0 steps ahead is no extrapolation:
    what is fitted lacks the noise between the steps.
    """

    snapshots: int = 10  # in the window
    gap: int = 5  # optimiser steps between them
    every: int = 50  # optimiser steps from one attempt to the next
    ahead: tuple[int, ...] = (0, 10)  # optimiser steps; all are tried, the best is taken

    def __post_init__(self) -> None:
        if self.snapshots < 2:
            raise ValueError(f"snapshots must be at least 2, got {self.snapshots}.")
        if self.gap < 1 or self.every < 1:
            raise ValueError(
                f"gap and every must be at least 1 step, got {self.gap} and {self.every}."
            )
        if not self.ahead or min(self.ahead) < 0:
            raise ValueError(f"ahead must hold numbers of steps, none negative, got {self.ahead}.")


@dataclass(frozen=True)
class Jump:
    """An attempt of a `Nowcaster`."""

    step: int  # optimiser steps done
    before: float  # held-out loss of the trained weights
    losses: tuple[float, ...]  # of the predicted ones, in the order of `NowcastPlan.ahead`
    ahead: int | None  # the steps ahead that were taken; None if the trained weights were kept
    seconds: float  # processor time of prediction and checks


def trend_kernel(steps: Sequence[int], at: float) -> list[float]:
    """Return how much each snapshot counts in the straight line through the weights, at a step.

    Args:
        steps: Of the snapshots, at any distances.
        at: Where to read off the line, among the steps or beyond them.

    Returns:
        Shares, some of them negative; all together 1.

    Raises:
        ValueError: If there are no two different steps.

    Example:
        >>> trend_kernel([0, 10], 30)
        [-2.0, 3.0]
    """
    if len(set(steps)) < 2:
        raise ValueError(f"A trend needs at least 2 different steps, got {list(steps)}.")
    mean = statistics.fmean(steps)
    slope = (at - mean) / math.fsum((step - mean) ** 2 for step in steps)
    return [1 / len(steps) + slope * (step - mean) for step in steps]


class Nowcaster:
    """Jumps ahead while a model trains, wherever that lowers the loss on held-out batches.

    The trained weights are exchanged for predicted ones only after the check: a jump that is
    refused leaves weights, buffers and the optimiser's state as they were, bit for bit. One that is
    taken changes the weights alone, and takes the window along. Each check costs a pass over the
    task's validation batches for every number of steps ahead, and one more: keep these batches few.

    The held-out batches take part in the training from then on: judge the result on others.

    Example:
        >>> from torch import nn
        >>> from slipstream.evaluation import squared_loss
        >>> held_out = [(torch.ones(4, 1), torch.zeros(4, 1))]
        >>> task = Task(nn.Linear(1, 1), held_out, squared_loss, validation=held_out)
        >>> optimizer = torch.optim.SGD(task.model.parameters(), lr=0.001)
        >>> plan = NowcastPlan(snapshots=5, gap=1, every=10, ahead=(0, 20))
        >>> nowcaster = Nowcaster(task, plan).attach(optimizer)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     task.loss(task.model, held_out[0]).backward()
        ...     _ = optimizer.step()
        >>> [(jump.step, jump.ahead) for jump in nowcaster.jumps]
        [(10, 20)]
    """

    def __init__(
        self, task: Task, plan: NowcastPlan | None = None, *, predict: Predictor | None = None
    ) -> None:
        """Prepare; nothing is predicted before the first steps.

        Args:
            task: The model that trains, the loss, and the held-out batches as its validation data.
            plan: When to jump, and how far.
            predict: Maps the window and a step to parameters, instead of the straight lines.

        Raises:
            ValueError: If the task has no validation data, which decide on a jump.
        """
        task.part("validation")
        self.plan = plan or NowcastPlan()
        self.step = 0  # optimiser steps done, as counted or given
        self.jumps: list[Jump] = []  # all attempts
        self._task = replace(task.repeatable(), model=unwrapped(task.model), metrics={})
        self._predict = predict or _on_lines
        self._window: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=self.plan.snapshots)
        self._detach: Callable[[], None] | None = None

    @property
    def seconds(self) -> float:
        """Processor time of all predictions and checks."""
        return sum(jump.seconds for jump in self.jumps)

    def follows(self, model: nn.Module) -> bool:
        """Return whether the parameters are those of a model, or of a part of it."""
        there = {id(parameter) for parameter in model.parameters()}
        return all(id(parameter) in there for parameter in self._task.model.parameters())

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Follow the optimiser's real steps from now on.

        Args:
            optimizer: Its steps are counted.

        Returns:
            The nowcaster itself.

        Raises:
            RuntimeError: If it is attached already.
        """
        if self._detach is not None:
            raise RuntimeError("This nowcaster is attached to an optimizer already.")
        self._detach = after_each_step(optimizer, lambda *_: self.update())
        return self

    def detach(self) -> None:
        """Leave the training alone from now on."""
        if self._detach is not None:
            self._detach()
            self._detach = None

    def update(self, *, step: int | None = None) -> None:
        """Take in the weights as they are now, and jump if it is time and if it helps.

        Args:
            step: Optimiser steps done; by default one more than at the last update.

        Raises:
            ValueError: If the held-out loss of the same weights differs from pass to pass.
        """
        before, self.step = self.step, self.step + 1 if step is None else step
        if self.step < before:  # another training
            self._window.clear()
        if self.step // self.plan.gap > before // self.plan.gap:
            self._window.append((self.step, clone(self._parameters())))
        due = self.step // self.plan.every > before // self.plan.every
        if due and len(self._window) == self.plan.snapshots:
            device = device_of(self._task.model)
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self._attempt()

    def _attempt(self) -> None:
        began = time.process_time()
        if not self.jumps:
            self._probe()
        here = self._loss(None)
        steps = [step for step, _ in self._window]
        window = Trajectory.from_weights([held for _, held in self._window], steps=steps)
        best, losses, taken = here, [], None
        for ahead in self.plan.ahead:
            predicted = self._predict(window, self.step + ahead)
            losses.append(self._loss(predicted))
            if losses[-1] < best:  # never of a NaN
                best, taken, weights = losses[-1], ahead, predicted
        if taken is not None:
            self._jump(weights)
        seconds = time.process_time() - began
        self.jumps.append(Jump(self.step, here, tuple(losses), taken, seconds))

    def _probe(self) -> None:
        task = self._task
        with eval_mode(task.model):
            probe = probe_determinism(
                task.model, task.loss, data=task.part("validation"), batch_size=task.batch_size
            )
        if not probe.deterministic:
            raise ValueError(
                "The held-out loss of the same weights was "
                f"{probe.first_loss:.9g}, then {probe.second_loss:.9g}. What differs: "
                f"{' and '.join(probe.suspects)}. Pass a fixed list of batches as validation."
            )

    def _jump(self, weights: Weights) -> None:
        """Go there, and take the window along, so that its trend stays what it was."""
        own = self._parameters()
        for _, held in self._window:
            for name, value in own.items():
                held[name] += weights[name] - value
        load_weights_(self._task.model, {name: weights[name] for name in own})

    def _loss(self, weights: Weights | None) -> float:
        return self._task.evaluate(weights=weights, split="validation")["loss"]

    def _parameters(self) -> dict[str, Tensor]:
        named = self._task.model.named_parameters()
        return {name: value.detach() for name, value in named if value.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain data, which `torch.save` keeps and `load_state_dict` reads."""
        return {
            "step": self.step,
            "plan": asdict(self.plan),
            "jumps": [asdict(jump) for jump in self.jumps],
            "steps": [step for step, _ in self._window],
            "weights": [clone(held) for _, held in self._window],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from another object's `state_dict`.

        Args:
            state: What it returned.

        Raises:
            ValueError: If it has another plan. Then nothing has changed.
        """
        if state["plan"] != asdict(self.plan):
            raise ValueError(f"The state is of the plan {state['plan']}; here is {self.plan}.")
        device = device_of(self._task.model)
        held = [{name: v.to(device) for name, v in w.items()} for w in state["weights"]]
        self.step = state["step"]
        self.jumps = [Jump(**{**jump, "losses": tuple(jump["losses"])}) for jump in state["jumps"]]
        self._window.clear()
        self._window.extend(zip(state["steps"], map(clone, held), strict=True))


def _on_lines(window: Trajectory, step: int) -> Weights:
    shares = trend_kernel(window.steps, step)
    return rounded(weighted_sum(zip(window, shares, strict=True)), window.layout)
