"""Tuning an operator network to an equation, without solutions: all weights, or low ranks."""

import copy as copying
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slipstream.evaluation import Task, eval_mode, takes_task
from slipstream.evaluation.batches import sized_batches
from slipstream.recipes.operators.low_rank import make_low_rank_, merged
from slipstream.recipes.operators.physics import (
    HELD_POINTS,
    PhysicsProblem,
    check_split,
    functions_in,
    physics_parts,
)
from slipstream.recipes.operators.plan import PhysicsPlan
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, recorded
from slipstream.training.loop import DivergedError, Progress
from slipstream.training.recorded_training import RecordingOptions
from slipstream.weights import clone, first_nonfinite, weights_of


@dataclass(frozen=True)
class OperatorTuning:
    """Result of `tune_operator`."""

    plan: PhysicsPlan
    weights: dict[str, Tensor]  # those with the least held-out loss
    step: int  # at which they were found
    rate: float  # the learning rate, of those that were tried
    trials: dict[float, float]  # rate to held-out loss after the trial; inf if it diverged
    held_out: tuple[float, ...]  # the loss of the equation at the start and after each epoch
    trained: int  # parameters that were trained
    steps: int
    seconds: float  # of the training, without the trials

    @property
    def best(self) -> float:
        """The least held-out loss."""
        return min(self.held_out)


