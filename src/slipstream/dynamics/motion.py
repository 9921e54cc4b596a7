"""How fast, how far and in which directions the weights of a run move: tensor by tensor."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.deprecated import moved_names
from slipstream.trajectory import Trajectory
from slipstream.weights import wide

__getattr__ = moved_names(__name__)  # of version 0.1

Progress = Callable[[str, int, int], None]  # what comes next, its number, and how many there are


@dataclass(frozen=True, eq=False)
class Motion:
    """How each tensor moves from snapshot to snapshot; result of `measure_motion`.

    With `w_t` a tensor at snapshot `t`, its moves are `d_t = w_{t+1} - w_t`. What is kept adds up
    over tensors: so `by_layer` and `combined` give the same measures of larger parts.
    """

    names: tuple[str, ...]  # N tensors, or parts of the network
    steps: tuple[int, ...]  # T + 1 optimiser steps, one for each snapshot
    squared_moves: Tensor  # (N, T) |d_t|^2, float64 like the others
    products: Tensor  # (N, T - 1) <d_t, d_{t+1}>
    squared_distances: Tensor  # (N, T + 1) |w_t - w_0|^2
    squared_norms: Tensor  # (N, T + 1) |w_t|^2

    @property
    def intervals(self) -> Tensor:
        """The optimiser steps of each move: (T,)."""
        return torch.tensor(self.steps, dtype=torch.float64).diff()

    @property
    def speeds(self) -> Tensor:
        """The length of each move for each optimiser step in it, `|d_t| / steps`: (N, T)."""
        return self.squared_moves.sqrt() / self.intervals

    @property
    def relative_speeds(self) -> Tensor:
        """The speed in units of the weights' norm before the move, NaN where that is 0: (N, T)."""
        norms = self.squared_norms[:, :-1].sqrt()
        return torch.where(norms > 0, self.speeds / norms, torch.nan)

    @property
    def distances(self) -> Tensor:
        """The distance from the first snapshot: (N, T + 1)."""
        return self.squared_distances.sqrt()

    @property
    def cosines(self) -> Tensor:
        """The cosine between each move and the next, NaN where one of them is 0: (N, T - 1)."""
        lengths = self.squared_moves.sqrt()
        both = lengths[:, :-1] * lengths[:, 1:]
        return torch.where(both > 0, self.products / both, torch.nan).clamp(-1, 1)

    @property
    def angles(self) -> Tensor:
        """The turning angle at each snapshot between the ends, in radians, 0 to pi: (N, T - 1)."""
        return self.cosines.arccos()

    @property
    def curvatures(self) -> Tensor:
        """The turning angle by the mean length of the two moves, in radians by length: (N, T - 1).

        It is the curvature of a polyline, `2 angle_t / (|d_t| + |d_{t+1}|)`; that of a circle of
        radius r, finely cut, is 1 / r.
        """
        lengths = self.squared_moves.sqrt()
        return 2 * self.angles / (lengths[:, :-1] + lengths[:, 1:])

    @property
    def shares(self) -> Tensor:
        """The share of each part in the squared length of each move; NaN if none moves: (N, T)."""
        return self.squared_moves / self.squared_moves.sum(0)

    @property
    def share(self) -> Tensor:
        """The share of each part in the squared lengths of all moves, summed: (N,)."""
        return self.squared_moves.sum(1) / self.squared_moves.sum()

    @property
    def path_lengths(self) -> Tensor:
        """The length of the path through all snapshots: (N,)."""
        return self.squared_moves.sqrt().sum(1)

    @property
    def straightness(self) -> Tensor:
        """The distance between the ends by the length of the path, 0 to 1: (N,).

        1 is a straight line, 0 a closed loop; NaN for what never moves.
        """
        ratio = self.distances[:, -1] / self.path_lengths
        return torch.where(self.path_lengths > 0, ratio.clamp(max=1), torch.nan)

    def by_layer(self) -> "Motion":
        """Return the motion of each module's own tensors together: what stands before the last dot.

        A tensor without a dot in its name is a part of its own.
        """
        parts: dict[str, list[str]] = {}
        for name in self.names:
            parts.setdefault(name.rpartition(".")[0] or name, []).append(name)
        return self.merged(parts)

    def combined(self) -> "Motion":
        """Return the motion of all weights together, with the one name `all`."""
        return self.merged({"all": self.names})

    def merged(self, parts: Mapping[str, Sequence[str]]) -> "Motion":
        """Return the motion of parts of the network.

        Args:
            parts: For each part, the names that belong to it.

        Returns:
            The motion with a row for each part, in their order.

        Raises:
            ValueError: If a name is unknown, or there is no part.
        """
        known = {name: number for number, name in enumerate(self.names)}
        for part, names in parts.items():
            if unknown := [name for name in names if name not in known]:
                raise ValueError(
                    f"parts[{part!r}] names {unknown[0]!r}, which has no motion here; "
                    f"there are {', '.join(self.names[:6])}."
                )
        if not parts:
            raise ValueError("parts must name at least one part of the network, got none.")
        rows = [[known[name] for name in names] for names in parts.values()]

        def summed(value: Tensor) -> Tensor:
            return torch.stack([value[at].sum(0) for at in rows])

        return Motion(
            tuple(parts),
            self.steps,
            summed(self.squared_moves),
            summed(self.products),
            summed(self.squared_distances),
            summed(self.squared_norms),
        )

    def __repr__(self) -> str:
        return f"Motion({len(self.names)} parts, steps {self.steps[0]} to {self.steps[-1]})"


