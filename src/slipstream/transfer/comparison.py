"""What a transfer is worth: every method from the same starts, measured on the same data."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from slipstream.evaluation import Task, takes_task
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer.learning_transfer import Target, transfer_trajectory
from slipstream.transfer.plan import TransferPlan
from slipstream.weights import Weights

TARGET_START, TRAINED_TARGET = "target start", "trained target"
Further = Callable[[Weights], Weights]  # weights after some more training


@dataclass(frozen=True)
class Outcome:
    """What one method leads to from one target."""

    name: str  # of the plan, "target start" or "trained target"
    target: int  # its index
    metrics: Mapping[str, float]  # on the test data, without any further training
    further: Mapping[str, float]  # the same after further training; empty if there was none
    along: tuple[Mapping[str, float], ...] = ()  # on the validation data, of every stage
    seconds: float = 0.0  # of the transfer
    gradient_evaluations: int = 0


@dataclass(frozen=True)
class Comparison:
    """Result of `compare_methods`: an outcome for every method and target."""

    outcomes: tuple[Outcome, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The methods that were compared, in order."""
        return tuple(dict.fromkeys(outcome.name for outcome in self.outcomes))

    def of(self, name: str) -> tuple[Outcome, ...]:
        """Return the outcomes of one method, target by target."""
        return tuple(outcome for outcome in self.outcomes if outcome.name == name)

    def mean(self, name: str, read: Callable[[Outcome], float]) -> tuple[float, float]:
        """Return mean and sample standard deviation over the targets.

        Args:
            name: One of `names`.
            read: Takes the value from an outcome.

        Returns:
            Mean and standard deviation; the latter is 0 for a single target.
        """
        values = [read(outcome) for outcome in self.of(name)]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@takes_task
def compare_methods(
    source: Trajectory,
    targets: Sequence[Target],
    task: Task,
    *,
    plans: Mapping[str, TransferPlan],
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
        plans: What to compare, by the name it has in the table.
        groups: What may be permuted; found and proven, once for all, when not given.
        further: Trains weights on and returns the new ones.
        progress: Called before each piece of work with its name, its number and how many there are.

    Returns:
        An outcome for every method and target, starts and trained targets included.

    Raises:
        ValueError: If the task has no test data, or a target has no trained end.
    """
    if task.test is None:
        raise ValueError("Methods are compared on test data: give Task(..., test=...).")
    if any(target.trained is None for target in targets):
        raise ValueError("Every target needs the end of its own training: Target(start, trained).")
    if groups is None and any(plan.matching != "naive" for plan in plans.values()):
        groups = find_neuron_groups(task.model, task.example())
    bench = _Bench(source, task, groups, further)
    names = [TARGET_START, *plans, TRAINED_TARGET]
    outcomes: list[Outcome] = []
    for number, target in enumerate(targets):
        for name in names:
            if progress is not None:
                progress(name, len(outcomes), len(targets) * len(names))
            if name in plans:
                outcomes.append(bench.transfer(name, plans[name], target, number))
            else:
                weights = target.start if name == TARGET_START else target.trained
                outcomes.append(bench.outcome(name, number, weights or {}))
    return Comparison(tuple(outcomes))


@dataclass(frozen=True)
class _Bench:
    """What is the same for all methods."""

    source: Trajectory
    task: Task
    groups: NeuronGroups | None
    further: Further | None

    def transfer(self, name: str, plan: TransferPlan, target: Target, number: int) -> Outcome:
        result = transfer_trajectory(self.source, target, self.task, plan=plan, groups=self.groups)
        cost = result.cost
        return replace(
            self.outcome(name, number, result.weights),
            along=tuple(stage.metrics for stage in result.stages),
            seconds=cost.total_seconds - cost.seconds.get("validation", 0.0),
            gradient_evaluations=cost.gradient_evaluations,
        )

    def outcome(self, name: str, number: int, weights: Weights) -> Outcome:
        trained_on = self.further(weights) if self.further else None
        return Outcome(
            name,
            number,
            metrics=self.task.evaluate(weights=weights, split="test"),
            further=self.task.evaluate(weights=trained_on, split="test") if trained_on else {},
        )
