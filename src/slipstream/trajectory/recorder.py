"""Recording a training run from inside any loop, without changes to it."""

import logging
import warnings
import weakref
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from slipstream.sharded import is_sharded, local_part
from slipstream.storage.room import check_memory
from slipstream.trajectory.background import AfterSnapshot, Background
from slipstream.trajectory.layout import Layout
from slipstream.trajectory.optimizer_steps import after_each_step
from slipstream.trajectory.run_files import read_run
from slipstream.trajectory.run_folder import RunWriter, create_run, reopen_run
from slipstream.trajectory.schedule import Schedule
from slipstream.trajectory.sharded_run import ShardedWriter
from slipstream.weights import Weights, weights_of

_log = logging.getLogger(__name__)


def _takes_step(start: Callable[..., None]) -> Callable[..., None]:
    """Let `step=` be given as in 0.1, where `resume` was a flag."""

    @wraps(start)
    def begin(self: "Recorder", *args: Any, **given: Any) -> None:
        if "step" not in given:
            return start(self, *args, **given)
        warnings.warn(
            "Recorder(..., resume=True, step=20) is now Recorder(..., resume=20).",
            DeprecationWarning,
            stacklevel=2,
        )
        step = given.pop("step")
        if given.get("resume") and step is not None:
            given["resume"] = step
        start(self, *args, **given)
        self.step = self.step if step is None else step

    return begin