def measure_motion(trajectory: Trajectory, *, progress: Progress | None = None) -> Motion:
    """Measure how each tensor of a run moves between its snapshots.

    The run is read once, tensor by tensor in blocks; everything is summed in float64. Tensors of
    integers and the statistics of BatchNorm are left out: training does not move them.

    Between two snapshots only the straight distance is known. A run with rarer snapshots seems
    slower and straighter: compare runs that were recorded alike.

    Args:
        trajectory: At least two snapshots.
        progress: Called before each tensor.

    Returns:
        Speeds, distances, angles and shares of every tensor at every snapshot.

    Raises:
        ValueError: If there are fewer than two snapshots, no weights, or a NaN or an infinity.

    Example:
        >>> square = [[0.0, 0.0], [0.0, 2.0], [2.0, 2.0], [2.0, 0.0]]
        >>> weights = [{"w": torch.tensor(corner)} for corner in square]
        >>> motion = measure_motion(Trajectory.from_weights(weights, steps=[0, 1, 2, 4]))
        >>> motion.speeds
        tensor([[2., 2., 1.]], dtype=torch.float64)
        >>> motion.angles.rad2deg()
        tensor([[90., 90.]], dtype=torch.float64)
        >>> motion.straightness * 3
        tensor([1.], dtype=torch.float64)
    """
    names = moving_names(trajectory)
    measured = []
    for number, name in enumerate(names):
        if progress is not None:
            progress(name, number, len(names))
        measured.append(_measure(trajectory, name))
    return Motion(
        names, tuple(trajectory.steps), *(torch.stack(rows) for rows in zip(*measured, strict=True))
    )


def moving_names(trajectory: Trajectory) -> tuple[str, ...]:
    """Return the tensors whose motion is measured, or raise if there is no motion to measure."""
    if len(trajectory) < 2:
        raise ValueError(
            f"The run has {len(trajectory)} snapshots; motion needs at least 2: record more often, "
            "for example with Schedule.every(10)."
        )
    names = tuple(n for n in trajectory.layout.learned if math.prod(trajectory.shapes[n]))
    if not names:
        raise ValueError("The run holds no floating-point tensor: nothing in it can move.")
    return names


def check_finite_sums(sums: Tensor, name: str, steps: Sequence[int]) -> None:
    """Raise if a sum over a tensor at each snapshot is a NaN or an infinity, naming the step."""
    if bool((bad := ~sums.isfinite()).any()):
        step = steps[int(bad.nonzero()[0])]
        raise ValueError(
            f"The run holds a NaN or an infinity in {name!r} at step {step}: "
            "measure only the part of the run before it (trajectory[:n])."
        )


def _measure(trajectory: Trajectory, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums of one tensor: squared moves, products, squared distances, squared norms."""
    snapshots = len(trajectory)
    sizes = (snapshots - 1, snapshots - 2, snapshots, snapshots)
    moved, turned, away, norms = (torch.zeros(size, dtype=torch.float64) for size in sizes)
    for _, block in trajectory.blocks(name):
        rows = wide(block)  # (snapshots, stretch)
        norms += rows.square().sum(1)
        away += (rows - rows[0]).square().sum(1)
        moves = rows.diff(dim=0)
        moved += moves.square().sum(1)
        turned += (moves[:-1] * moves[1:]).sum(1)
    check_finite_sums(norms, name, trajectory.steps)
    return moved, turned, away, norms
