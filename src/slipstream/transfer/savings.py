"""What a transfer saves: the gradients to a goal, beside those of the best way without a source."""

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Reached:
    """The plan that reaches a goal with the fewest gradients."""

    name: str
    gradients: int
    seconds: float
    test: float  # the metric on the test data, by which nothing was chosen


@dataclass(frozen=True)
class Saving:
    """What one target's transfer saves."""

    target: int
    goal: float  # of the metric, on the validation data
    transfer: Reached | None  # None: no plan with a source reached it
    rival: Reached | None  # None: no plan without a source reached it
    most_gradients: int  # that a rival was given

    @property
    def ratio(self) -> float | None:
        """The rival's gradients for each one of the transfer; None if either did not get there."""
        if self.transfer is None or self.rival is None:
            return None
        return self.rival.gradients / max(self.transfer.gradients, 1)

    @property
    def least_ratio(self) -> float:
        """A lower bound of it: what is known where no rival got there; 0 if the transfer did not.

        Example:
            >>> Saving(0, 0.97, Reached("fgmt", 30, 2.0, 0.96), None, 300).least_ratio
            10.0
        """
        if self.transfer is None:
            return 0.0
        needed = self.most_gradients if self.rival is None else self.rival.gradients
        return needed / max(self.transfer.gradients, 1)


@dataclass(frozen=True)
class Savings:
    """Result of `Comparison.savings`."""

    metric: str
    targets: tuple[Saving, ...]

    @property
    def least_ratio(self) -> float:
        """The median over the targets of how many times fewer gradients it took, at least."""
        return statistics.median(saving.least_ratio for saving in self.targets)

    def __str__(self) -> str:
        """Return a line per target and one for all."""
        lines = [f"target {s.target}: {self._line(s)}" for s in self.targets]
        return "\n".join([*lines, f"median: at least {self.least_ratio:.3g} times fewer gradients"])

    def _line(self, saving: Saving) -> str:
        goal = f"validation {self.metric} {saving.goal:.4g}"
        ours, other = saving.transfer, saving.rival
        if ours is None and other is None:
            return f"{goal} was not reached, neither with the source nor without it"
        if ours is None:
            return f"{goal} was not reached with the source; {_how(other)} without it"
        if other is None:
            return (
                f"{goal} after {_how(ours)}; no way without the source reached it with up to "
                f"{saving.most_gradients} gradients"
            )
        return f"{goal} after {_how(ours)}, instead of {_how(other)}"


def goal_of(trained: float, share: float, *, rises: bool) -> float:
    """Return a share of a trained network's metric; of one that training makes smaller, more of it.

    Args:
        trained: The metric at the end of a training.
        share: Up to 1.
        rises: Whether training makes the metric larger.

    Returns:
        What has to be reached.

    Raises:
        ValueError: If the share is not in (0, 1].

    Example:
        >>> goal_of(0.8, 0.5, rises=True), goal_of(0.8, 0.5, rises=False)
        (0.4, 1.6)
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}.")
    return trained * share if rises else trained / share


def _how(reached: Reached | None) -> str:
    if reached is None:
        return "nothing"
    return f"{reached.gradients} gradients and {reached.seconds:.1f} s ({reached.name})"
