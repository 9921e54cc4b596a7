"""The few weights whose whole history is looked at: which, and their rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from slipstream.trajectory import Trajectory
from slipstream.weights import Weights

Positions = Mapping[str, Tensor]  # for each tensor, numbers of its flattened weights, ascending


def draw(sizes: Mapping[str, int], samples: int, *, seed: int) -> dict[str, Tensor]:
    """Draw weights: half of them spread evenly over the tensors, half in proportion to size.

    Args:
        sizes: The number of weights of each tensor.
        samples: How many to draw; all, if there are not more.
        seed: Of the draw.

    Returns:
        For each tensor, the positions in it, ascending, int64.

    Source: "Enhancing Neural Training via a Correlated Dynamics Model" (Brokman et al., 2024).

    Example:
        >>> drawn = draw({"large": 90, "small": 10}, 20, seed=0)
        >>> {name: len(positions) for name, positions in drawn.items()}
        {'large': 14, 'small': 6}
    """
    drawn = {}
    for number, (name, count) in enumerate(_counts(sizes, samples).items()):
        generator = np.random.default_rng([seed, number])
        chosen = generator.choice(sizes[name], count, replace=False, shuffle=False)
        drawn[name] = torch.from_numpy(np.sort(chosen.astype(np.int64)))
    return drawn


def gather(weights: Weights, positions: Positions) -> Tensor:
    """Return the drawn weights, one tensor's after the other's, in float64."""
    parts = [
        weights[name].reshape(-1)[at.to(weights[name].device)] for name, at in positions.items()
    ]
    return torch.cat([part.double().cpu() for part in parts])


def rows_of(trajectory: Trajectory, positions: Positions) -> Tensor:
    """Return the history of the drawn weights, float64: (weights, steps)."""
    columns = []
    for snapshot in trajectory:
        column = gather(snapshot.weights, positions)
        if not column.isfinite().all():
            at = int((~column.isfinite()).nonzero()[0])
            raise ValueError(nonfinite_message(owners(positions)[at], snapshot.step))
        columns.append(column)
    return torch.stack(columns, 1)


def check_real(dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise if a tensor is complex: a mode is a line through real values."""
    if found := [name for name, dtype in dtypes.items() if dtype.is_complex]:
        raise ValueError(
            f"Tensor {found[0]!r} is complex, and modes are fitted to real ones: keep its real and "
            "imaginary parts as two (torch.view_as_real)."
        )


def nonfinite_message(name: str, step: int) -> str:
    """What to say of a NaN or an infinity in a run."""
    return (
        f"The run holds a NaN or an infinity in {name!r} at step {step}: "
        "decompose only the part of the run before it (trajectory[:n])."
    )


def owners(positions: Positions) -> list[str]:
    """Return the tensor of each drawn weight, in the order of `gather`."""
    return [name for name, at in positions.items() for _ in range(len(at))]


def _counts(sizes: Mapping[str, int], samples: int) -> dict[str, int]:
    """How many weights to draw from each tensor."""
    total = min(samples, sum(sizes.values()))
    even, extra = divmod(total // 2, max(len(sizes), 1))
    counts = {
        name: min(size, even + (number < extra))
        for number, (name, size) in enumerate(sizes.items())
    }
    free = {name: size - counts[name] for name, size in sizes.items()}
    rest = total - sum(counts.values())
    shares = _proportional(list(free.values()), rest)
    return {name: counts[name] + share for name, share in zip(sizes, shares, strict=True)}


def _proportional(sizes: Sequence[int], total: int) -> list[int]:
    """Whole numbers that sum to `total` in proportion to `sizes`: largest remainders first."""
    whole = sum(sizes)
    shares = [size * total // whole if whole else 0 for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(sizes[i] * total % max(whole, 1)))
    for number in by_remainder[: total - sum(shares)]:
        shares[number] += 1
    return shares
