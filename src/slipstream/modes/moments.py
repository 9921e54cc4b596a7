"""Running moments of references and weights: what `OnlineModes` keeps instead of a history."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.deprecated import moved_names
from slipstream.modes.grouping import Grouping, Reference, combinations, group_rows, standardised
from slipstream.modes.statistics import computed_in
from slipstream.storage.plan_fields import option

__getattr__ = moved_names(__name__)  # of version 0.1

_STRIP = 1 << 15  # weights updated at a time on the CPU: what they take stays in the cache


@dataclass(frozen=True)
class OnlinePlan:
    """How `OnlineModes` fits the modes of a training; a saved state must agree with it."""

    modes: int = option(10, "The number of modes.")
    warm_up: int = option(20, "Updates after which the references are fixed.")
    trial: int = option(5, "Further updates after which each weight is assigned to a mode.")
    samples: int = option(1000, "The number of weights that are grouped.")
    reference: Reference = option("member", "As of `fit_modes`.")
    grouping: Grouping = option("complete", "As of `fit_modes`.")
    seed: int = option(0, "Of the sample, and of k-means.")
    forgetting: float = option(
        1.0,
        "The weight of the past against the present, at every update: 1 forgets nothing, .98 has "
        "forgotten two thirds after 50 updates.",
    )

    def __post_init__(self) -> None:
        for name, least in (("modes", 1), ("warm_up", 3), ("trial", 2), ("samples", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not 0 < self.forgetting <= 1:
            raise ValueError(
                f"forgetting must be above 0 and at most 1 (forget nothing), got {self.forgetting}."
            )


@dataclass
class Leaders:
    """The references, as combinations of the sampled weights, and their running moments."""

    combination: Tensor  # (modes, sampled weights)
    origin: Tensor  # (modes,)
    count: float  # of updates, the forgotten ones as far as they are remembered
    mean: Tensor  # (modes,)
    spread: Tensor  # (modes,) squared deviations from the mean, summed

    @classmethod
    def of(cls, rows: Tensor, plan: OnlinePlan) -> "Leaders":
        """Group the rows of the warm-up, and fix what the references are made of."""
        scaled = standardised(rows)
        moving = scaled.any(1)
        labels = group_rows(scaled[moving], plan.modes, grouping=plan.grouping, seed=plan.seed)
        combined = combinations(scaled[moving], labels, reference=plan.reference)
        combination = rows.new_zeros(plan.modes, len(rows))
        combination[:, moving] = combined / rows[moving].std(1, correction=0)
        none = rows.new_zeros(plan.modes)
        return cls(combination, combination @ rows.mean(1), 0.0, none, none.clone())

    def values(self, row: Tensor) -> Tensor:
        """The references where the sampled weights are `row`: (modes,)."""
        return self.combination @ row - self.origin

    def update_(self, row: Tensor, keep: float) -> Tensor:
        """Take one observation in; return how far it is from the new mean."""
        self.count = keep * self.count + 1
        move = self.values(row) - self.mean
        self.mean += move / self.count
        leads = self.values(row) - self.mean
        self.spread.mul_(keep).add_(move * leads)
        return leads


@dataclass
class Follower:
    """The running moments of one flattened tensor."""

    # In float64: a float32 mean of a large weight loses the small moves in a thousand updates.
    mean: Tensor  # (weights,)
    along: Tensor  # co-moments with the references: (modes, weights) on trial, then (weights,)
    mode: Tensor  # (weights,); empty during the trial

    @classmethod
    def of(cls, value: Tensor, modes: int) -> "Follower":
        """Begin the trial of a tensor like `value` with a number of modes."""
        size = value.numel()
        dtype = torch.uint8 if modes <= 256 else torch.int16
        return cls(
            torch.zeros(size, dtype=torch.float64, device=value.device),
            torch.zeros(modes, size, dtype=computed_in(value.dtype), device=value.device),
            torch.empty(0, dtype=dtype, device=value.device),
        )

    def update_(self, value: Tensor, leads: Tensor, count: float, keep: float) -> None:
        """Take one observation in: Welford's recursion, whose co-moments need no means later."""
        flat = value.reshape(-1)
        leads = leads.to(self.along)
        strip = _STRIP if flat.device.type == "cpu" else max(flat.numel(), 1)
        for start in range(0, flat.numel(), strip):
            at = slice(start, start + strip)
            moves = flat[at] - self.mean[at]
            self.mean[at].add_(moves, alpha=1 / count)
            along = self.along[..., at]
            if along.dim() == 2:
                along.addr_(leads, moves.to(along), beta=keep)
                continue
            if keep != 1:
                along.mul_(keep)
            along.addcmul_(moves.to(along), leads.index_select(0, self.mode[at].int()))

    def choose_(self, spread: Tensor) -> None:
        """End the trial: each weight follows the reference with the largest |correlation|."""
        scale = torch.where(spread > 0, spread.rsqrt(), 0.0).to(self.along)
        mode = (self.along * scale[:, None]).abs_().max(0).indices
        self.along = self.along.gather(0, mode[None]).squeeze(0)
        self.mode = mode.to(self.mode.dtype)

    def slopes(self, spread: Tensor) -> Tensor:
        """Least squares of each weight on its reference: (weights,) float64."""
        inverse = torch.where(spread > 0, 1 / spread, 0.0).to(self.mean.device)
        return self.along * inverse[self.mode.int()]

    def at(self, leads: Tensor, spread: Tensor) -> Tensor:
        """Each weight where its reference is that far from its mean: (weights,) float64."""
        return self.mean + self.slopes(spread) * leads.to(self.mean.device)[self.mode.int()]
