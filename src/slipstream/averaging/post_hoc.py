"""Exponential averages of any width after the training, from stored ones of a few widths."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.averaging.averages import rounded, weighted_sum
from slipstream.averaging.rules import PowerEMA
from slipstream.trajectory import Trajectory

_Profile = tuple[PowerEMA, int]  # and the step at which it was kept


@dataclass(frozen=True)
class PostHocEMA:
    """Result of `post_hoc_ema`."""

    weights: dict[str, Tensor]
    shares: dict[PowerEMA, list[float]]  # of each stored average, by its steps; all together 1
    error: float  # of the profile, relative to its norm: 0 is the exact average


def post_hoc_ema(
    stored: Mapping[PowerEMA, Trajectory], rule: PowerEMA, *, step: int | None = None
) -> PostHocEMA:
    """Make an average of another width from stored ones.

    The combination of the stored averages is taken whose profile, how much each step of the
    training counts, is nearest to that of the width asked for. Two widths, such as .05 and .1,
    stored a few dozen times, cover all widths between and some around; `error` says how well.

    Source: "Analyzing and Improving the Training Dynamics of Diffusion Models" (Karras et al.,
    2024), section 3.2 and appendix C.

    Args:
        stored: Averages that were formed with an update after every step, each with the steps at
            which it was kept, such as `Trajectory.open` of a folder.
        rule: What is asked for.
        step: At the end of which step; by default of the last one that is stored.

    Returns:
        The weights, how much each stored average counts, and the error of the profile.

    Raises:
        ValueError: If nothing is stored up to this step, layouts differ, or a tensor is not finite.

    Example:
        >>> steps = range(10, 101, 10)
        >>> kept = {PowerEMA(w): Trajectory.from_weights(
        ...     [{"w": torch.full((1,), 4.0)}] * 10, steps=steps) for w in (0.05, 0.1)}
        >>> found = post_hoc_ema(kept, PowerEMA(0.07))
        >>> found.weights, found.error < 0.01
        ({'w': tensor([4.])}, True)
    """
    if step is None:
        step = max((run.steps[-1] for run in stored.values() if len(run)), default=0)
    kept = [(own, s) for own, run in stored.items() for s in run if 0 < s.step <= step]
    if not kept:
        raise ValueError(f"stored holds no average from step 1 to {step}: there is nothing to use.")
    first, *others = stored.values()
    for run in others:
        first.layout.check(run.layout.tensors, where="Another stored average")
    shares, error = _fitted([(own, s.step) for own, s in kept], (rule, step))
    pairs = [(snapshot, share) for (_, snapshot), share in zip(kept, shares, strict=True)]
    named = {own: [x for (o, _), x in zip(kept, shares, strict=True) if o == own] for own in stored}
    return PostHocEMA(rounded(weighted_sum(pairs), first.layout), named, error)


def _fitted(profiles: Sequence[_Profile], wanted: _Profile) -> tuple[list[float], float]:
    """Least squares under the condition that the shares sum to 1, as those of an average do."""
    among = torch.tensor([[_inner(p, q) for q in profiles] for p in profiles], dtype=torch.float64)
    ahead = torch.tensor([_inner(p, wanted) for p in profiles], dtype=torch.float64)
    scale = among.diagonal().rsqrt()  # profiles of norm 1: the equations are conditioned better
    system = torch.zeros(len(profiles) + 1, len(profiles) + 1, dtype=torch.float64)
    system[:-1, :-1] = scale[:, None] * among * scale
    system[:-1, -1] = system[-1, :-1] = scale / scale.max()
    right = torch.cat([scale * ahead, 1 / scale.max().reshape(1)])
    solved = torch.linalg.lstsq(system, right, rcond=1e-12, driver="gelsd").solution
    shares = scale * solved[:-1]
    shares /= shares.sum()
    norm = _inner(wanted, wanted)
    missed = float(shares @ among @ shares - 2 * shares @ ahead) + norm
    return shares.tolist(), math.sqrt(max(missed, 0.0) / norm)


def _inner(first: _Profile, second: _Profile) -> float:
    """Integral of the product of two profiles, each (a + 1) s^a / t^(a + 1) up to its step t."""
    (early, step), (late, end) = sorted(
        ((rule.exponent, step) for rule, step in (first, second)), key=lambda pair: pair[1]
    )
    height = (early + 1) * (late + 1) / (early + late + 1) / end
    return height * math.pow(step / end, late)
