"""What a transfer is worth: every method from the same starts, measured on the same data."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from slipstream.evaluation import Batch, Loss, Metric, evaluate
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.trajectory import Trajectory
from slipstream.transfer.learning_transfer import transfer_trajectory
from slipstream.transfer.plan import TransferPlan
from slipstream.weights import Weights

TARGET_START, TRAINED_TARGET = "target start", "trained target"
Further = Callable[[Weights], Weights]  # weights after some more training


@dataclass(frozen=True)
class Target:
    """A start to transfer to, and where its own training would have led."""

    start: Weights
    trained: Weights


@dataclass(frozen=True)
class Outcome:
    """One way to get weights for one target."""

    name: str  # of the plan, "target start" or "trained target"
    target: int  # its number
    metrics: Mapping[str, float]  # on the test data, without any further training
    further: Mapping[str, float]  # the same after further training; empty if there was none
    along: tuple[Mapping[str, float], ...] = ()  # on the validation data, at every stage
    seconds: float = 0.0  # of the transfer
    gradient_evaluations: int = 0


@dataclass(frozen=True)
class Comparison:
    """Result of `compare_methods`: an outcome for every method and target."""

    outcomes: tuple[Outcome, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The ways that were compared, in order."""
        return tuple(dict.fromkeys(outcome.name for outcome in self.outcomes))

    def of(self, name: str) -> tuple[Outcome, ...]:
        """Return the outcomes of one way, target by target."""
        return tuple(outcome for outcome in self.outcomes if outcome.name == name)

    def mean(self, name: str, read: Callable[[Outcome], float]) -> tuple[float, float]:
        """Return mean and sample standard deviation over the targets.

        Args:
            name: One of `names`.
            read: Takes the number from an outcome.

        Returns:
            Mean and standard deviation; the latter is 0 for a single target.
        """
        values = [read(outcome) for outcome in self.of(name)]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def compare_methods(
    source: Trajectory,
    targets: Sequence[Target],
    *,
    model: nn.Module,
    loss: Loss,
    data: Iterable[Batch],
    plans: Mapping[str, TransferPlan],
    metrics: Mapping[str, Metric],
    validation: Iterable[Batch],
    test: Iterable[Batch],
    groups: NeuronGroups,
    further: Further | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Transfer one run to several targets by several plans, and measure where each one leads.

    Args:
        source: The run to transfer.
        targets: Starts with their own trainings' ends, which the oracle and the last row use.
        model: The architecture.
        loss: Maps the model and a batch to the batch's mean loss.
        data: Batches for gradients.
        plans: What to compare, by the name it has in the table.
        metrics: What to measure.
        validation: Batches on which the stages are measured.
        test: Batches on which the ends are measured; nothing is chosen by them.
        groups: What may be permuted.
        further: Trains weights on and returns the new ones.
        progress: Called before each piece of work with its name, its number and how many there are.

    Returns:
        An outcome for every way and target, starts and trained targets included.
    """
    bench = _Bench(model, loss, data, groups, metrics, validation, test, further)
    ways = [TARGET_START, *plans, TRAINED_TARGET]
    outcomes: list[Outcome] = []
    for number, target in enumerate(targets):
        for name in ways:
            if progress is not None:
                progress(name, len(outcomes), len(targets) * len(ways))
            if name in plans:
                outcomes.append(bench.transfer(name, plans[name], source, target, number))
            else:
                weights = target.start if name == TARGET_START else target.trained
                outcomes.append(bench.outcome(name, number, weights))
    return Comparison(tuple(outcomes))


@dataclass(frozen=True)
class _Bench:
    """What is the same for all ways."""

    model: nn.Module
    loss: Loss
    data: Iterable[Batch]
    groups: NeuronGroups
    metrics: Mapping[str, Metric]
    validation: Iterable[Batch]
    test: Iterable[Batch]
    further: Further | None

    def transfer(
        self, name: str, plan: TransferPlan, source: Trajectory, target: Target, number: int
    ) -> Outcome:
        result = transfer_trajectory(
            source,
            target.start,
            model=self.model,
            loss=self.loss,
            data=self.data,
            plan=plan,
            groups=self.groups,
            trained_target=target.trained,
            validation=self.validation,
            metrics=self.metrics,
        )
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
            metrics=self._measure(weights),
            further=self._measure(trained_on) if trained_on else {},
        )

    def _measure(self, weights: Weights) -> dict[str, float]:
        return evaluate(self.model, self.metrics, weights=weights, data=self.test)
