"""What the callbacks of all frameworks do: follow a training whose steps somebody else counts."""

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from slipstream.averaging import AverageRule, Averages, Nowcaster
from slipstream.evaluation import Batch, device_of, recalibrate_batchnorm, to_device
from slipstream.evaluation.swapped_weights import weights_in
from slipstream.modes import OnlineModes, OnlinePlan
from slipstream.sharded import is_sharded
from slipstream.trajectory import Recorder, Schedule
from slipstream.weights import clone, weights_of

Every = int | Literal["epoch"]  # optimiser steps


class Tracker(Protocol):
    """What is updated during training: `Averages`, `OnlineModes`, `Nowcaster`."""

    def update(self, *, step: int) -> None:
        """Take in the weights as they are now."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there."""


class AveragesDuringTraining:
    """Of a callback: averages are what is updated, and one of them may be validated and saved."""

    _tracker: Tracker | None
    _rules: tuple[AverageRule, ...]
    _device: torch.device | str | None
    _validated: AverageRule | None
    _calibration: Iterable[Batch] | None
    _exchange: ExitStack | None = None  # while averaged weights are in the model
    _trained: dict[str, Tensor] | None = None  # the model's own meanwhile

    def choose(
        self,
        rules: Iterable[AverageRule],
        *,
        validate: AverageRule | None,
        calibration: Iterable[Batch] | None,
    ) -> None:
        """Keep the rules, and check that the one to validate is among them."""
        self._rules, self._validated, self._calibration = tuple(rules), validate, calibration
        if validate is not None and validate not in self._rules:
            raise ValueError(
                f"validate must be one of the rules, {', '.join(map(str, self._rules))}, "
                f"got {validate}."
            )

    def make(self, model: nn.Module) -> Averages:
        """Return the averages of the model, before the first update."""
        if self._validated is not None and is_sharded(model):
            raise ValueError(
                "validate cannot be given for a sharded model: FSDP keeps its own hold of the "
                "weights, so that averaged ones cannot be put in for a while."
            )
        return Averages(model, self._rules, device=self._device)

    def put_averages_in(self, model: nn.Module) -> None:
        """Put the validated average into the model, if there is one, until `put_back`."""
        if self._exchange is not None or (averaged := self.averaged(model)) is None:
            return
        self._trained = weights_of(model)
        self._exchange = ExitStack()
        self._exchange.enter_context(weights_in(model, averaged))

    def put_back(self) -> None:
        """Put the trained weights back into the model, if averaged ones are in it."""
        if self._exchange is not None:
            exchange, self._exchange, self._trained = self._exchange, None, None
            exchange.close()

    def averaged(self, model: nn.Module) -> dict[str, Tensor] | None:
        """Return the validated average with its BatchNorm statistics, None before there is one."""
        if self._validated is None or not isinstance(self._tracker, Averages):
            return None
        if not self._tracker.counts(self._validated):
            return None
        weights = self._tracker.weights(self._validated)
        if self._calibration is not None:
            device = device_of(model)
            data = (to_device(batch, device) for batch in self._calibration)
            weights |= recalibrate_batchnorm(model, weights=weights, data=data)
        return weights

    def with_trained(self, state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
        """Add the trained weights to a state, where the checkpoint holds averaged ones."""
        return {**state, "trained": clone(self._trained or weights_of(model))}

    @property
    def averages(self) -> Averages:
        """The averages; of several processes, only the first one has them."""
        if not isinstance(self._tracker, Averages):
            raise RuntimeError("There are no averages before the training, or in this process.")
        return self._tracker


class ModesDuringTraining:
    """Of a callback: modes are what is updated."""

    _tracker: Tracker | None
    _options: dict[str, Any]

    def make(self, model: nn.Module) -> OnlineModes:
        """Return the modes of the model, before the first update."""
        return OnlineModes(model, OnlinePlan(**self._options))

    @property
    def modes(self) -> OnlineModes:
        """The modes; of several processes, only the first one has them."""
        if not isinstance(self._tracker, OnlineModes):
            raise RuntimeError("There are no modes before the training, or in this process.")
        return self._tracker


class NowcastsDuringTraining:
    """Of a callback: a nowcaster, made by the user, is what is updated."""

    nowcaster: Nowcaster
    _everywhere = True  # every process has to take the same jumps

    def make(self, model: nn.Module) -> Nowcaster:
        """Return the nowcaster, if it is one of the model."""
        if not self.nowcaster.follows(model):
            raise ValueError(
                "The nowcaster's task has another model than the one that trains: make the task of "
                "the same object. Parameters that are sharded (FSDP) cannot be nowcast."
            )
        return self.nowcaster


class FollowingRecorder:
    """A recorder that keeps a step when training continues from it.

    A framework logs and evaluates after the optimiser's step. Snapshots that are taken before the
    next step hold the same weights, and the numbers that belong to them.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module,
        *,
        step: int,
        schedule: Schedule | None = None,
        configuration: Mapping[str, Any] | None = None,
        seed: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """Make the run folder, or continue the existing one if steps have been done.

        Args:
            path: The run folder.
            model: What trains, inside its wrappers.
            step: The optimiser steps that the framework has done; snapshots after it are dropped.
            schedule: Which steps to keep; by default every 100.
            configuration: What makes the run, as plain data.
            seed: Of the training.
            overwrite: Whether a new training may replace a run that is there.
        """
        self._recorder = Recorder(
            path,
            model,
            schedule=schedule,
            configuration=configuration,
            seed=seed,
            overwrite=overwrite,
            resume=step if step > 0 and Path(path, "run.json").is_file() else False,
        )
        self._recorder.step = step
        self._seen = step - 1

    def log(self, numbers: Mapping[str, Any]) -> None:
        """Keep values for the snapshot of the present step; what is not a number is left out."""
        plain = {name: value for name, value in numbers.items() if _is_number(value)}
        self._recorder.log(**plain)

    def follow(self, step: int, *, epoch: float | None, last: bool = False) -> None:
        """Keep the weights of a step if the schedule asks for them.

        Args:
            step: Optimiser steps done.
            epoch: Epochs done.
            last: Whether to keep them anyway.
        """
        passed = range(self._seen + 1, step + 1)  # a framework may count several at once
        planned = any(number in self._recorder.schedule for number in passed)
        kept = self._recorder.last_kept
        if kept is None or (kept != step and (planned or last)):
            self._recorder.record(step=step, epoch=epoch)
        self._recorder.drop_logged()  # what belongs to this step is not the next one's
        self._seen = step

    def close(self) -> None:
        """Wait until all is written."""
        self._recorder.close()


def is_due(every: Every, step: int, *, before: int) -> bool:
    """Return whether a multiple of `every` lies among the steps after `before`, up to `step`."""
    return every != "epoch" and step // every > before // every


def check_every(every: Every) -> Every:
    """Return `every`, or raise if it is neither a number of steps nor "epoch"."""
    if every != "epoch" and every < 1:
        raise ValueError(f"every must be at least 1 step, or 'epoch', got {every}.")
    return every


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and math.isfinite(value)
