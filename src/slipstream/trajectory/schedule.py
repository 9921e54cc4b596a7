"""Which steps of a training run to keep."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Schedule:
    """A plan of steps: one of the rules below. Made by `every`, `epochs`, `log` or `at`.

    A recorder keeps the first and the last step of the run besides.

    Example:
        >>> Schedule.log(per_decade=3).steps(1000)
        [0, 1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]
        >>> print(Schedule.epochs(469))
        every 469 steps, which is every epoch of 469 steps
    """

    interval: int | None = None  # keep the multiples of it
    steps_per_epoch: int | None = None  # with an interval: gives the epoch of a step
    per_decade: int | None = None  # keep so many steps from 10^n to 10^(n+1)
    chosen: tuple[int, ...] | None = None  # keep these

    def __post_init__(self) -> None:
        numbers = {"interval": self.interval, "steps_per_epoch": self.steps_per_epoch}
        for name, value in (numbers | {"per_decade": self.per_decade}).items():
            if value is not None and value < 1:
                raise ValueError(f"{name} of a schedule must be at least 1, got {value}.")
        if self.chosen is not None and min(self.chosen, default=0) < 0:
            raise ValueError(f"steps must not be negative, got {min(self.chosen)}.")
        if sum(rule is not None for rule in (self.interval, self.per_decade, self.chosen)) != 1:
            raise ValueError("A schedule has one rule: use Schedule.every, epochs, log or at.")

    @classmethod
    def every(cls, interval: int) -> Self:
        """Keep every `interval`-th step."""
        return cls(interval=interval)

    @classmethod
    def epochs(cls, steps_per_epoch: int, *, every: int = 1) -> Self:
        """Keep the end of every epoch, or of every `every`-th one."""
        return cls(interval=steps_per_epoch * every, steps_per_epoch=steps_per_epoch)

    @classmethod
    def log(cls, *, per_decade: int = 10) -> Self:
        """Keep steps at even distances of their logarithm: many early, few late."""
        return cls(per_decade=per_decade)

    @classmethod
    def at(cls, steps: Iterable[int]) -> Self:
        """Keep the steps that are listed."""
        return cls(chosen=tuple(sorted({int(step) for step in steps})))

    def __contains__(self, step: int) -> bool:
        if self.interval is not None:
            return step % self.interval == 0
        if self.chosen is not None:
            return step in self.chosen
        per_decade = self.per_decade or 1
        nearest = round(per_decade * math.log10(step)) if step > 0 else 0
        near = range(max(nearest - 1, 0), nearest + 2)
        return step == 0 or step in {round(10 ** (n / per_decade)) for n in near}

    def steps(self, last: int) -> list[int]:
        """Return what a recorder keeps of a run of `last` steps: 0, the plan, and `last`."""
        return [step for step in range(last + 1) if step in (0, last) or step in self]

    def epoch_of(self, step: int) -> float | None:
        """Return the epochs done after `step` steps, if the schedule knows their length."""
        return step / self.steps_per_epoch if self.steps_per_epoch else None

    def __str__(self) -> str:
        if self.interval is not None:
            text = f"every {self.interval} steps"
            if self.steps_per_epoch:
                epochs = self.interval // self.steps_per_epoch
                count = "epoch" if epochs == 1 else f"{epochs} epochs"
                text += f", which is every {count} of {self.steps_per_epoch} steps"
            return text
        if self.chosen is not None:
            return "at the steps " + ", ".join(map(str, self.chosen))
        return f"{self.per_decade} steps from each power of ten to the next"

    def to_json(self) -> dict[str, Any]:
        """Return the schedule as plain data that `from_json` reads."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned."""
        chosen = data.get("chosen")
        return cls(**{**data, "chosen": None if chosen is None else tuple(chosen)})