@takes_task
def tune_operator(
    task: Task,
    *,
    problem: PhysicsProblem,
    plan: PhysicsPlan | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> OperatorTuning:
    """Tune an operator network to an equation: a loss of derivatives, no solutions.

    The loss is the mean square of the equation's residual, plus weighted distances from the given
    function at time 0 and between the ends of the period. Rates and steps are chosen by that loss
    on held-out functions, never by an error: there are no solutions to measure one with.

    Source: "Physics-informed DeepONets" (Wang, Wang, Perdikaris, 2021); with low ranks as in
    "DeepONet as a Multi-Operator Extrapolation Model" (Zhang et al., 2024).

    Args:
        task: The model at its start, left as it was: its outputs are the products of its `branch`
            and its `trunk`, summed. Data and validation data are batches of input functions,
            (functions, sensors).
        problem: The equation, and where functions are given.
        plan: How.
        run_folder: Records the weights after every epoch as a run.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The best weights by held-out loss, which may be the start.

    Raises:
        TypeError: If the model has no branch and trunk.
        ValueError: If the model computes something else, a batch holds solutions, a NaN or another
            number of sensors, there are no validation data, every rate diverges, or what is to be
            resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> from slipstream.testbed.deeponet import DeepONet
        >>> from slipstream.testbed.equations import FlowEquation, random_functions
        >>> from slipstream.training import TrainingPlan
        >>> functions = random_functions(8, positions=8, waves=2)
        >>> task = Task(DeepONet(sensors=8, width=4, terms=3), [functions], validation=[functions])
        >>> plan = PhysicsPlan(points=16, descent=TrainingPlan(epochs=3, lr=1e-3))
        >>> problem = PhysicsProblem.even(FlowEquation().residual, 8)
        >>> found = tune_operator(task, problem=problem, plan=plan)
        >>> found.steps, len(found.held_out)
        (3, 4)
    """
    plan = plan or PhysicsPlan()
    task = _checked(task, problem)
    training = _Training(task, problem, plan)
    names = tuple(weights_of(task.model))
    with recorded(
        training,
        replace(task, model=copying.deepcopy(task.model)),
        run_folder,
        plan={"operator_tuning": asdict(plan)},
        start=[weights_of(task.model)],
        measure=training.measured,
        options=RecordingOptions(
            losses="train_physics", weights=lambda: merged(training.module, names)
        ),
    ) as keep:

        def after_epoch() -> None:
            training.look()
            keep()

        training.choose_rate(task)
        training.run(training.objective, data=task.data, on_epoch=after_epoch, progress=progress)
    return training.result()


def physics_metrics(
    model: nn.Module, task: Task, *, problem: PhysicsProblem, plan: PhysicsPlan | None = None
) -> dict[str, float]:
    """Return the loss of an equation on the validation functions of a task, and its parts.

    Args:
        model: The network; left as it was.
        task: Its validation data are batches of input functions.
        problem: The equation.
        plan: How the parts are weighted.

    Returns:
        `physics`, the whole, then `residual`, `initial` and `boundary`: mean squares, at points
        that are always the same.
    """
    plan = plan or PhysicsPlan()
    points = problem.drawn_points(HELD_POINTS, torch.Generator().manual_seed(0))

    totals: Counter[str] = Counter()
    count = 0
    with eval_mode(model), torch.no_grad():
        for batch, size in sized_batches(model, task.part("validation")):
            own = functions_in(batch, problem)
            found = physics_parts(model, own, points.to(own), problem=problem)
            for name, value in vars(found).items():
                totals[name] += size * value.item()
            count += size
    means = {name: total / count for name, total in totals.items()}
    whole = means["residual"] + plan.initial * means["initial"]
    return {"physics": whole + plan.boundary * means["boundary"], **means}


def _checked(task: Task, problem: PhysicsProblem) -> Task:
    """The task with data in memory, after everything about them was looked at."""
    task = replace(task, data=list(task.data), validation=list(task.part("validation")))
    for name in ("data", "validation"):
        batches = getattr(task, name)
        if not batches:
            raise ValueError(f"{name} is empty: give batches of input functions.")
        for batch in batches:
            functions_in(batch, problem)
    if bad := first_nonfinite(weights_of(task.model)):
        raise ValueError(f"The model holds a NaN or an infinity in {bad!r}.")
    first = task.to(task.data[0])  # type: ignore[index]
    points = problem.drawn_points(3, torch.Generator().manual_seed(0)).to(first)
    check_split(task.model, first, points)
    return task


_KEPT = ("rate", "trials", "held_out", "best_step", "best_weights")  # of an unfinished training


class _Training(Loop):
    """A copy of the network, the best weights so far, and the rate once it is chosen."""

    def __init__(self, task: Task, problem: PhysicsProblem, plan: PhysicsPlan) -> None:
        self.how, self.problem, self.task = plan, problem, task
        self.names = tuple(weights_of(task.model))
        network = copying.deepcopy(task.model).requires_grad_(True)
        if plan.rank:
            make_low_rank_(network, plan.rank, seed=plan.descent.seed)
        super().__init__(network, plan.descent)
        self.rate = None if plan.rates else plan.descent.lr
        self.trials: dict[float, float] = {}
        self.held_out: list[float] = []
        self.best_step, self.best_weights = 0, clone(weights_of(task.model))
        self.look()

    def objective(self, functions: Tensor) -> Tensor:
        """Return the loss at new points."""
        drawn = torch.Generator().manual_seed(int(self.generator.integers(2**62)))
        points = self.problem.drawn_points(self.how.points, drawn).to(functions)
        with parametrize.cached():
            found = physics_parts(
                self.module,
                functions,
                points,
                problem=self.problem,
                boundary=self.how.boundary > 0,
            )
        whole = found.residual + self.how.initial * found.initial
        return whole + self.how.boundary * found.boundary

    def measured(self) -> dict[str, float]:
        """Return the held-out loss and its parts, as a run records them."""
        found = physics_metrics(self.module, self.task, problem=self.problem, plan=self.how)
        return {f"validation_{name}": value for name, value in found.items()}

    def look(self) -> None:
        """Measure the held-out loss, and keep the weights if there were none better."""
        found = self.measured()["validation_physics"]
        if not math.isfinite(found):
            raise DivergedError(
                f"The held-out loss after step {self.step} is {found}: try a smaller lr."
            )
        if self.held_out and found < min(self.held_out):
            self.best_step, self.best_weights = self.step, merged(self.module, self.names)
        self.held_out.append(found)

    def choose_rate(self, task: Task) -> None:
        """Try the rates for a share of the epochs, unless one was chosen; each has its cosine."""
        if self.rate is None:
            self.trials = {rate: self._tried(task, rate) for rate in self.how.rates}
            self.rate = min(self.trials, key=lambda rate: self.trials[rate])
            if not math.isfinite(self.trials[self.rate]):
                raise ValueError(f"Every rate of {self.how.rates} diverged: try smaller rates.")
        self.plan = replace(self.plan, lr=self.rate)

    def _tried(self, task: Task, rate: float) -> float:
        epochs = max(1, round(self.how.trial * self.plan.epochs))
        descent = replace(self.plan, lr=rate, epochs=epochs)
        trial = _Training(task, self.problem, replace(self.how, rates=(), descent=descent))
        try:
            trial.run(trial.objective, data=task.data)
            trial.look()
        except DivergedError:
            return math.inf
        return trial.held_out[-1]

    def result(self) -> OperatorTuning:
        """Return all of it."""
        return OperatorTuning(
            self.how,
            dict(self.best_weights),
            self.best_step,
            self.rate or self.how.descent.lr,
            self.trials,
            tuple(self.held_out),
            sum(p.numel() for p in self.module.parameters() if p.requires_grad),
            self.step,
            self.seconds,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return {**super().state_dict(), **{name: getattr(self, name) for name in _KEPT}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another one stopped."""
        super().load_state_dict(state)
        for name in _KEPT:
            setattr(self, name, state[name])
