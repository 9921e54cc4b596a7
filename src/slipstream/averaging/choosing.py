"""Which average of a run is best on validation data."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar

from torch import Tensor, nn

from slipstream.averaging.averages import average_run
from slipstream.averaging.post_hoc import post_hoc_ema
from slipstream.averaging.rules import EMA, LAWA, SWA, AverageRule, Decay, PowerEMA
from slipstream.evaluation import Task, takes_task
from slipstream.modes.fit import fit_modes
from slipstream.trajectory import Trajectory
from slipstream.weights import Weights

_START_FRACTIONS = (0.25, 0.5, 0.75)
_DECAYS = (0.5, 0.8, 0.9, 0.95)
_LATEST = (3, 5, 10)
_DECAYS_FROM = (0.5, 0.8)
_MODES = (10,)

F = TypeVar("F", bound=Callable[..., Any])
Progress = Callable[[str, int, int], None]  # what comes next, its number, and how many there are


@dataclass(frozen=True)
class Candidate:
    """One set of weights and what it is worth."""

    name: str
    validation: Mapping[str, float]  # metrics over the validation data


@dataclass(frozen=True)
class AverageChoice:
    """Result of `choose_average`."""

    candidates: tuple[Candidate, ...]  # in the order they were given
    best: Candidate
    weights: dict[str, Tensor]  # of the best, BatchNorm's statistics included
    criterion: str  # the metric that decided


def average_candidates(
    trajectory: Trajectory,
    *,
    rules: Iterable[AverageRule] | None = None,
    modes: Iterable[int] | None = None,
    stored: Mapping[PowerEMA, Trajectory] | None = None,
) -> dict[str, Callable[[], Weights]]:
    """Return the last snapshot, averages of a run, and its modes, each made when it is called.

    Args:
        trajectory: At least one snapshot.
        rules: Which averages; by default `SWA` from a quarter, half and three quarters of the run,
            `EMA` with decays from 0.5 to 0.95 from snapshot to snapshot, `LAWA` of up to 10, and
            linear `Decay` over the last half and the last fifth of the run.
        modes: Numbers of modes to fit to the run, for the weights on their lines at the last
            step; none if only rules are given, 10 if nothing is.
        stored: Power averages that were kept during training, from which those of `rules` are made,
            see `post_hoc_ema`; otherwise they are made of the snapshots.

    Returns:
        Name to a function that returns the weights; the first one is "last".

    Raises:
        ValueError: If there is no snapshot.

    Example:
        >>> import torch
        >>> run = Trajectory.from_weights([{"w": torch.full((1,), float(t))} for t in range(5)])
        >>> list(average_candidates(run))[:5]
        ['last', 'swa:1', 'swa:2', 'swa:3', 'ema:0.5']
        >>> average_candidates(run)["swa:3"]()
        {'w': tensor([3.5000])}
    """
    if not len(trajectory):
        raise ValueError("trajectory must hold at least one snapshot, got none.")
    if rules is None and modes is None:
        rules, modes = _usual_rules(trajectory), _usual_modes(trajectory)
    made: dict[str, Callable[[], Weights]] = {"last": lambda: trajectory[-1].weights}
    made |= {str(rule): partial(_averaged, trajectory, rule, stored) for rule in rules or ()}
    return made | {
        f"modes:{count}": partial(_last_of_modes, trajectory, count) for count in modes or ()
    }


def _averaged(
    trajectory: Trajectory, rule: AverageRule, stored: Mapping[PowerEMA, Trajectory] | None
) -> Weights:
    if stored and isinstance(rule, PowerEMA):
        return post_hoc_ema(stored, rule, step=trajectory.steps[-1]).weights
    return average_run(trajectory, rule)


def _last_of_modes(trajectory: Trajectory, count: int) -> Weights:
    found = fit_modes(trajectory, modes=count, reference="component")
    return found.weights_at(trajectory[-1].step)


def _of_0_1(function: F) -> F:
    """Understand `metrics` with the loss among them, and `train`, as in 0.1."""

    @wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        if args and isinstance(args[0], nn.Module):
            given["model"], *args = args  # type: ignore[assignment]
            if args:
                given["metrics"], *args = args  # type: ignore[assignment]
        if "model" in given:
            metrics = given["metrics"]
            given["loss"] = metrics.get("loss") or metrics[given.get("criterion", "loss")]
            given["calibration"] = given.pop("train", None)
        return function(*args, **given)

    return call  # type: ignore[return-value]


@_of_0_1
@takes_task
def choose_average(
    candidates: Mapping[str, Callable[[], Weights]],
    task: Task,
    *,
    criterion: str = "loss",
    highest: bool = False,
    progress: Callable[[str, int, int], object] | None = None,
) -> AverageChoice:
    """Evaluate candidates on validation data and return the best.

    One after the other is made, BatchNorm is recalibrated for it, except for "last", and its
    metrics are taken. At most two are in memory at a time.

    Args:
        candidates: Name to a function that makes the weights, as of `average_candidates`.
        task: The model with its loss and metrics, and the validation data to decide on, which is
            iterated once for each candidate, and once more to see that it gives the same numbers.
            BatchNorm is calibrated on its training data.
        criterion: The metric that decides. Among equals the lower loss wins, then the earlier one.
        highest: Whether the highest value wins, as for an accuracy, and not the lowest.
        progress: Called before each candidate with its name, its number and how many there are.

    Returns:
        All candidates with their metrics, the best one and its weights.

    Raises:
        ValueError: If there is no candidate, the metric is unknown, none is finite, or the
            validation data give other numbers in another pass.
    """
    metrics = task.measured
    if criterion not in metrics:
        raise ValueError(f"criterion must be one of {', '.join(metrics)}, got {criterion!r}.")
    task = task.repeatable()
    judged: list[Candidate] = []
    best: tuple[tuple[float, float], Candidate, dict[str, Tensor]] | None = None
    for number, (name, make) in enumerate(candidates.items()):
        if progress:
            progress(name, number, len(candidates))
        weights = dict(make())
        if name != "last":
            weights |= task.recalibrated(weights)
        candidate = Candidate(name, _validated(task, weights, twice=not judged))
        judged.append(candidate)
        rank = _rank(candidate, criterion, highest=highest)
        if math.isfinite(rank[0]) and (best is None or rank < best[0]):
            best = rank, candidate, weights
    if best is None:
        raise ValueError(f"No candidate has a finite {criterion} on the validation data.")
    return AverageChoice(tuple(judged), best[1], best[2], criterion)


def _validated(task: Task, weights: Weights, *, twice: bool) -> dict[str, float]:
    """Measure, and measure again: noise in the data would decide on the best candidate."""
    found = task.evaluate(weights=weights, split="validation")
    second = task.evaluate(weights=weights, split="validation") if twice else {}
    for name, again in second.items():
        # Batches in another order are as good; their means are rounded otherwise.
        if math.isfinite(again) and not math.isclose(again, found[name], rel_tol=1e-4):
            raise ValueError(
                f"The validation data are not deterministic: {name} of the same weights was "
                f"{found[name]:.6g}, then {again:.6g}. Pass a fixed list of batches, without "
                "random augmentation."
            )
    return found


def _rank(candidate: Candidate, criterion: str, *, highest: bool) -> tuple[float, float]:
    """Lower is better."""
    value = candidate.validation[criterion]
    return (-value if highest else value), candidate.validation.get("loss", 0.0)


def _usual_modes(trajectory: Trajectory) -> list[int]:
    """Modes for runs that are long and large enough to have some."""
    weights = sum(math.prod(shape) for shape in trajectory.shapes.values())
    return [count for count in _MODES if len(trajectory) > 2 and weights > 100 * count]


def _usual_rules(trajectory: Trajectory) -> list[AverageRule]:
    """Rules that differ on this run."""
    first, last = trajectory.steps[0], trajectory.steps[-1]
    starts = dict.fromkeys(first + round((last - first) * part) for part in _START_FRACTIONS)
    rules: list[AverageRule] = [SWA(start) for start in starts]
    rules += [EMA(decay) for decay in _DECAYS]
    rules += [LAWA(count) for count in _LATEST if count <= len(trajectory)]
    begins = dict.fromkeys(first + round((last - first) * part) for part in _DECAYS_FROM)
    return rules + [Decay(start, "linear") for start in begins if start < last]
