"""What version 0.1 called and its callers may still import; `slipstream.deprecated` points here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from slipstream.storage.new_run import NewRun
from slipstream.training.plan import TrainingPlan as Plan
from slipstream.training.recorded_training import RecordedTraining
from slipstream.training.recorded_training import record_training as record_task


class TrainingPlan(Plan):
    """A plan that says which snapshots to keep as well: `keep` of `record_training`."""

    def __init__(self, *args: Any, keep: str = "epochs", **options: Any) -> None:
        """Take `keep` as the seventh argument, too."""
        *others, keep = args if len(args) == 7 else (*args, keep)
        super().__init__(*others, **options)
        object.__setattr__(self, "keep", keep)


def record_training(
    setup: Any,
    plan: Plan,
    *,
    path: str | Path,
    overwrite: bool = False,
    device: str = "cpu",
    on_step: Callable[[int, int | None], object] | None = None,
) -> RecordedTraining:
    """Train and record what names make, a `NamedTask`, with its seed."""
    keep = getattr(plan, "keep", "epochs")
    return record_task(
        setup.build(device=device),
        replace(Plan.from_dict(vars(plan)), seed=setup.seed),
        run_folder=NewRun(path, overwrite=overwrite),
        keep=keep,
        progress=on_step,
    )
