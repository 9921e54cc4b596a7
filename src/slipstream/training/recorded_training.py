"""What a recipe leaves in a run folder: a run, and RUN/recipe.pt, the state to go on from."""

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from slipstream.evaluation import Batch, Metric, evaluate
from slipstream.evaluation.determinism import batch_digest
from slipstream.storage.resumable_state import Checkpoint
from slipstream.training.loop import Descending
from slipstream.trajectory import Recorder, Schedule, declare_companions
from slipstream.weights import Weights

STATE = "recipe.pt"


@contextmanager
def kept(
    training: Descending,
    *,
    recorded: nn.Module,
    run_folder: str | Path | None,
    recipe: Mapping[str, Any],
    start: Sequence[Weights],
    configuration: Mapping[str, Any] | None,
    measure: Callable[[], Mapping[str, float]],
    overwrite: bool,
    resume: bool,
    minimised: str = "train_loss",
) -> Generator[Callable[[], None]]:
    """Record a training, or take up one that was interrupted; a finished one has nothing to do.

    Args:
        training: What is trained; brought to where it was if it is resumed.
        recorded: Whose weights are the snapshots.
        run_folder: Where; None keeps nothing.
        recipe: The plan by the name of the recipe, as plain data; must be the same to resume.
        start: Weights where it starts; must be the same to resume.
        configuration: What else makes the run, as plain data; must be the same to resume.
        measure: Returns the metrics of the weights as they are.
        overwrite: Whether to delete the snapshots of a run that is already there.
        resume: Whether to take up a training; begins if there is none.
        minimised: What the mean of an epoch over the training batches is called.

    Yields:
        What to call at the end of each epoch.
    """
    if run_folder is None:
        yield lambda: None
        return
    started = batch_digest([dict(weights) for weights in start]).hex()
    given = json.loads(json.dumps(configuration or {}, default=str))  # as run.json gives it back
    identity = {**recipe, "start": started, "configuration": given}
    checkpoint = Checkpoint(Path(run_folder) / STATE, identity)
    state = checkpoint.read() if resume else None
    if state is not None:
        training.load_state_dict(state)
    recorder = Recorder(
        run_folder,
        recorded,
        schedule=Schedule.at(()),
        configuration={**(configuration or {}), "recipe": dict(recipe)},
        seed=training.descent.seed,
        overwrite=overwrite,
        resume=state is not None,
        step=training.step,
    )

    def keep() -> None:
        found = dict(measure())
        if training.losses:
            found[minimised] = training.losses[-1]
        recorder.record(step=training.step, epoch=training.epoch, metrics=found)
        checkpoint.offer(training.state_dict)

    with recorder:
        declare_companions(run_folder, STATE)
        if state is None:
            checkpoint.offer(training.state_dict, last=True)
        if recorder.last_kept is None:
            keep()
        yield keep
    if state is None or state["optimizer"] is not None:
        checkpoint.offer(training.state_dict, last=True)


def validated(
    model: nn.Module,
    metrics: Mapping[str, Metric] | None,
    validation: Iterable[Batch] | None,
    *,
    weights: Weights | None = None,
) -> dict[str, float]:
    """Return metrics on validation data under the names that runs record them; none without data.

    Args:
        model: Any module; left as it was.
        metrics: Name to a function of the model and a batch.
        validation: Batches.
        weights: What to evaluate instead of the model's own tensors.

    Returns:
        Name, with `validation_` in front, to mean.

    Example:
        >>> import torch
        >>> validated(nn.Identity(), {"mean": lambda model, x: x.mean()}, [torch.ones(2)])
        {'validation_mean': 1.0}
    """
    if validation is None or not metrics:
        return {}
    found = evaluate(model, metrics, weights=weights, data=validation)
    return {f"validation_{name}": value for name, value in found.items()}
