"""Train and record: what `slipstream train` does."""

from collections.abc import Callable, Sized
from dataclasses import asdict, dataclass
from pathlib import Path

from slipstream.evaluation import evaluate
from slipstream.named_task import NamedTask
from slipstream.training.plain import OptimizerName, ScheduleName, rate_factor, train
from slipstream.trajectory import Recorder, Schedule


@dataclass(frozen=True)
class TrainingPlan:
    """How to train and what to keep, as plain data."""

    epochs: int = 20
    optimizer: OptimizerName = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: ScheduleName = "constant"  # of the learning rate
    keep: str = "epochs"  # snapshots besides each epoch's end: epochs (none), every:10 or log

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}.")

    def rates(self, steps: int) -> list[float]:
        """Return the learning rate of each of so many steps in all.

        Example:
            >>> [round(rate, 4) for rate in TrainingPlan(lr=0.2, schedule="cosine").rates(4)]
            [0.2, 0.1707, 0.1, 0.0293]
        """
        factor = rate_factor(self.schedule, steps)
        return [self.lr * factor(step) for step in range(steps)]


@dataclass(frozen=True)
class RecordedTraining:
    """Result of `record_training`."""

    path: str
    losses: tuple[float, ...]  # mean training loss of each epoch
    steps: int
    seconds: float  # evaluation and recording included
    validation: dict[str, float]  # metrics of the final weights
    test: dict[str, float]


def record_training(
    setup: NamedTask,
    plan: TrainingPlan,
    *,
    path: str | Path,
    overwrite: bool = False,
    device: str = "cpu",
    on_step: Callable[[int, int | None], object] | None = None,
) -> RecordedTraining:
    """Train the model of `setup` and record the run, with its validation metrics at every epoch.

    The run keeps `setup` and `plan` in its configuration: `rebuild` makes the model and the data
    from it again.

    Args:
        setup: The model and its data.
        plan: How to train, and which snapshots to keep besides the start and each epoch's end.
        path: The run folder to make.
        overwrite: Whether to delete the snapshots of a run that is already there.
        device: Where to train.
        on_step: Called after each step with the steps taken and their final number, if known.

    Returns:
        Losses, cost, and the metrics of the final weights.

    Raises:
        ValueError: If an argument is none of its choices or does not fit.
        FileExistsError: If the folder is not empty.
    """
    experiment = setup.build(device=device)
    total = len(experiment.data) * plan.epochs if isinstance(experiment.data, Sized) else None

    def validate() -> dict[str, float]:
        return experiment.validated()

    options = asdict(plan)
    recorder = Recorder(
        path,
        experiment.model,
        schedule=_between_epochs(options.pop("keep"), total, plan.epochs),
        configuration={"setup": setup.to_json(), "training": asdict(plan)},
        seed=setup.seed,
        overwrite=overwrite,
    )
    with recorder:
        recorder.log(epoch=0, **validate())
        result = train(
            experiment.model,
            experiment.loss,
            data=experiment.data,
            **options,
            seed=setup.seed,
            on_optimizer=recorder.attach,
            on_step=on_step and (lambda step: on_step(step, total)),
            on_epoch=lambda epoch, loss: recorder.record(
                epoch=epoch, metrics={"train_loss": loss, **validate()}
            ),
        )
    validation, test = (
        evaluate(experiment.model, experiment.measured, data=experiment.part(part))
        for part in ("validation", "test")
    )
    return RecordedTraining(
        str(path), result.losses, result.steps, result.seconds, validation, test
    )


def _between_epochs(keep: str, total: int | None, epochs: int) -> Schedule:
    """The snapshots to keep besides the ends of the epochs, which wait for their metrics."""
    rule, _, number = keep.partition(":")
    if keep == "epochs":
        return Schedule.at(())
    if keep != "log" and not (rule == "every" and number.isdecimal()):
        raise ValueError(f"keep must be epochs, log or every:N, got {keep!r}.")
    if total is None:
        raise ValueError(f"keep={keep!r} needs data that knows its length; use keep='epochs'.")
    plan = Schedule.log() if keep == "log" else Schedule.every(int(number))
    return Schedule.at(step for step in plan.steps(total) if step * epochs % total)
