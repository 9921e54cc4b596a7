"""What a transfer is worth: every method from the same starts, measured on the same data."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, overload

from slipstream.evaluation import Task, takes_task
from slipstream.evaluation.executors import is_spread, spread
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer.learning_transfer import Target, transfer_trajectory
from slipstream.transfer.plan import TransferPlan
from slipstream.transfer.rivals import DescentPlan, descend
from slipstream.transfer.savings import Reached, Saving, Savings, goal_of
from slipstream.weights import Weights

TARGET_START, TRAINED_TARGET = "target start", "trained target"
Further = Callable[[Weights], Weights]  # weights after some more training
Update = Callable[[Weights], Weights]  # from a start to weights, by no gradient of the task


@dataclass(frozen=True)
class ContinuedTransfer:
    """A transfer, and a short training from where it ends."""

    transfer: TransferPlan
    descent: DescentPlan

    @property
    def gradients(self) -> int:
        """Gradient evaluations of both."""
        return self.transfer.gradients + self.descent.gradients


Plan = TransferPlan | DescentPlan | ContinuedTransfer


@dataclass(frozen=True)
class Outcome:
    """What one plan leads to from one target."""

    name: str  # of the plan, "target start" or "trained target"
    target: int  # its index
    metrics: Mapping[str, float]  # on the test data, without any further training
    further: Mapping[str, float]  # the same after further training; empty if there was none
    along: tuple[Mapping[str, float], ...] = ()  # on the validation data, of every stage
    seconds: float = 0.0  # of the transfer, or of the descent at the rate that was taken
    gradient_evaluations: int = 0  # likewise
    validation: Mapping[str, float] = field(default_factory=dict)  # at the end; to choose by
    without_source: bool = False  # a way to train the target's start itself
    rate: float | None = None  # of a descent, chosen on the validation data
    tuning_gradients: int = 0  # at the rates that were not taken


@dataclass(frozen=True)
class Comparison:
    """Result of `compare_methods`: an outcome for every plan and target."""

    outcomes: tuple[Outcome, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The methods that were compared, in order."""
        return tuple(dict.fromkeys(outcome.name for outcome in self.outcomes))

    @property
    def rows(self) -> tuple[tuple[str, int], ...]:
        """The methods with each number of gradients that they took, in order."""
        return tuple(dict.fromkeys((o.name, o.gradient_evaluations) for o in self.outcomes))

    @property
    def rivals(self) -> tuple[str, ...]:
        """Those of the methods that need no source."""
        return tuple(dict.fromkeys(o.name for o in self.outcomes if o.without_source))

    def of(self, name: str, gradients: int | None = None) -> tuple[Outcome, ...]:
        """Return the outcomes of one method, target by target.

        Args:
            name: One of `names`.
            gradients: Only those that took so many; by default all.

        Returns:
            The outcomes.
        """
        return tuple(
            outcome
            for outcome in self.outcomes
            if outcome.name == name and gradients in (None, outcome.gradient_evaluations)
        )

    def mean(
        self, name: str, read: Callable[[Outcome], float], *, gradients: int | None = None
    ) -> tuple[float, float]:
        """Return mean and sample standard deviation over the targets.

        Args:
            name: One of `names`.
            read: Takes the value from an outcome.
            gradients: Only of the outcomes that took so many.

        Returns:
            Mean and standard deviation; the latter is 0 for a single target.
        """
        values = [read(outcome) for outcome in self.of(name, gradients)]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def savings(
        self,
        names: Sequence[str] | None = None,
        *,
        metric: str = "accuracy",
        share: float = 0.99,
        value: float | None = None,
    ) -> Savings:
        """Return what transfers save against the best way without a source, to the same metric.

        Of the plans that reach the goal on the validation data the one with the fewest gradients
        counts, transfer and further training included. So give each method and rival several
        numbers of gradients: what lies between two of them is not known.

        Args:
            names: The methods that are credited; by default all that have a source, other than the
                oracle.
            metric: What has to be reached.
            share: The goal: this part of the trained target's own metric; where training makes a
                metric smaller, such as a loss, that metric divided by the share.
            value: The goal itself, instead.

        Returns:
            Gradients and seconds of both, target by target.

        Raises:
            ValueError: If a name is unknown, or the metric was not measured on validation data.
        """
        known = [n for n in self.names if n not in (TARGET_START, TRAINED_TARGET, *self.rivals)]
        own = list(names) if names is not None else [n for n in known if "oracle" not in n]
        if unknown := [name for name in own if name not in known]:
            raise ValueError(
                f"{unknown[0]!r} is no method with a source; there are {', '.join(known)}."
            )
        found = []
        for start, trained in zip(self.of(TARGET_START), self.of(TRAINED_TARGET), strict=True):
            ends = [one.validation.get(metric) for one in (start, trained)]
            if ends[0] is None or ends[1] is None:
                raise ValueError(
                    f"{metric!r} was not measured on validation data: give the task some, and name "
                    f"one of {', '.join(start.validation) or 'its metrics'}."
                )
            rises = ends[1] >= ends[0]
            goal = goal_of(ends[1], share, rises=rises) if value is None else value
            here = [o for o in self.outcomes if o.target == start.target]
            pick = [
                _first([o for o in here if o.name in some], metric, goal, rises=rises)
                for some in (own, self.rivals)
            ]
            most = max((o.gradient_evaluations for o in here if o.without_source), default=0)
            found.append(Saving(start.target, goal, pick[0], pick[1], most))
        return Savings(metric, tuple(found))


