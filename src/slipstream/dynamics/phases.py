"""Where the motion of a run changes its character: the best cut into phases."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.dynamics.motion import Motion

SHORTEST = 3  # moves in a phase, by default
_EXACT = 1e-6  # residual deviation, of 1 in all, below which a fit counts as exact


@dataclass(frozen=True)
class Phase:
    """Moves in a row of much the same speed and straightness."""

    start: int  # optimiser step of the first snapshot
    end: int  # of the last one, where the next phase starts
    speed: float  # geometric mean over the moves, in length for each optimiser step
    cosine: float  # mean cosine between a move and the one before it


@dataclass(frozen=True, eq=False)
class Phases:
    """Result of `find_phases`."""

    phases: tuple[Phase, ...]
    criteria: Tensor  # (K,) the Bayesian information criterion of the best cut into 1, 2, ... K

    def __str__(self) -> str:
        return "\n".join(
            f"steps {p.start} to {p.end}: speed {p.speed:.3g} per step, cosine {p.cosine:.2f}"
            for p in self.phases
        )


def find_phases(motion: Motion, *, most: int = 6, shortest: int = SHORTEST) -> Phases:
    """Cut a run into phases in which speed and direction of its motion stay much the same.

    Each move has two values: the logarithm of its speed, and the cosine to the move before it
    (the first move takes that of the second). Both are standardised over the run. For every number
    of phases k, dynamic programming finds the cut with the smallest sum of squares R about the
    phases' means, and the k with the smallest criterion `n f log(R / (n f)) + (k (f + 1) - 1)
    log n` is taken; n is the number of moves, f the values that vary. Nothing is random.

    A gradual change has no sharp boundary: it is cut into steps, and the criteria fall slowly.

    Args:
        motion: Of a run; all its parts count together.
        most: The largest number of phases K that is tried; fewer if the run is short.
        shortest: The fewest moves in a phase.

    Returns:
        The phases in order, and the criterion of each number of them.

    Raises:
        ValueError: If an argument is below 1, there are fewer than `shortest` moves, or none moves.

    Source: "Algorithms for the Optimal Identification of Segment Neighborhoods" (Auger, Lawrence,
    1989) for the cuts, "Estimating the Number of Change-Points via Schwarz' Criterion" (Yao, 1988)
    for their number.

    Example:
        >>> from slipstream.dynamics import measure_motion
        >>> from slipstream.trajectory import Trajectory
        >>> values = [0, 10, 20, 30, 40, 41, 42, 43, 44]
        >>> run = Trajectory.from_weights([{"w": torch.tensor([float(v)])} for v in values])
        >>> print(find_phases(measure_motion(run)))
        steps 0 to 4: speed 10 per step, cosine 1.00
        steps 4 to 8: speed 1 per step, cosine 1.00
    """
    for name, value in {"most": most, "shortest": shortest}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    series = _series(motion.combined())
    moves = series.shape[1]
    if moves < shortest:
        raise ValueError(
            f"The run has {moves} moves between snapshots; a phase needs {shortest}: record more "
            "often, or give a smaller `shortest`."
        )
    most = min(most, moves // shortest)
    spread = series.std(1, correction=0, keepdim=True)
    varies = spread.flatten() > 1e-9  # rounding of a constant is not variation
    scaled = ((series - series.mean(1, keepdim=True)) / spread)[varies]
    residuals, ends = _best_cuts(scaled, most, shortest)
    criteria = _criteria(residuals, moves, features=len(scaled))
    borders = ends[int(criteria.argmin())]
    phases = tuple(
        Phase(
            motion.steps[start],
            motion.steps[end],
            speed=math.exp(series[0, start:end].mean()),
            cosine=float(series[1, start:end].mean()),
        )
        for start, end in zip([0, *borders[:-1]], borders, strict=True)
    )
    return Phases(phases, criteria)


def _series(motion: Motion) -> Tensor:
    """Logarithm of the speed, and cosine to the move before, of each move: (2, T)."""
    speeds = motion.speeds[0]
    if not bool((speeds > 0).any()):
        raise ValueError("No weight ever moves in this run: it has no phases.")
    # A pause has no logarithm and no direction: a thousandth of the slowest move, and cosine 0.
    still = speeds[speeds > 0].min() / 1000
    cosines = motion.cosines[0].nan_to_num(0.0)
    first = cosines[:1] if len(cosines) else speeds.new_zeros(1)
    return torch.stack([speeds.clamp(min=still).log(), torch.cat([first, cosines])])


def _criteria(residuals: Tensor, moves: int, *, features: int) -> Tensor:
    """The Bayesian information criterion of each number of phases; (K,)."""
    counts = torch.arange(1, len(residuals) + 1, dtype=torch.float64)
    values = moves * max(features, 1)
    likelihood = values * (residuals / values).clamp(min=_EXACT**2).log()
    return likelihood + (counts * (features + 1) - 1) * math.log(moves)


def _best_cuts(series: Tensor, most: int, shortest: int) -> tuple[Tensor, list[list[int]]]:
    """The least residual for 1 to `most` segments, and where the segments of each cut end."""
    moves = series.shape[1]
    sums, squares = (  # (features, moves + 1), (moves + 1,): of a stretch in two look-ups
        torch.nn.functional.pad(value.cumsum(-1), (1, 0))
        for value in (series, series.square().sum(0))
    )
    least = torch.full((most + 1, moves + 1), torch.inf, dtype=torch.float64)
    least[0, 0] = 0
    before = torch.zeros(most + 1, moves + 1, dtype=torch.int64)
    for end in range(shortest, moves + 1):
        starts = torch.arange(end - shortest + 1)
        means = (sums[:, end : end + 1] - sums[:, starts]).square().sum(0) / (end - starts)
        cost = (squares[end] - squares[starts] - means).clamp(min=0)
        totals = least[:most, starts] + cost  # (segments so far, starts)
        least[1:, end], before[1:, end] = totals.min(1)
    cuts = []
    for count in range(1, most + 1):
        ends, end = [moves], moves
        for segments in range(count, 1, -1):
            end = int(before[segments, end])
            ends.append(end)
        cuts.append(ends[::-1])
    return least[1:, moves], cuts
