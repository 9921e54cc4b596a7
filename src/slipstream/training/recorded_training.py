"""Training that is recorded as a run, and resumed to the bit from a state beside it."""

import json
from collections.abc import Callable, Generator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from slipstream.evaluation import Task
from slipstream.evaluation.swapped_weights import weights_in
from slipstream.storage.fingerprints import batch_digest
from slipstream.storage.new_run import NewRun
from slipstream.storage.resumable_state import ResumableState
from slipstream.training.loop import Loop, Progress
from slipstream.training.plan import BEFORE, TrainingPlan
from slipstream.trajectory import Recorder, Schedule, Trajectory, declare_companions
from slipstream.trajectory.run_files import DESCRIPTION, read_run
from slipstream.weights import Weights, load_weights_, weights_of

STATE = "training.pt"  # of `record_training`, until it is finished


@dataclass(frozen=True)
class RecordingOptions:
    """What is special about the run that a training leaves."""

    losses: str = "train_loss"  # what the mean training loss of an epoch is called
    state: str = "recipe.pt"  # the file beside the run that holds the state to resume from
    under: str | None = "recipe"  # where the plan stands in the run's configuration; None: on top
    identity: Mapping[str, Any] | None = None  # the plan in the state file, if under other names
    between: Schedule | None = None  # snapshots besides the start and each epoch's end
    weights: Callable[[], Weights] | None = None  # recorded instead of the model's own


@contextmanager
def recorded(
    training: Loop,
    task: Task,
    run_folder: str | Path | NewRun | None,
    *,
    plan: Mapping[str, Any],
    start: Sequence[Weights],
    measure: Callable[[], Mapping[str, float]] | None = None,
    options: RecordingOptions | None = None,
) -> Generator[Callable[[], None]]:
    """Record a training, or resume one that was interrupted; a finished one has nothing to do.

    Args:
        training: What is trained; brought to where it was if it is resumed.
        task: The weights of its model are the snapshots; its configuration is kept in `run.json`
            and must be the same to resume.
        run_folder: Where; None records nothing.
        plan: As plain data, by the name of the recipe; must be the same to resume.
        start: Weights where it starts; must be the same to resume.
        measure: Returns the metrics of a snapshot; by default those of the task's model on
            validation data.
        options: What is special about the run.

    Yields:
        What to call at the end of each epoch.
    """
    if run_folder is None:
        yield lambda: None
        return
    options, measure = options or RecordingOptions(), measure or task.validated
    new = NewRun.of(run_folder)
    configuration = {**task.configuration, **new.configuration}
    started = batch_digest([dict(weights) for weights in start]).hex()
    given = json.loads(json.dumps(configuration, default=str))  # as run.json gives it back
    identity = {**(options.identity or plan), "start": started, "configuration": given}
    saved = ResumableState(new.folder / options.state, identity, before=BEFORE)
    state = _state(saved, new)
    if state is not None:
        training.load_state_dict(state)
    recorder = Recorder(
        new.folder,
        task.model,
        schedule=options.between or Schedule.at(()),
        configuration={**configuration, **({options.under: dict(plan)} if options.under else plan)},
        seed=training.plan.seed,
        overwrite=new.overwrite or new.resume,  # nothing is lost: see `_state`
        resume=False if state is None else training.step,
    )

    def current() -> dict[str, Any]:
        recorder.wait()  # no state may be on disk before the snapshots that led to it
        return training.state_dict()

    def keep() -> None:
        own = options.weights
        with nullcontext() if own is None else weights_in(task.model, own()):
            found = dict(measure())
            if training.losses:
                found[options.losses] = training.losses[-1]
            recorder.record(step=training.step, epoch=training.epoch, metrics=found)
        saved.offer(current)

    with recorder:
        declare_companions(new.folder, options.state)
        if state is None:
            saved.offer(current, last=True)
        if recorder.last_kept != training.step:
            keep()
        if options.between is not None:
            recorder.attach(training.optimizer)
        yield keep
    if state is None or state["optimizer"] is not None:
        saved.offer(training.state_dict, last=True)


def _state(saved: ResumableState, new: NewRun) -> dict[str, Any] | None:
    """What to resume from. None begins: at most an empty run is there, or it may be overwritten."""
    state = saved.read() if new.resume else None
    if state is None and new.resume and not new.overwrite:
        begun = (new.folder / DESCRIPTION).is_file()
        if begun and read_run(new.folder).entries:
            raise FileExistsError(
                f"{new.folder} already holds a run, without the {saved.path.name} to resume it "
                "from: give another path, or overwrite it."
            )
    return state


