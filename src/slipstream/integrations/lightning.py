"""Callbacks for Lightning's Trainer: recording, averages, modes and nowcasting.

They follow the Trainer: `global_step` is the step, what the module logs is kept with the snapshots,
and what they hold is a part of its checkpoints.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slipstream.averaging import AverageRule, Nowcaster
from slipstream.evaluation import Batch
from slipstream.evaluation.swapped_weights import weights_in
from slipstream.integrations.following import (
    AveragesDuringTraining,
    Every,
    FollowingRecorder,
    ModesDuringTraining,
    NowcastsDuringTraining,
    Tracker,
    check_every,
    is_due,
)
from slipstream.sharded import is_sharded
from slipstream.trajectory import Schedule
from slipstream.weights import clone, load_weights_

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError('This needs lightning: pip install "slipstream[lightning]".') from error


class RecordingCallback(Callback):
    """Records a run while the Trainer trains.

    A training that resumes from a checkpoint continues the same run folder; snapshots after the
    checkpoint are dropped. Of several processes only the first one records, of a sharded model all.

    Example:
        >>> callback = RecordingCallback("run", module="network", schedule=Schedule.every(500))
        >>> # Trainer(callbacks=[callback]).fit(module, data)
    """

    def __init__(
        self,
        path: str | Path,
        *,
        module: str = "",
        schedule: Schedule | None = None,
        overwrite: bool = False,
    ) -> None:
        """Choose where and what to record; the run is made when the training begins.

        Args:
            path: The run folder.
            module: The name of the submodule to record, so that the run fits the bare network; by
                default the whole Lightning module.
            schedule: Which steps to keep besides the first and the last; by default every 100.
            overwrite: Whether a new training may replace a run that is there.
        """
        self._path, self._module = path, module
        self._schedule, self._overwrite = schedule, overwrite
        self._recorder: FollowingRecorder | None = None
        self._epoch = 0.0  # epochs done; the Trainer's own counts a broken one when it is over

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the run, or continue it."""
        self._close()
        model = pl_module.get_submodule(self._module)
        if trainer.is_global_zero or is_sharded(model):
            self._recorder = FollowingRecorder(
                self._path,
                model,
                step=trainer.global_step,
                schedule=self._schedule,
                overwrite=self._overwrite,
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the weights that the last step has left."""
        self._epoch = _epoch(trainer, batch_idx)
        self._follow(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note how far the epoch is."""
        self._epoch = _epoch(trainer, batch_idx + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the last weights, and wait until all is written."""
        self._follow(trainer, last=True)
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what was recorded; the weights may be in the middle of a step."""
        self._close()

    def _follow(self, trainer: Trainer, *, last: bool = False) -> None:
        if self._recorder:
            self._recorder.log(trainer.callback_metrics)
            self._recorder.follow(trainer.global_step, epoch=self._epoch, last=last)

    def _close(self) -> None:
        if self._recorder:
            self._recorder.close()
            self._recorder = None


def _epoch(trainer: Trainer, batches: int) -> float:
    return trainer.current_epoch + batches / trainer.num_training_batches


class _TrackingCallback(Callback):
    """Updates something during training, in the first process; it is a part of checkpoints."""

    _everywhere = False  # whether every process updates, not only the first one

    def __init__(self, *, every: Every, module: str) -> None:
        self._every, self._module = check_every(every), module
        self._tracker: Tracker | None = None
        self._resumed: dict[str, Any] | None = None  # from a checkpoint, before there is a tracker
        self._seen = 0

    def make(self, model: nn.Module) -> Tracker:
        """Return what is to be updated."""
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or continue from a checkpoint."""
        model = pl_module.get_submodule(self._module)
        if not (trainer.is_global_zero or self._everywhere or is_sharded(model)):
            return
        self._tracker = self.make(model)
        self._seen = trainer.global_step
        if self._resumed is not None:
            self._tracker.load_state_dict(self._resumed)
            self._resumed = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after a step."""
        if self._tracker and is_due(self._every, trainer.global_step, before=self._seen):
            self._tracker.update(step=trainer.global_step)
        self._seen = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update after an epoch."""
        if self._tracker and self._every == "epoch":
            self._tracker.update(step=trainer.global_step)

    @property
    def settings(self) -> dict[str, Any]:
        """What distinguishes this callback from others of its kind."""
        return {"every": self._every, "module": self._module}

    @property
    def state_key(self) -> str:
        """The name of the state in Lightning's checkpoint, another for each setting."""
        return self._generate_state_key(**self.settings)

    @property
    def _legacy_state_key(self) -> str:  # type: ignore[override]
        """The same in version 0.1, where Lightning still looks for it."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Return the state, for Lightning's checkpoint."""
        return self._tracker.state_dict() if self._tracker else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state from Lightning's checkpoint."""
        self._resumed = state_dict or None


class AveragingCallback(AveragesDuringTraining, _TrackingCallback):
    """Averages the weights while the Trainer trains; `averages` has them.

    One of the averages may be what is validated and saved: it is in the module while the Trainer
    validates, and in the checkpoint's `state_dict`. The trained weights are in the callback's part
    of the checkpoint, and training resumes from them. An exception puts them back at once.

    Example:
        >>> from slipstream.averaging import EMA, SWA
        >>> callback = AveragingCallback([EMA(0.999), SWA(start=2000)], validate=EMA(0.999))
        >>> # Trainer(callbacks=[callback]).fit(module, data)
        >>> # evaluate(module, metrics, weights=callback.averages.weights(EMA(0.999)), data=...)
    """

    def __init__(
        self,
        rules: Iterable[AverageRule],
        *,
        every: Every = 1,
        module: str = "",
        device: torch.device | str | None = None,
        validate: AverageRule | None = None,
        calibration: Iterable[Batch] | None = None,
    ) -> None:
        """Choose what to average; it begins with the training.

        Args:
            rules: As of `Averages`.
            every: Optimiser steps from one update to the next, or "epoch".
            module: The name of the submodule to average; by default the whole Lightning module.
            device: Where to keep them; by default where the model is.
            validate: The rule whose average is validated and saved; every process then averages.
            calibration: Batches of `module` from which BatchNorm's statistics are taken before each
                validation and save; without them, BatchNorm's statistics are averaged too.

        Raises:
            ValueError: If `every` is below 1, or `validate` is not one of the rules.
        """
        super().__init__(every=every, module=module)
        self._device = device
        self.choose(rules, validate=validate, calibration=calibration)
        self._everywhere = validate is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or continue from a checkpoint with the trained weights."""
        trained = (self._resumed or {}).pop("trained", None)
        if trained is not None:
            load_weights_(pl_module.get_submodule(self._module), trained)
        super().on_train_start(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.put_averages_in(pl_module.get_submodule(self._module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        self.put_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put the trained weights back, if it happened during validation."""
        self.put_back()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the module's weights, and the trained ones beside it."""
        model = pl_module.get_submodule(self._module)
        if (averaged := self.averaged(model)) is None or "callbacks" not in checkpoint:
            return
        held = checkpoint["callbacks"]
        held[self.state_key] = self.with_trained(held[self.state_key], model)
        with weights_in(model, averaged):
            checkpoint["state_dict"] |= clone(pl_module.state_dict())

    @property
    def settings(self) -> dict[str, Any]:
        """The pace, the module and the rules."""
        return {**super().settings, "rules": list(map(str, self._rules))}


class OnlineModesCallback(ModesDuringTraining, _TrackingCallback):
    """Fits modes while the Trainer trains; `modes` has them.

    Example:
        >>> callback = OnlineModesCallback(every=50, modes=10, warm_up=20)
        >>> # Trainer(callbacks=[callback]).fit(module, data)
        >>> # evaluate(module, metrics, weights=callback.modes.weights(), data=...)
    """

    def __init__(self, *, every: Every = "epoch", module: str = "", **options: Any) -> None:
        """Choose how to fit; it begins with the training.

        Args:
            every: Optimiser steps from one update to the next, or "epoch".
            module: The name of the submodule to fit; by default the whole Lightning module.
            options: Fields of `OnlinePlan`.

        Raises:
            ValueError: If `every` is below 1.
        """
        super().__init__(every=every, module=module)
        self._options = options

    @property
    def settings(self) -> dict[str, Any]:
        """The pace, the module and the options."""
        return {**super().settings, **self._options}


class NowcastingCallback(NowcastsDuringTraining, _TrackingCallback):
    """Lets a `Nowcaster` jump while the Trainer trains; every process takes the same jumps.

    Example:
        >>> from slipstream.averaging import Nowcaster
        >>> # nowcaster = Nowcaster(Task(module.network, data, loss, validation=held_out))
        >>> # Trainer(callbacks=[NowcastingCallback(nowcaster)]).fit(module, data)
    """

    def __init__(self, nowcaster: Nowcaster) -> None:
        """Choose what jumps.

        Args:
            nowcaster: Of the module that trains, or a part of it; attached to no optimiser.
        """
        super().__init__(every=1, module="")
        self.nowcaster = nowcaster

    @property
    def settings(self) -> dict[str, Any]:
        """The plan."""
        return {"plan": str(self.nowcaster.plan)}
