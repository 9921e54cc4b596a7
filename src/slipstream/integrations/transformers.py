"""Callbacks for `transformers.Trainer`: recording, averages, modes and nowcasting.

They follow the Trainer: its steps are the steps, what it logs and evaluates is kept with the
snapshots, and what they hold is saved in its checkpoints and resumed from them.
"""

import zlib
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from slipstream.averaging import AverageRule, Nowcaster
from slipstream.deprecated import renamed_arguments
from slipstream.evaluation import Batch
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
from slipstream.weights import load_weights_, unwrapped

try:
    from transformers import (
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
except ImportError as error:
    raise ImportError('This needs transformers: pip install "slipstream[transformers]".') from error

_AnyTrainer = TypeVar("_AnyTrainer", bound=Trainer)
_SUMMARY = "train_runtime"  # what the Trainer logs at the end is about the whole training


class RecordingCallback(TrainerCallback):
    """Records a run while the Trainer trains.

    A training that resumes from a checkpoint continues the same run folder; snapshots after the
    checkpoint are dropped. Of several processes only the main one records, of a sharded model all.

    Example:
        >>> from transformers import Trainer
        >>> callback = RecordingCallback("run", schedule=Schedule.every(500))
        >>> # Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    """

    def __init__(
        self, path: str | Path, *, schedule: Schedule | None = None, overwrite: bool = False
    ) -> None:
        """Choose where and what to record; the run is made when the training begins.

        Args:
            path: The run folder.
            schedule: Which steps to keep besides the first and the last; by default every 100.
            overwrite: Whether a new training may replace a run that is there.
        """
        self._path, self._schedule, self._overwrite = path, schedule, overwrite
        self._recorder: FollowingRecorder | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the run, or continue it."""
        self.close()
        if state.is_world_process_zero or is_sharded(kwargs["model"]):
            self._recorder = FollowingRecorder(
                self._path,
                kwargs["model"],
                step=state.global_step,
                schedule=self._schedule,
                configuration={"trainer": args.to_sanitized_dict()},
                seed=args.seed,
                overwrite=self._overwrite,
            )

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the numbers for the snapshot of this step."""
        logs: dict[str, Any] = kwargs["logs"]
        if self._recorder and _SUMMARY not in logs:
            self._recorder.log({name: value for name, value in logs.items() if name != "epoch"})

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep the weights that the last step has left."""
        if self._recorder:
            self._recorder.follow(state.global_step, epoch=state.epoch)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep the last weights before the Trainer puts the best ones in their place."""
        over = state.global_step >= state.max_steps or control.should_training_stop
        if self._recorder and over and args.load_best_model_at_end:
            self._recorder.follow(state.global_step, epoch=state.epoch, last=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep the last weights, and wait until all is written."""
        if self._recorder:
            self._recorder.follow(state.global_step, epoch=state.epoch, last=True)
        self.close()

    def close(self) -> None:
        """Release the run folder, after a training that an exception has ended."""
        if self._recorder:
            self._recorder.close()
            self._recorder = None


def _checkpoints(args: TrainingArguments, state: TrainerState) -> list[Path]:
    """Where the Trainer may keep the checkpoint of the present step, the newest first."""
    # A search of hyperparameters has a folder for each of its runs: run-0/checkpoint-500.
    folder, name = Path(args.output_dir or ""), f"checkpoint-{state.global_step}"
    found = [path for path in (folder / name, *folder.glob(f"*/{name}")) if path.is_dir()]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True) or [folder / name]


class _TrackingCallback(TrainerCallback):
    """Updates something during training, in the main process, and saves it in checkpoints."""

    kind = ""  # names the file
    _everywhere = False  # whether every process updates, not only the main one

    def __init__(self, *, every: Every, checkpoint: str | Path | None, restart: bool) -> None:
        self._every = check_every(every)
        self._checkpoint, self._restart = checkpoint, restart
        self._tracker: Tracker | None = None
        self._seen = 0

    def make(self, model: nn.Module) -> Tracker:
        """Return what is to be updated."""
        raise NotImplementedError

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin, or continue from a checkpoint."""
        if not (state.is_world_process_zero or self._everywhere or is_sharded(kwargs["model"])):
            return
        self._tracker, self._seen = self.make(kwargs["model"]), state.global_step
        if state.global_step and not self._restart:
            given = self._checkpoint
            self.load(self._load([Path(given)] if given else _checkpoints(args, state)))

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        if self._tracker:
            self._tracker.load_state_dict(state)

    def state(self) -> dict[str, Any]:
        """Return what `load` takes."""
        return self._tracker.state_dict() if self._tracker else {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Update after a step."""
        if self._tracker and is_due(self._every, state.global_step, before=self._seen):
            self._tracker.update(step=state.global_step)
        self._seen = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Update after an epoch."""
        if self._tracker and self._every == "epoch":
            self._tracker.update(step=state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save the state in the checkpoint that the Trainer has just written."""
        if self._tracker:
            kept = self.state()  # of a sharded model, all processes gather it
            if state.is_world_process_zero:
                torch.save(kept, _checkpoints(args, state)[0] / self._files[0])

    @property
    def settings(self) -> str:
        """What distinguishes this callback from others of its kind."""
        return f"every={self._every}"

    @property
    def _files(self) -> tuple[str, str]:
        """The file of the state, and its name in version 0.1, which several callbacks shared."""
        own = f"{zlib.crc32(self.settings.encode()):08x}"
        return f"slipstream_{self.kind}_{own}.pt", f"slipstream_{self.kind}.pt"

    def _load(self, folders: list[Path]) -> dict[str, Any]:
        for folder in folders:
            for name in self._files:
                if (folder / name).is_file():
                    state: dict[str, Any] = torch.load(folder / name, weights_only=True)
                    return state
        raise FileNotFoundError(
            f"{folders[0]} holds no {self.kind} with the settings {self.settings} to resume from. "
            "If the checkpoint lies elsewhere, pass checkpoint= its folder; to begin here, pass "
            "restart=True."
        )


class AveragingCallback(AveragesDuringTraining, _TrackingCallback):
    """Averages the weights while the Trainer trains; `averages` has them.

    One of the averages may be what is validated and saved: `validate` names it, and `attach` takes
    the Trainer, which then evaluates with the average during training and saves it as the model of
    its checkpoints. The trained weights are saved beside it, and training resumes from them. After
    an exception, too, they are back in the model.

    Example:
        >>> from slipstream.averaging import EMA, SWA
        >>> callback = AveragingCallback([EMA(0.999), SWA(start=2000)], validate=EMA(0.999))
        >>> # callback.attach(Trainer(model, arguments, train_dataset=data)).train()
        >>> # evaluate(model, metrics, weights=callback.averages.weights(EMA(0.999)), data=...)
    """

    kind = "averages"

    @renamed_arguments(anew="restart")
    def __init__(
        self,
        rules: Iterable[AverageRule],
        *,
        every: Every = 1,
        device: torch.device | str | None = None,
        checkpoint: str | Path | None = None,
        restart: bool = False,
        validate: AverageRule | None = None,
        calibration: Iterable[Batch] | None = None,
    ) -> None:
        """Choose what to average; it begins with the training.

        Args:
            rules: As of `Averages`.
            every: Optimiser steps from one update to the next, or "epoch".
            device: Where to keep them; by default where the model is.
            checkpoint: The checkpoint to continue from, if not in the Trainer's output folder.
            restart: Whether to start over when the training resumes.
            validate: The rule whose average is validated and saved; every process then averages.
            calibration: Batches of the model from which BatchNorm's statistics are taken before
                each validation and save; without them, BatchNorm's statistics are averaged too.

        Raises:
            ValueError: If `every` is below 1, or `validate` is not one of the rules.
        """
        super().__init__(every=every, checkpoint=checkpoint, restart=restart)
        self._device = device
        self.choose(rules, validate=validate, calibration=calibration)
        self._everywhere = validate is not None
        self._model: nn.Module | None = None
        self._attached = False

    def attach(self, trainer: _AnyTrainer) -> _AnyTrainer:
        """Add the callback to a Trainer, and let it evaluate and save with averaged weights.

        Only during `train()`: later on, the Trainer uses the weights that are in its model.

        Args:
            trainer: It must not have this callback yet.

        Returns:
            The Trainer.
        """
        trainer.add_callback(self)
        for name in ("evaluate", "save_model"):
            setattr(trainer, name, self._with_averages(trainer, getattr(trainer, name)))
        self._attached = True
        return trainer

    def _with_averages(self, trainer: Trainer, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **given: Any) -> Any:
            if not trainer.is_in_train or self._exchange is not None or self._model is None:
                return method(*args, **given)
            try:
                self.put_averages_in(self._model)
                return method(*args, **given)
            finally:
                self.put_back()

        return call

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin, or continue from a checkpoint with the trained weights."""
        if self._everywhere and not self._attached:
            raise RuntimeError("validate needs the Trainer: call callback.attach(trainer).")
        self._model = unwrapped(kwargs["model"])
        super().on_train_begin(args, state, control, **kwargs)

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state, and from the trained weights in it."""
        if self._model is not None and "trained" in state:
            load_weights_(self._model, state["trained"])
        super().load(state)

    def state(self) -> dict[str, Any]:
        """Return the averages, and the trained weights if the checkpoint holds an average."""
        own = super().state()
        if self._model is None or self.averaged(self._model) is None:
            return own
        return self.with_trained(own, self._model)

    @property
    def settings(self) -> str:
        """The pace and the rules."""
        return f"{super().settings}, {', '.join(map(str, self._rules))}"


class OnlineModesCallback(ModesDuringTraining, _TrackingCallback):
    """Fits modes while the Trainer trains; `modes` has them.

    Example:
        >>> callback = OnlineModesCallback(every=50, modes=10, warm_up=20)
        >>> # Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
        >>> # evaluate(model, metrics, weights=callback.modes.weights(), data=...)
    """

    kind = "modes"

    @renamed_arguments(anew="restart")
    def __init__(
        self,
        *,
        every: Every = "epoch",
        checkpoint: str | Path | None = None,
        restart: bool = False,
        **options: Any,
    ) -> None:
        """Choose how to fit; it begins with the training.

        Args:
            every: Optimiser steps from one update to the next, or "epoch".
            checkpoint: The checkpoint to continue from, if not in the Trainer's output folder.
            restart: Whether to start over when the training resumes.
            options: Fields of `OnlinePlan`.

        Raises:
            ValueError: If `every` is below 1.
        """
        super().__init__(every=every, checkpoint=checkpoint, restart=restart)
        self._options = options

    @property
    def settings(self) -> str:
        """The pace and the options."""
        return f"{super().settings}, {sorted(self._options.items())}"


class NowcastingCallback(NowcastsDuringTraining, _TrackingCallback):
    """Lets a `Nowcaster` jump while the Trainer trains; every process takes the same jumps.

    Example:
        >>> from slipstream.averaging import Nowcaster
        >>> # nowcaster = Nowcaster(Task(model, data, loss, validation=held_out))
        >>> # callback = NowcastingCallback(nowcaster)
        >>> # Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    """

    kind = "nowcasts"

    def __init__(
        self,
        nowcaster: Nowcaster,
        *,
        checkpoint: str | Path | None = None,
        restart: bool = False,
    ) -> None:
        """Choose what jumps.

        Args:
            nowcaster: Of the Trainer's model; attached to no optimiser.
            checkpoint: The checkpoint to continue from, if not in the Trainer's output folder.
            restart: Whether to start over when the training resumes.
        """
        super().__init__(every=1, checkpoint=checkpoint, restart=restart)
        self.nowcaster = nowcaster

    @property
    def settings(self) -> str:
        """The plan."""
        return str(self.nowcaster.plan)