def _first(outcomes: Sequence[Outcome], metric: str, goal: float, *, rises: bool) -> Reached | None:
    """The outcome with the fewest gradients that reaches a goal on the validation data."""
    sign = 1 if rises else -1
    there = [
        o for o in outcomes if metric in o.validation and sign * (o.validation[metric] - goal) >= 0
    ]
    if not there:
        return None
    best = min(there, key=lambda o: (o.gradient_evaluations, o.seconds))
    test = best.metrics[metric]
    return Reached(best.name, best.gradient_evaluations, best.seconds, test)


@takes_task
def compare_methods(
    source: Trajectory,
    targets: Sequence[Target],
    task: Task,
    *,
    plans: Mapping[str, Plan | Update | Sequence[Plan]],
    groups: NeuronGroups | None = None,
    further: Further | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Transfer one run to several targets by several plans, and measure where each one leads.

    Args:
        source: The run to transfer.
        targets: Starts with their own trainings' ends, which the oracle and the last row use.
        task: The model with its loss and metrics; gradients are taken on its data, the stages are
            measured on its validation data, and the ends on its test data, by which nothing is
            chosen.
        plans: What to compare, by the name it has in the table: transfers, trainings of the start
            itself (`rivals()`), a transfer with a training after it, or a function from a start to
            other weights, such as what a model of checkpoints generates; of each one plan, or
            several that take different numbers of gradients (`at_gradients`).
        groups: What may be permuted; found and proven, once for all, when not given.
        further: Trains weights on and returns the new ones.
        progress: Called before each piece of work with its name, its number and how many there are.

    Returns:
        An outcome for every plan and target, starts and trained targets included.

    Raises:
        ValueError: If the task has no test data, or a target has no trained end.
    """
    if task.test is None:
        raise ValueError("Methods are compared on test data: give Task(..., test=...).")
    if any(target.trained is None for target in targets):
        raise ValueError("Every target needs the end of its own training: Target(start, trained).")
    if groups is None and any(_permutes(plan) for given in plans.values() for plan in _list(given)):
        groups = find_neuron_groups(task.model, task.example())
    bench = _Bench(source, task.repeatable(), groups, further)
    work: list[tuple[str, Plan | Update | None]] = [(TARGET_START, None)]
    work += [(name, plan) for name, given in plans.items() for plan in _list(given)]
    work.append((TRAINED_TARGET, None))
    every = [(name, plan, number) for number in range(len(targets)) for name, plan in work]
    tell = partial(_tell, progress, every)
    tell(0, len(every))
    jobs = [(bench, name, plan, targets[number], is_spread()) for name, plan, number in every]
    found = spread(_outcome, jobs, progress=tell)
    return Comparison(
        tuple(
            replace(outcome, name=name, target=number)
            for outcome, (name, _, number) in zip(found, every, strict=True)
        )
    )


def _tell(
    progress: Callable[[str, int, int], None] | None,
    every: Sequence[tuple[str, Plan | Update | None, int]],
    done: int,
    total: int,
) -> None:
    """Say what is about to be done; on an executor, about how far it is."""
    if progress is not None and done < total:
        progress(every[done][0], done, total)


def _outcome(
    bench: "_Bench", name: str, plan: Plan | Update | None, target: Target, apart: bool
) -> Outcome:
    """What comes of a piece of work; `apart` with a model that nobody else works on."""
    if apart:
        bench = replace(bench, task=replace(bench.task, model=deepcopy(bench.task.model)))
    if plan is not None:
        return bench.run(plan, target)
    weights = target.start if name == TARGET_START else target.trained
    return bench.outcome(weights or {})


@overload
def at_gradients(plan: TransferPlan, gradients: Sequence[int]) -> list[TransferPlan]: ...


@overload
def at_gradients(plan: DescentPlan, gradients: Sequence[int]) -> list[DescentPlan]: ...


@overload
def at_gradients(plan: ContinuedTransfer, gradients: Sequence[int]) -> list[ContinuedTransfer]: ...


def at_gradients(plan: Plan, gradients: Sequence[int]) -> Sequence[Plan]:
    """Return a plan with other numbers of gradients, as `compare_methods` takes several of them.

    Args:
        plan: Of a transfer the stages are changed, so that it takes as many gradients as fit; of a
            continued one the training after it.
        gradients: The numbers, all that is done together. Where nothing fits, there is no plan.

    Returns:
        A plan for each; only the plan itself if it takes no gradients.

    Example:
        >>> [plan.stages for plan in at_gradients(TransferPlan("fgmt-signed"), (2, 10, 30))]
        [3, 10]
        >>> at_gradients(TransferPlan("naive"), (10, 30)) == [TransferPlan("naive")]
        True
    """
    if isinstance(plan, DescentPlan):
        return [replace(plan, gradients=number) for number in gradients if number > 0]
    if isinstance(plan, ContinuedTransfer):
        left = [number - plan.transfer.gradients for number in gradients]
        return [
            replace(plan, descent=replace(plan.descent, gradients=rest))
            for rest in left
            if rest > 0
        ]
    found = [plan.within(number) for number in gradients]
    return list(dict.fromkeys(one for one in found if one is not None))


def _list(given: Plan | Update | Sequence[Plan]) -> Sequence[Plan | Update]:
    return given if isinstance(given, Sequence) else [given]


def _permutes(plan: Plan | Update) -> bool:
    if isinstance(plan, ContinuedTransfer):
        return _permutes(plan.transfer)
    return isinstance(plan, TransferPlan) and plan.matching != "naive"


@dataclass(frozen=True)
class _Bench:
    """What is the same for all methods."""

    source: Trajectory
    task: Task
    groups: NeuronGroups | None
    further: Further | None

    def run(self, plan: Plan | Update, target: Target) -> Outcome:
        """Return what a plan leads to; its name and its target's number are not known here."""
        if isinstance(plan, TransferPlan):
            return self._transfer(plan, target)[0]
        if isinstance(plan, DescentPlan):
            return self._descent(plan, target.start)
        if not isinstance(plan, ContinuedTransfer):
            began = time.perf_counter()
            made = plan(target.start)
            return self.outcome(made, seconds=time.perf_counter() - began)
        carried, weights = self._transfer(plan.transfer, target, measured=False)
        after = self._descent(plan.descent, weights)
        return replace(
            after,
            seconds=carried.seconds + after.seconds,
            gradient_evaluations=carried.gradient_evaluations + after.gradient_evaluations,
            without_source=False,
        )

    def outcome(self, weights: Weights, **known: Any) -> Outcome:
        """Return what weights are worth."""
        trained_on = self.further(weights) if self.further else None
        held = self.task.validation is not None and "validation" not in known
        measured = self.task.evaluate(weights=weights, split="validation") if held else {}
        return Outcome(
            "",
            0,
            metrics=self.task.evaluate(weights=weights, split="test"),
            further=self.task.evaluate(weights=trained_on, split="test") if trained_on else {},
            **{"validation": measured, **known},
        )

    def _transfer(
        self, plan: TransferPlan, target: Target, *, measured: bool = True
    ) -> tuple[Outcome, Weights]:
        needed = measured or plan.keep == "best"
        task = self.task if needed else replace(self.task, validation=None)
        result = transfer_trajectory(self.source, target, task, plan=plan, groups=self.groups)
        cost = result.cost
        known: dict[str, Any] = {
            "along": tuple(stage.metrics for stage in result.stages if measured),
            "seconds": cost.total_seconds - cost.seconds.get("validation", 0.0),
            "gradient_evaluations": cost.gradient_evaluations,
        }
        if not measured:
            return Outcome("", 0, {}, {}, **known), result.weights
        if plan.keep == "last":
            known["validation"] = result.stages[-1].metrics
        return self.outcome(result.weights, **known), result.weights

    def _descent(self, plan: DescentPlan, start: Weights) -> Outcome:
        found = descend(start, self.task, plan, source=self.source[-1].weights)
        return self.outcome(
            found.weights,
            validation=found.validation,
            seconds=found.seconds,
            gradient_evaluations=found.gradients,
            tuning_gradients=found.gradients_of_all - found.gradients,
            rate=found.rate,
            without_source=plan.answers != "source",
        )