@dataclass(frozen=True)
class RecordedTraining:
    """Result of `record_training`."""

    path: str
    losses: tuple[float, ...]  # mean training loss of each epoch
    steps: int
    seconds: float  # of the training
    validation: dict[str, float]  # metrics of the final weights; empty without such data
    test: dict[str, float]


def record_training(
    task: Task,
    plan: TrainingPlan | None = None,
    *,
    run_folder: str | Path | NewRun,
    keep: str = "epochs",
    progress: Progress | None = None,
) -> RecordedTraining:
    """Train the model of a task in place and record the run, with validation metrics every epoch.

    An interrupted training is resumed by `run_folder=NewRun(..., resume=True)`, at the same initial
    weights: the end is the same to the bit. For that the order of the batches must follow from the
    epoch, by a method `epoch(number)`, or from PyTorch's global generator, as in a `DataLoader`
    without a generator of its own.

    Args:
        task: The model at its initial weights, on the device to train on, with its data. Its
            configuration is kept in the run.
        plan: How to train; kept in the run as well.
        run_folder: The run folder to make or to resume.
        keep: Snapshots besides the start and each epoch's end: `epochs` (none), `every:10` or
            `log`.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        Losses, cost, and the metrics of the final weights.

    Raises:
        ValueError: If an argument does not fit, the loss is not finite, or what is to be resumed is
            another training.
        FileExistsError: If the folder is not empty.

    Example:
        >>> import tempfile, torch
        >>> task = Task(torch.nn.Linear(2, 3), [(torch.ones(4, 2), torch.tensor([0, 1, 2, 2]))])
        >>> record_training(task, TrainingPlan(epochs=2), run_folder=tempfile.mkdtemp()).steps
        2
    """
    plan, task = plan or TrainingPlan(), task.repeatable()
    total = len(task.data) * plan.epochs if isinstance(task.data, Sized) else None
    new, training = NewRun.of(run_folder), Loop(task.model, plan, batch_size=task.batch_size)
    own = {"training": {**asdict(plan), "keep": keep}}
    between = _between_epochs(keep, total, plan.epochs)
    if not (
        new.resume and _finish(training, new, {**task.configuration, **new.configuration, **own})
    ):
        options = RecordingOptions(state=STATE, under=None, between=between)
        start = [weights_of(task.model)]
        with recorded(training, task, new, plan=own, start=start, options=options) as after:
            training.run(
                lambda batch: task.loss(task.model, batch),
                data=task.data,
                on_epoch=after,
                progress=progress,
            )
        (new.folder / STATE).unlink()  # the run says all
    return RecordedTraining(
        str(new.path),
        tuple(training.losses),
        training.step,
        training.seconds,
        {} if task.validation is None else task.evaluate(split="validation"),
        {} if task.test is None else task.evaluate(split="test"),
    )


def _finish(training: Loop, new: NewRun, configuration: Mapping[str, Any]) -> bool:
    """Bring a training to its end from a run that is finished, if it is this very one."""
    if not (new.folder / DESCRIPTION).is_file() or (new.folder / STATE).exists():
        return False
    run = Trajectory.open(new.folder)
    same = run.description["configuration"] == json.loads(json.dumps(configuration, default=str))
    if not len(run) or not same or run[-1].epoch != training.plan.epochs:
        return False
    started = weights_of(training.module)
    if any(not torch.equal(value, run[0][name].to(value)) for name, value in started.items()):
        return False
    load_weights_(training.module, run[-1].weights)
    training.epoch, training.step = training.plan.epochs, run[-1].step
    training.losses = [s.metrics["train_loss"] for s in run if "train_loss" in s.metrics]
    return True


def _between_epochs(keep: str, total: int | None, epochs: int) -> Schedule | None:
    """The snapshots to keep besides the ends of the epochs, which wait for their metrics."""
    rule, _, number = keep.partition(":")
    if keep == "epochs":
        return None
    if keep != "log" and not (rule == "every" and number.isdecimal()):
        raise ValueError(f"keep must be epochs, log or every:N, got {keep!r}.")
    if total is None:
        raise ValueError(f"keep={keep!r} needs data that knows its length; use keep='epochs'.")
    plan = Schedule.log() if keep == "log" else Schedule.every(int(number))
    return Schedule.at(step for step in plan.steps(total) if step * epochs % total)
