"""A run from nothing but a start: what the model of checkpoints makes of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from slipstream.evaluation import Task
from slipstream.recipes.checkpoint_prior.plan import GenerationPlan
from slipstream.recipes.checkpoint_prior.prior import CheckpointPrior
from slipstream.storage.new_run import NewRun
from slipstream.trajectory import create_run
from slipstream.weights import Weights, clone


@dataclass(frozen=True)
class Generated:
    """Result of `generate`."""

    weights: dict[str, Tensor]  # after the last update
    wanted: float  # the metric that was asked for
    metrics: tuple[Mapping[str, float], ...]  # on validation data, of the start and every update


def generate(
    prior: CheckpointPrior,
    start: Weights,
    task: Task,
    *,
    plan: GenerationPlan | None = None,
    run_folder: str | Path | NewRun | None = None,
) -> Generated:
    """Draw later weights for a start, without a gradient; each further update starts from the last.

    Args:
        prior: What `train_prior` or `load_prior` returned.
        start: Weights of the model, as they are before training.
        task: The model, which is left as it was, and validation data, on which the start is
            measured. A model with BatchNorm gets its statistics from the task's data.
        plan: What is asked for.
        run_folder: Records the start and every update as a run.

    Returns:
        The weights, and what they are worth.

    Raises:
        ValueError: If the task has no validation data or not the metric, or a tensor is missing.
        FileExistsError: If the run folder is not empty.
    """
    plan, name = plan or GenerationPlan(), prior.plan.metric
    task = task.repeatable()
    if task.validation is None:
        raise ValueError("The start is measured on validation data: give Task(validation=...).")
    wanted = prior.scales.best if plan.wanted is None else plan.wanted
    weights = clone(start)
    snapshots: list[tuple[dict[str, Tensor], dict[str, float]]] = []
    for update in range(plan.updates + 1):
        if update:
            given = [snapshots[-1][1][name]]
            (weights,) = prior.update(
                [weights], metric=given, wanted=wanted, seed=plan.seed + update
            )
            weights |= task.recalibrated(weights)
        measured = task.validated(weights=weights)
        if name not in measured:
            known = ", ".join(measured)
            raise ValueError(
                f"The task does not measure {name!r} but {known}: give it that metric."
            )
        snapshots.append((weights, measured))
    if run_folder is not None:
        new, made = NewRun.of(run_folder), {**asdict(plan), "wanted": wanted, "metric": name}
        configuration = {**task.configuration, **new.configuration, "recipe": {"generated": made}}
        with create_run(
            new.folder,
            model=task.model,
            configuration=configuration,
            seed=plan.seed,
            overwrite=new.overwrite,
        ) as run:
            for step, (each, metrics) in enumerate(snapshots):
                on_cpu = {key: value.detach().cpu() for key, value in each.items()}
                run.append(step=step, weights=on_cpu, metrics=metrics)
    return Generated(weights, wanted, tuple(metrics for _, metrics in snapshots))
