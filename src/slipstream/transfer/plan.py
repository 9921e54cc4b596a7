"""What a transfer will do, as plain data: printed, saved with the result, compared on resuming."""

import fnmatch
import math
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
    "activations",
    "oracle",
    "gmt",
    "fgmt",
    "naive-signed",
    "random-signed",
    "activations-signed",
    "oracle-signed",
    "gmt-signed",
    "fgmt-signed",
]
SIGNED = "-signed"
PathKind = Literal["line", "recorded"]
LineSchedule = Literal["uniform", "cosine"]
Pairs = Literal["plain", "normalised"]
Keep = Literal["last", "best"]
End = Literal["start", "end"]
Needs = Literal["labels", "unlabelled batches", "nothing"]


@dataclass(frozen=True)
class SignWeights:
    """How to step beside the carry instead: `w + displacement * d - strength * size * sign(g)`.

    What the signed methods of version 0.1 did; `SignSteps` after the carry are better.
    `d` is an entry of the path's next increment, permuted to the target's neurons, and `g` is the
    target's own gradient. `size` is |d|, moved towards the mean of |d| over its tensor by
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
class SignSteps:
    """How the signed methods go on after the carry: `w - size * |D| * sign(direction)`.

    `D` is the displacement of the whole path, permuted to the target's neurons, and |D| is moved
    towards its mean over the tensor by `smoothing`. The direction is the target's own gradient plus
    `momentum` times the direction before, each tensor's gradient divided by its mean magnitude. The
    size falls linearly to zero. How far the source moved a weight decides how far a step moves it.
    """

    size: float = 0.08  # of the first step, as a share of the source's displacement
    smoothing: float = 0.5  # 0: each entry its own size; 1: all entries of a tensor the same
    momentum: float = 0.5  # 0: the sign of each gradient by itself

    def __post_init__(self) -> None:
        if not 0 <= self.size < math.inf:
            raise ValueError(f"size must be a number from 0 on, got {self.size}.")
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must be from 0 to 1, got {self.smoothing}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}.")

    def size_at(self, step: int, steps: int) -> float:
        """Return the size of a step, counted from 1.

        Example:
            >>> [round(SignSteps(size=0.4).size_at(step, 4), 3) for step in (1, 2, 3, 4)]
            [0.35, 0.25, 0.15, 0.05]
        """
        return self.size * (1 - (step - 0.5) / steps)


@dataclass(frozen=True)
class TransferPlan:
    """How a trajectory is carried to a new start."""

    method: Method = option(
        "activations-signed",
        "How neurons are permuted: activations matches what the neurons of both networks compute, "
        "without labels; fgmt matches the gradients of both along the path, gmt recomputes them at "
        "each stage, oracle matches the target's own training; naive does not permute. -signed: "
        "steps against the sign of the target's own gradient follow.",
    )
    stages: int = option(
        10, "Stages along the path, in each segment; of the signed methods, sign steps."
    )
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
    observed: End = option(
        "end",
        "Which end of the source (of each segment of it) is observed beside the target's weights "
        "there, to match activations.",
    )
    activation_batches: int = option(4, "Unlabelled batches on which activations are matched.")
    matchings: int | None = option(
        None,
        "Permutations by activations that are tried: that is taken which brings the target's "
        "outputs nearest to the source's, on the unlabelled batches.",
        shown="6, or 1 where sign steps follow",
    )
    activation_weight: float = option(
        0.0, "What the activations' correlation counts beside each gradient pair of gmt and fgmt."
    )
    descent_steps: int = option(
        0, "Sign steps of the target before its activations are observed: these take gradients."
    )
    batchnorm_batches: int = option(2, "Batches for BatchNorm's statistics at each stage.")
    batch_statistics: bool = option(
        True,
        "Whether the gradients that gmt and fgmt match take BatchNorm's statistics of their batch, "
        "as in training; or estimated ones, as in version 0.1.",
    )
    warm_start: bool = option(
        True, "Whether each matching starts from the permutation of the stage before."
    )
    max_sweeps: int = option(100, "A bound on each matching; it converges long before.")
    exclude: tuple[str, ...] = option(
        (), "Tensors that stay the target's own: patterns such as 'head.*'."
    )
    signs: SignSteps | SignWeights = field(default_factory=SignSteps)  # of the signed methods
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
            **{"pairs": Pairs, "keep": Keep, "observed": End},
        }
        for name, options in choices.items():
            if getattr(self, name) not in get_args(options):
                listed = ", ".join(get_args(options))
                raise ValueError(f"{name} must be one of {listed}; got {getattr(self, name)!r}.")
        for name in ("descent_steps", "activation_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        for name in (
            "stages",
            "segments",
            "batches_per_gradient",
            "activation_batches",
            "batchnorm_batches",
            "max_sweeps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.matchings is not None and self.matchings < 1:
            raise ValueError(f"matchings must be at least 1, got {self.matchings}.")

    @property
    def permutations_tried(self) -> int:
        """How many permutations by activations are tried in each segment."""
        return self.matchings or (1 if self.signed else 6)

    @property
    def matching(self) -> str:
        """How the permutation is chosen: the method without its signs."""
        return self.method.removesuffix(SIGNED)

    @property
    def signed(self) -> bool:
        """Whether a second pass weights each entry by the target's gradient."""
        return self.method.endswith(SIGNED)

    @property
    def carries_first(self) -> bool:
        """Whether the whole path is carried before the target's gradients are used."""
        return self.signed and isinstance(self.signs, SignSteps)

    @property
    def needs(self) -> Needs:
        """What a transfer needs besides the two networks.

        Without labels, BatchNorm's statistics still need unlabelled batches.
        """
        if self.gradients:
            return "labels"
        return "unlabelled batches" if self.matching == "activations" else "nothing"

    @property
    def gradients(self) -> int:
        """How many gradients it takes, of source and target together.

        Example:
            >>> [TransferPlan(m, stages=10).gradients for m in ("activations", "fgmt-signed")]
            [0, 30]
        """
        matched = {"fgmt": 2 * self.stages, "gmt": self._gradients_of_gmt()}
        observes = self.matching == "activations" or self.activation_weight
        before = self.descent_steps if observes else 0
        own = self.stages if self.signed else 0
        return self.segments * (matched.get(self.matching, 0) + before + own)

    def _gradients_of_gmt(self) -> int:
        """One of the source per stage; of the target all, but the first only once."""
        return self.stages + 1 + self.stages * (self.stages - 1) // 2

    @classmethod
    def for_budget(cls, gradients: int, **given: Any) -> "TransferPlan":
        """Return the plan with the most stages that takes no more than some gradients.

        Args:
            gradients: What it may take, of source and target together; with 0 the path is carried
                by the activations of unlabelled batches.
            given: Other fields; `method` is `activations-signed` by default.

        Returns:
            The plan.

        Raises:
            ValueError: If the budget is negative, or too small for the method.

        Example:
            >>> TransferPlan.for_budget(20).stages, TransferPlan.for_budget(0).method
            (20, 'activations')
        """
        if gradients < 0:
            raise ValueError(f"budget must be at least 0 gradients, got {gradients}.")
        if "method" not in given and not gradients:
            given["method"] = "activations"
        plan = cls(**given)
        found = plan.within(gradients)
        if found is None:
            raise ValueError(
                f"The method {plan.method} takes at least {replace(plan, stages=1).gradients} "
                f"gradients, more than the budget of {gradients}: raise it, or use a method that "
                "takes fewer."
            )
        return found

    def within(self, gradients: int) -> "TransferPlan | None":
        """Return this plan with as many stages as some gradients are enough for.

        Args:
            gradients: What it may take, of source and target together.

        Returns:
            The plan; as it is if it takes no gradients, None if they are too few for one stage.
        """
        if not self.gradients:
            return self
        stages = 0
        while replace(self, stages=stages + 1).gradients <= gradients:
            stages += 1
        return replace(self, stages=stages) if stages else None

    @property
    def total_stages(self) -> int:
        """Stages of all segments together, the start not counted."""
        return (self.stages + self.carries_first) * self.segments

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

        needed = self.stages * self.segments + 1 if self.path == "recorded" else self.segments + 1
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

    def continuing(self, begun: Mapping[str, Any]) -> "TransferPlan":
        """Return the plan that goes on with one that version 0.1 began, when defaults were others.

        Args:
            begun: The plan as the run folder has it; nothing is taken from one of today.

        Returns:
            This plan with the method, signs and statistics of `begun`, where it has today's
            defaults.
        """
        if "observed" in begun:
            return self
        before, today = TransferPlan.from_json(begun), TransferPlan()
        same = {
            name: getattr(before, name)
            for name in ("method", "signs", "batch_statistics")
            if getattr(self, name) == getattr(today, name)
        }
        return replace(self, **same)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TransferPlan":
        """Read a plan as `dataclasses.asdict` writes it, also of 0.1, which had fewer fields."""
        kind = SignWeights if "first" in data["signs"] else SignSteps
        nested = {"exclude": tuple(data["exclude"]), "signs": kind(**data["signs"])}
        return replace(cls(), **{"batch_statistics": False, **data, **nested})