class Recorder:
    """Keeps snapshots of a model while it trains.

    One line before the loop, `Recorder("run", model).attach(optimizer)`, counts the steps the
    optimiser really takes and keeps those of the schedule. Use it in a `with` statement, or close
    it, to keep the last step too. When the loop breaks with an exception, what was recorded by
    then stays, and the weights, perhaps in the middle of an update, are not recorded.

    A model that is sharded over processes (FSDP2, tensor parallelism) is recorded by all of them:
    make, attach and close a recorder in each. They write their pieces and need a shared folder;
    what the first one logs is kept.

    Example:
        >>> import tempfile
        >>> from slipstream.trajectory.trajectory import Trajectory
        >>> model = nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> folder = tempfile.mkdtemp()
        >>> with Recorder(folder, model, schedule=Schedule.every(4)).attach(optimizer):
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(2, 3)).sum().backward()
        ...         optimizer.step()
        >>> Trajectory.open(folder).steps
        [0, 4, 8, 10]
    """

    @_takes_step
    def __init__(
        self,
        path: str | Path,
        model: nn.Module,
        *,
        schedule: Schedule | None = None,
        configuration: Mapping[str, Any] | None = None,
        seed: int | None = None,
        overwrite: bool = False,
        resume: bool | int = False,
    ) -> None:
        """Make or reopen the run folder; nothing is recorded before `attach` or `record`.

        Args:
            path: The run folder; made if it does not exist.
            model: The model that trains.
            schedule: Which steps to keep; by default every 100.
            configuration: What makes the run, as plain data; kept in `run.json`.
            seed: The seed of the run; kept in `run.json`.
            overwrite: Whether to delete the snapshots of a run that is already there.
            resume: Whether to append to a run that is already there; what made it stays noted. A
                number says how many steps the optimiser has done: snapshots after it are dropped.

        Raises:
            FileExistsError: If the folder is not empty.
            ValueError: If the run to resume is of a model with other tensors, if a tensor holds no
                values, or not every one, or if the processes of a sharded model disagree on the
                model or the folder.
            MemoryError: If there is no room for one copy of the weights.
        """
        self.schedule = schedule or Schedule.every(100)
        self._model = model
        layout = Layout.of(model)
        own = {name: local_part(value) for name, value in weights_of(model).items()}
        _check_held(own)
        copied = sum(value.nbytes for value in own.values())
        check_memory(copied, f"Recording {path}, with one copy of the weights,")

        def begin() -> RunWriter:
            if resume is not False:
                before = read_run(path).layout  # compared before any snapshot is dropped
                before.check(layout.tensors, where=f"The model to resume {path} with")
                return reopen_run(path, keep_through=None if resume is True else resume)
            return create_run(
                path,
                model=layout,
                configuration=configuration,
                seed=seed,
                provenance={"recorded": {"schedule": self.schedule.to_json()}},
                overwrite=overwrite,
            )

        writer = ShardedWriter(model, path, begin) if is_sharded(model) else begin()
        self.step = (writer.last_step or 0) if isinstance(resume, bool) else resume
        self._last_kept = writer.last_step
        self._layout = writer.layout
        self._epoch: float | None = None
        self._metrics: dict[str, float | Tensor] = {}  # logged since the step began
        self._kept_names: set[str] = set()  # of metrics that a snapshot holds
        self._left_out: set[str] = set()
        # Whether the weights are, or may be, no longer those of the last snapshot.
        self._moved = self._last_kept is not None
        self._background = Background(writer)
        self._detach: Callable[[], None] | None = None
        self._attached: torch.optim.Optimizer | None = None
        # A recorder that is forgotten, or alive when Python ends, still writes what it holds.
        self._release = weakref.finalize(self, self._background.close)

    @property
    def last_kept(self) -> int | None:
        """The step of the last snapshot, those of an earlier part of the run included."""
        return self._last_kept

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Record the weights as they are, and from now on after the steps of the schedule.

        Args:
            optimizer: Its real steps are counted: not those that gradient accumulation or a
                gradient scaler leaves out. Attach a new one when training continues with it: the
                count continues, and the old one's steps count no more.

        Returns:
            The recorder itself, for a `with` statement.

        Raises:
            RuntimeError: If it is attached to this optimizer already.
            TypeError: If it is not an optimizer and does not wrap one.
        """
        if optimizer is self._attached:
            raise RuntimeError("This recorder is attached to this optimizer already.")
        detach = after_each_step(optimizer, self._after_step)
        if self._detach is not None:
            self._detach()
        self._detach, self._attached = detach, optimizer
        if self._last_kept is None:
            self.record()
        return self

    def log(self, *, epoch: float | None = None, **metrics: float | Tensor) -> None:
        """Keep values for the snapshot of the present step; a later call replaces an earlier one.

        They belong to the weights as they are now. If this step has its snapshot already, they are
        added to it; without an attached optimiser, as long as the weights are those of the last
        snapshot. If it is never recorded, they are left out, with a warning: record it, with
        `record(metrics=...)`. What is logged in the step before a snapshot, such as the training
        loss of every batch, goes to that snapshot.

        Args:
            epoch: Epochs done.
            metrics: Values, or tensors of one value, which are read when the snapshot is taken.

        Raises:
            RuntimeError: If the recorder is closed.
            ValueError: If a tensor holds several values.
        """
        self._check_open()
        self._epoch = epoch if epoch is not None else self._epoch
        for name, value in metrics.items():
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ValueError(
                    f"The metric {name!r} must be one value; its shape is {tuple(value.shape)}."
                )
            self._metrics[name] = value.detach() if isinstance(value, Tensor) else value
        if self._detach is None and self._last_kept == self.step and not self._moved:
            # Nobody counts steps: only the weights tell whether they are still those of a snapshot.
            self._moved = not self._background.holds(weights_of(self._model))
            if not self._moved:
                self._settle()

    def record(
        self,
        *,
        step: int | None = None,
        epoch: float | None = None,
        metrics: Mapping[str, float | Tensor] | None = None,
    ) -> None:
        """Keep the weights as they are now, whatever the schedule says.

        Args:
            step: Optimiser steps done; by default as counted.
            epoch: Epochs done.
            metrics: Numbers to keep with the snapshot, besides those that were logged.

        Raises:
            ValueError: If the step does not grow.
            RuntimeError: If the recorder is closed.
        """
        self._check_open()
        self.step = self.step if step is None else step
        if self._last_kept is not None and self.step <= self._last_kept:
            raise ValueError(f"step must grow: {self.step} comes after {self._last_kept}.")
        self.log(epoch=epoch, **(metrics or {}))
        epoch = self.schedule.epoch_of(self.step) if self._epoch is None else self._epoch
        weights = self._layout.untie(weights_of(self._model), where=f"step {self.step}")
        self._background.put(self.step, weights, epoch, self._values())
        self._last_kept, self._moved = self.step, False
        self._epoch, self._metrics = None, {}

    def call_after(self, hook: AfterSnapshot) -> Self:
        """Call a function behind the loop after each snapshot, to upload it for example.

        Args:
            hook: Called with the run folder and the paths in it of the files that are new or have
                changed, in the order in which to upload them: the index comes last. If it fails,
                the training goes on, and the files are passed again with the next snapshot. Of a
                sharded model it is called in the first process, with the files of all.

        Returns:
            The recorder itself.
        """
        self._background.after = hook
        return self

    def _check_open(self) -> None:
        if not self._release.alive:
            raise RuntimeError("This recorder is closed; to continue, make one with resume=True.")

    def wait(self) -> None:
        """Wait until all that was recorded is on disk."""
        self._background.wait()

    def drop_logged(self) -> None:
        """Leave out what was logged since the last snapshot: that step is not recorded."""
        self._left_out |= set(self._metrics)
        self._epoch, self._metrics = None, {}

    def _values(self) -> dict[str, float]:
        """What was logged, as numbers: here a GPU is waited for."""
        self._kept_names |= set(self._metrics)
        return {name: float(value) for name, value in self._metrics.items()}

    def _settle(self) -> None:
        """Add what was logged to the snapshot of this step, if it has one."""
        if (self._metrics or self._epoch is not None) and self._last_kept == self.step:
            self._background.amend(self._epoch, self._values())
            self._epoch, self._metrics = None, {}
        elif self._last_kept is not None:
            self.drop_logged()

    def close(self, *, keep_last: bool = True) -> None:
        """Keep the last step if it is not kept yet, wait until all is written, release the run.

        Args:
            keep_last: Whether to keep the last step.
        """
        if not self._release.alive:
            return
        if self._detach is not None:
            self._detach()
        try:
            if keep_last and self._detach is not None:
                self._keep_last()
            elif keep_last and self._last_kept is not None:
                self.step = self._last_kept
            self._settle()
        finally:
            self._release()
        self._background.raise_unseen()
        if lost := sorted(self._left_out - self._kept_names):
            _log.warning(
                "%s: logged only at steps that were not recorded, so they are not kept. Record "
                "such steps: recorder.record(metrics=...).",
                ", ".join(lost),
            )

    def _keep_last(self) -> None:
        """Record the last step, also if somebody else's steps have moved the weights since."""
        if self._last_kept != self.step:
            self.record()
        elif not self._background.all_hold(weights_of(self._model)):
            self._settle()
            _log.warning(
                "The weights have moved since step %d, but not by the attached optimizer. They are "
                "kept as step %d; how many steps that took is unknown. Attach each optimizer of a "
                "training: recorder.attach(new_optimizer).",
                self.step,
                self.step + 1,
            )
            self.record(step=self.step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(keep_last=error is None)

    def _after_step(self, *_: object) -> None:
        self._settle()
        self.step += 1
        if self.step in self.schedule:
            self.record()


def _check_held(weights: Weights) -> None:
    """Refuse tensors that do not hold every value in memory, before a folder is made."""
    for name, value in weights.items():
        if value.is_meta or value.is_quantized or value.layout is not torch.strided:
            kind = "meta" if value.is_meta else "quantised" if value.is_quantized else value.layout
            raise ValueError(
                f"The tensor {name!r} of the model cannot be recorded: it is {kind}. Record dense "
                "tensors with values: build the model off the meta device, keep .to_dense() of it."
            )
