"""What version 0.1 called and its users may still call; `slipstream.deprecated` points here."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from slipstream.evaluation import Batch, Loss, Task
from slipstream.storage.new_run import NewRun
from slipstream.training.loop import Progress, trained_copy
from slipstream.training.plan import TrainingPlan as Plan
from slipstream.training.recorded_training import RecordedTraining
from slipstream.training.recorded_training import record_training as record_task

Descent = Plan.cosine


def descend(
    model: nn.Module,
    loss: Loss,
    *,
    data: Iterable[Batch],
    descent: Plan,
    progress: Progress | None = None,
) -> nn.Module:
    """Return a trained copy, as `trained_copy` does of a task."""
    return trained_copy(Task(model, data, loss), descent, progress=progress)


class PlanWithKeep(Plan):
    """A plan that says which snapshots to keep as well: `keep` of `record_training`."""

    def __init__(self, *args: Any, keep: str = "epochs", **options: Any) -> None:
        """Take `keep` as the seventh argument, too."""
        *others, keep = args if len(args) == 7 else (*args, keep)
        super().__init__(*others, **options)
        object.__setattr__(self, "keep", keep)


def record_setup(
    setup: Any,
    plan: Plan,
    *,
    path: str | Path,
    overwrite: bool = False,
    device: str = "cpu",
    on_step: Callable[[int, int | None], object] | None = None,
) -> RecordedTraining:
    """Train and record what names make, a `NamedTask`, with its seed."""
    return record_task(
        setup.build(device=device),
        replace(Plan.from_dict(vars(plan)), seed=setup.seed),
        run_folder=NewRun(path, overwrite=overwrite),
        keep=getattr(plan, "keep", "epochs"),
        progress=on_step,
    )


TrainingPlan, record_training = PlanWithKeep, record_setup
