"""What a transfer will do, as plain data: printed, saved with the result, compared on resuming."""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

from slipstream.storage.plan_fields import option

if TYPE_CHECKING:
    from slipstream.trajectory import Trajectory

Method = Literal[
    "naive",
    "random",
    "oracle",
    "gmt",
    "fgmt",
    "naive-signed",
    "random-signed",
    "oracle-signed",
    "gmt-signed",
    "fgmt-signed",
]
SIGNED = "-signed"
PathKind = Literal["line", "recorded"]
LineSchedule = Literal["uniform", "cosine"]
Pairs = Literal["plain", "normalised"]
Keep = Literal["last", "best"]


@dataclass(frozen=True)
class SignWeights:
    """How the signed methods step: `w + displacement * d - strength * size * sign(gradient)`.

    `d` is an entry of the path's next increment, permuted to the target's neurons, and the
    gradient is the target's own. `size` is |d|, moved towards the mean of |d| over its tensor by
    `smoothing`; the strength grows from `first` to `last` along the stages. The path decides how
    far each weight moves, the target's gradient influences in which direction.
    """

    displacement: float = 1.0
    first: float = 0.2
    last: float = 2.0
    smoothing: float = 0.5  # 0: each entry its own size; 1: all entries of a tensor the same

    @classmethod
    def constant(cls, *, agree: float, disagree: float) -> "SignWeights":
        """Multiply entries that the gradient agrees with by `agree`, the others by `disagree`."""
        strength = (agree - disagree) / 2
        return cls((agree + disagree) / 2, strength, strength, smoothing=0.0)

    def strength(self, stage: int, stages: int) -> float:
        """Return the strength at a stage, counted from 1."""
        return self.first + (self.last - self.first) * (stage - 1) / max(stages - 1, 1)


@dataclass(frozen=True)
class TransferPlan:
    """How a trajectory is carried to a new start."""

    method: Method = option(
        "fgmt-signed",
        "How neurons are permuted: fgmt matches the gradients of both networks along the path, "
        "gmt recomputes them at each stage, oracle matches the target's own training; naive does "
        "not permute. -signed: the target's gradient also decides in which direction weights move.",
    )
    stages: int = option(10, "Stages along the path, in each segment.")
    path: PathKind = option(
        "line", "Along the straight line from start to end, or the run's own snapshots."
    )
    schedule: LineSchedule = option(
        "cosine", "How the line is cut: large moves first, or all alike."
    )
    segments: int = option(1, "Parts of the run, each with a permutation of its own.")
    batches_per_gradient: int = option(1, "Batches for each gradient.")
    pairs: Pairs = option(
        "plain", "Whether each stage counts by the size of its gradients, or all stages the same."
    )
    batchnorm_batches: int = option(2, "Batches for BatchNorm's statistics, before each gradient.")
    warm_start: bool = option(
        True, "Whether each matching starts from the permutation of the stage before."
    )
    max_sweeps: int = option(100, "A bound on each matching; it converges long before.")
    exclude: tuple[str, ...] = option(
        (), "Tensors that stay the target's own: patterns such as 'head.*'."
    )
    signs: SignWeights = field(default_factory=SignWeights)  # of the signed methods
    seed: int = option(0, "Seed of the permutation of `random`.")
    keep: Keep = option("last", "Take the last stage, or the best by validation loss.")

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):
            raise ValueError(
                f"exclude must list patterns, got a string: write exclude=({self.exclude!r},)."
            )
        object.__setattr__(self, "exclude", tuple(self.exclude))
        choices = {
            **{"method": Method, "path": PathKind, "schedule": LineSchedule},
            **{"pairs": Pairs, "keep": Keep},
        }
        for name, options in choices.items():
            if getattr(self, name) not in get_args(options):
                listed = ", ".join(get_args(options))
                raise ValueError(f"{name} must be one of {listed}; got {getattr(self, name)!r}.")
        for name in (
            "stages",
            "segments",
            "batches_per_gradient",
            "batchnorm_batches",
            "max_sweeps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    @property
    def matching(self) -> str:
        """How the permutation is chosen: the method without its signs."""
        return self.method.removesuffix(SIGNED)

    @property
    def signed(self) -> bool:
        """Whether a second pass weights each entry by the target's gradient."""
        return self.method.endswith(SIGNED)

    @property
    def total_stages(self) -> int:
        """Stages of all segments together, the start not counted."""
        return self.stages * self.segments

    def excluded(self, names: Iterable[str]) -> frozenset[str]:
        """Return those of `names` that match a pattern of `exclude`.

        Args:
            names: Names of tensors.

        Returns:
            The names that stay the target's own.

        Raises:
            ValueError: If a pattern matches nothing, or all together match everything.
        """
        listed = list(names)
        for pattern in self.exclude:
            if not fnmatch.filter(listed, pattern):
                raise ValueError(
                    f"exclude: {pattern!r} matches no tensor of the model; it has "
                    f"{', '.join(listed[:8])}{' and more' if len(listed) > 8 else ''}."
                )
        found = frozenset(n for p in self.exclude for n in fnmatch.filter(listed, p))
        if found.issuperset(listed):
            raise ValueError(f"exclude={self.exclude} leaves no tensor that could be carried.")
        return found

    def segments_of(self, source: "Trajectory") -> "list[Trajectory]":
        """Cut a run into the segments that are carried, each a line or its own snapshots.

        Args:
            source: The run to transfer.

        Returns:
            For each segment a trajectory of `stages + 1` points; it starts where the one before
            it ends.

        Raises:
            ValueError: If the run has too few snapshots.
        """
        from slipstream.trajectory import Trajectory

        needed = self.total_stages + 1 if self.path == "recorded" else self.segments + 1
        if len(source) < needed:
            raise ValueError(
                f"The run has {len(source)} snapshots; {self.segments} segments of {self.stages} "
                f"stages along path={self.path!r} need at least {needed}. Use fewer"
                + (" stages, or path='line'." if self.path == "recorded" else " segments.")
            )
        if self.path == "recorded":
            points = source.resample(needed)
            cuts = range(0, needed, self.stages)
            return [points[a : b + 1] for a, b in pairwise(cuts)]
        ends = source.resample(self.segments + 1)
        return [
            Trajectory.line(ends[k], ends[k + 1], stages=self.stages, schedule=self.schedule)
            for k in range(self.segments)
        ]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TransferPlan":
        """Read a plan as `dataclasses.asdict` writes it; of 0.1 it lacks `keep`."""
        nested = {"exclude": tuple(data["exclude"]), "signs": SignWeights(**data["signs"])}
        return replace(cls(), **{**data, **nested})
