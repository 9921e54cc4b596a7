"""Averages of the weights along a run: from one recorded run, or formed during training."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from slipstream.averaging.rules import AverageRule
from slipstream.averaging.running import is_averaged, widened
from slipstream.sharded import cut_like, gathered, is_cut, is_sharded
from slipstream.trajectory import Layout, Snapshot, Trajectory
from slipstream.trajectory.optimizer_steps import after_each_step
from slipstream.weights import Weights, check_same_layout, first_nonfinite, unwrapped, weights_of

_log = logging.getLogger(__name__)


def average_run(trajectory: Trajectory, rule: AverageRule) -> dict[str, Tensor]:
    """Average the snapshots of a recorded run.

    One snapshot after the other is read, and only those that count. Tensors of whole numbers come
    from the last snapshot. BatchNorm's running statistics are averaged too; those of the averaged
    weights are others: see `recalibrate_batchnorm`.

    Args:
        trajectory: At least one snapshot.
        rule: `SWA`, `EMA`, `LAWA`, `Decay` or `PowerEMA`.

    Returns:
        The averaged weights, in the dtype of the run, rounded once.

    Raises:
        ValueError: If there is no snapshot, none counts, or one that counts is not finite.

    Example:
        >>> from slipstream.averaging import LAWA
        >>> run = Trajectory.from_weights([{"w": torch.full((1,), float(t))} for t in range(4)])
        >>> average_run(run, LAWA(2))
        {'w': tensor([2.5000])}
    """
    if not len(trajectory):
        raise ValueError("trajectory must hold at least one snapshot, got none.")
    shares = rule.kernel(trajectory.steps)
    return rounded(weighted_sum(zip(trajectory, shares, strict=True)), trajectory.layout)


def weighted_sum(counted: Iterable[tuple[Snapshot, float]]) -> dict[str, Tensor]:
    """Sum snapshots, one read after the other, in float64.

    Args:
        counted: Snapshots and their shares; the last one that counts gives the whole numbers.

    Returns:
        The sums.

    Raises:
        ValueError: If a snapshot that counts is not finite.
    """
    sums: dict[str, Tensor] = {}
    for number, (snapshot, share) in enumerate(counted):
        if share == 0:
            continue
        weights = snapshot.weights
        if name := first_nonfinite(weights):
            raise ValueError(
                f"Tensor {name!r} of step {snapshot.step} is not finite: average a part of the "
                f"run without it, trajectory[:{number}] or trajectory[{number + 1}:]."
            )
        for name, value in weights.items():
            if not is_averaged(value):
                sums[name] = value
            elif name in sums:
                sums[name].add_(value, alpha=share)
            else:
                sums[name] = widened(value) * share
    return sums


def rounded(weights: Weights, layout: Layout) -> dict[str, Tensor]:
    """Return weights in the dtypes and the order of a run."""
    return {name: weights[name].to(form.dtype) for name, form in layout.tensors.items()}


class Averages:
    """Several averages of a model, formed while it trains.

    The training is not altered. Call `update` after an optimiser step, or `attach` once. Under
    `DistributedDataParallel` all processes hold the same weights: one of them is enough, or each
    does the same. Of a sharded model (FSDP2, tensor parallelism) each process averages its pieces:
    all must have the averages, and ask for `weights` or `state_dict` together.

    Example:
        >>> from slipstream.averaging import EMA, SWA
        >>> model = nn.Linear(1, 1, bias=False)
        >>> averages = Averages(model, [SWA(start=2), EMA(0.5)])
        >>> for value in (1.0, 2.0, 3.0):
        ...     _ = model.weight.data.fill_(value)
        ...     averages.update()
        >>> averages.weights(SWA(start=2))
        {'weight': tensor([[2.5000]])}
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Iterable[AverageRule],
        *,
        device: torch.device | str | None = None,
    ) -> None:
        """Prepare the averages; nothing is averaged before the first update.

        Args:
            model: The model that trains, wrapped for data parallelism or not.
            rules: `SWA`, `EMA`, `PowerEMA`, `LAWA` and `Decay`, as many as you like. Each keeps 8
                bytes for every weight, the last two a copy of the weights for each snapshot that
                counts.
            device: Where to keep them; by default where the model is. "cpu" spares a GPU's memory,
                and is needed where the GPU has no float64 (MPS).

        Raises:
            ValueError: If there is no rule, one is given twice, or `device` is given for a sharded
                model.
        """
        if device is not None and is_sharded(model):
            raise ValueError(
                "device cannot be given for a sharded model: the averages are kept where its "
                "pieces are."
            )
        self.rules = tuple(rules)
        if not self.rules or len(set(self.rules)) < len(self.rules):
            raise ValueError(f"rules must be different ones, at least one, got {self.rules}.")
        self._model = unwrapped(model)
        self._device = device
        self._running = {rule: rule.running() for rule in self.rules}
        self.step = 0  # optimiser steps done, as counted or given
        self._names: tuple[str, ...] | None = None  # of the tensors at the last update
        self._detach: Callable[[], None] | None = None

    def attach(self, optimizer: torch.optim.Optimizer, *, every: int = 1) -> Self:
        """Update from now on after the optimiser's real steps.

        Args:
            optimizer: Its steps are counted.
            every: How many of them lie between two updates.

        Returns:
            The averages themselves.

        Raises:
            ValueError: If `every` is below 1.
            RuntimeError: If they are attached already.
        """
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}.")
        if self._detach is not None:
            raise RuntimeError("These averages are attached to an optimizer already.")

        def after_step(*_: object) -> None:
            self.step += 1
            if self.step % every == 0:
                self.update(step=self.step)

        self._detach = after_each_step(optimizer, after_step)
        return self

    def detach(self) -> None:
        """Leave the optimiser alone from now on."""
        if self._detach is not None:
            self._detach()
            self._detach = None

    def update(self, *, step: int | None = None) -> None:
        """Take in the weights as they are now.

        Args:
            step: Optimiser steps done; by default one more than at the last update.

        Raises:
            ValueError: If tensors of the model came or went. Weights that are not finite are left
                out, with a warning.
        """
        self.step = self.step + 1 if step is None else step
        weights = weights_of(self._model)
        if self._names is not None and self._names != tuple(weights):
            changed = sorted(set(weights).symmetric_difference(self._names))
            raise ValueError(
                f"The model has changed: {', '.join(changed[:4])} came or went since the last "
                "update. Make new Averages for the new model."
            )
        self._names = tuple(weights)
        if (name := first_nonfinite(weights)) is not None:
            _log.warning("Step %d is left out of the averages: %r is not finite.", self.step, name)
            return
        if self._device is not None:
            weights = {name: value.to(self._device) for name, value in weights.items()}
        for running in self._running.values():
            running.update(weights, self.step)

    def weights(self, rule: AverageRule) -> dict[str, Tensor]:
        """Return an average, for `evaluate(model, ..., weights=...)` or `load_weights_`.

        Args:
            rule: One of `rules`.

        Returns:
            New tensors in the dtypes of the model and on its device, each tied tensor once; of a
            sharded model its pieces, as `DTensor`.

        Raises:
            KeyError: If it is not one of the rules.
            ValueError: If nothing counts yet.
        """
        if rule not in self._running:
            raise KeyError(
                f"{rule} is not averaged here; there are {', '.join(map(str, self.rules))}."
            )
        mean = self._running[rule].mean()
        if mean is None:
            raise ValueError(f"{rule} has averaged nothing yet: {self.step} steps are done.")
        own = weights_of(self._model)
        return {name: mean[name].to(value, copy=True) for name, value in own.items()}

    def counts(self, rule: AverageRule) -> bool:
        """Return whether a rule has averaged anything yet."""
        return self._running[rule].mean() is not None

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain data, which `torch.save` keeps and `load_state_dict` reads.

        Tensors of a sharded model are gathered, on the CPU: another number of processes can load
        them.
        """
        running = {str(rule): running.state_dict() for rule, running in self._running.items()}
        for state in running.values():
            state["weights"] = [_whole(weights) for weights in state["weights"]]
        return {"step": self.step, "averages": running}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from another object's `state_dict`.

        Args:
            state: What it returned.

        Raises:
            ValueError: If it has other rules, or is of a model with other tensors. Then nothing
                has changed.
        """
        here, there = [str(rule) for rule in self.rules], list(state["averages"])
        if sorted(here) != sorted(there):
            raise ValueError(f"The state is of {', '.join(there)}; here are {', '.join(here)}.")
        own = weights_of(self._model)
        held = state["averages"]
        for rule in there:
            for weights in held[rule]["weights"]:
                check_same_layout(own, weights, names=("the model", f"the state of {rule}"))
        for rule, running in self._running.items():
            moved = [
                {
                    name: cut_like(value, own[name]).to(self._device or own[name].device)
                    for name, value in w.items()
                }
                for w in held[str(rule)]["weights"]
            ]
            running.load_state_dict({**held[str(rule)], "weights": moved})
        self.step = state["step"]


def _whole(weights: Weights) -> dict[str, Tensor]:
    return {n: gathered(value).cpu() if is_cut(value) else value for n, value in weights.items()}
