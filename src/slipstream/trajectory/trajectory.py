"""A learning trajectory: the snapshots of a run in order, each read when it is asked for."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from slipstream.trajectory.layout import Layout
from slipstream.trajectory.run_files import read_run
from slipstream.weights import Weights, interpolate

_READERS = 4  # threads; two already saturate the page cache, more hide the latency of a cold disk
_WORTH_THREADS = 1 << 22  # bytes
_BLOCK = 32 << 20  # bytes read at a time: large enough for the disk


class Reader(Protocol):
    """Where the weights of one snapshot come from."""

    def weights(self) -> dict[str, Tensor]:
        """Return all tensors, each tied tensor once."""

    def read_into(self, name: str, out: Tensor, start: int = 0) -> None:
        """Copy one tensor, or as much of it from its number `start` as fits, into `out`."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The weights at one step of a run, read when they are asked for."""

    step: int  # optimiser steps done
    epoch: float | None
    metrics: Mapping[str, float]
    layout: Layout = field(repr=False)
    reader: Reader = field(repr=False)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers, each tied tensor once; read again at every access."""
        return self.reader.weights()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights under every name of a tied tensor, as `load_state_dict` wants them."""
        weights = self.weights
        return weights | {name: weights[first] for name, first in self.layout.aliases.items()}

    def keys(self) -> tuple[str, ...]:
        """Return the names of the tensors, each tied tensor once: `dict(snapshot)` has them."""
        return tuple(self.layout.tensors)

    def __getitem__(self, name: str) -> Tensor:
        if not isinstance(name, str):
            raise KeyError(f"A snapshot has tensors by name, got {name!r}.")
        return Trajectory((self,), self.layout)[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The snapshots of a run, by position, by step, and by tensor.

    `trajectory[3]` is a snapshot, `trajectory[2:8]` a trajectory, and `trajectory["0.weight"]` that
    tensor at every step, for which nothing else is read.

    Example:
        >>> run = Trajectory.from_weights([{"w": torch.full((2,), float(t))} for t in range(3)])
        >>> run["w"]
        tensor([[0., 0.],
                [1., 1.],
                [2., 2.]])
        >>> run[1:][-1].weights
        {'w': tensor([2., 2.])}
        >>> run
        Trajectory(3 snapshots of 1 tensors, steps 0 to 2)
    """

    snapshots: tuple[Snapshot, ...]
    layout: Layout
    description: Mapping[str, Any] = field(default_factory=dict)  # of the run: its `run.json`

    @classmethod
    def open(cls, path: str | Path) -> "Trajectory":
        """Open a run folder, which may still be growing; no snapshot is read.

        Args:
            path: A folder that `Recorder`, `create_run` or `import_run` made.

        Returns:
            The snapshots listed by now.
        """
        run = read_run(path)
        snapshots = tuple(
            Snapshot(entry.step, entry.epoch, entry.metrics, run.layout, run.snapshot(entry))
            for entry in run.entries
        )
        return cls(snapshots, run.layout, run.description)

    @classmethod
    def from_weights(
        cls, weights: Sequence[Weights], *, steps: Sequence[int] | None = None
    ) -> "Trajectory":
        """Return a trajectory of weights in memory, which are kept and not copied.

        Args:
            weights: One or more, all of the same layout.
            steps: The optimiser steps done at each, growing; by default 0, 1, 2, ...

        Returns:
            The trajectory.

        Raises:
            ValueError: If there are no weights, their layouts differ, or the steps do not fit.
        """
        if not weights:
            raise ValueError("weights must hold at least one snapshot, got none.")
        numbers = list(range(len(weights)) if steps is None else steps)
        if len(numbers) != len(weights) or any(late <= early for early, late in pairwise(numbers)):
            raise ValueError(
                f"steps must be {len(weights)} growing numbers, one per weights, got {numbers}."
            )
        layout = Layout.of_weights(weights[0])
        snapshots = tuple(
            Snapshot(s, None, {}, layout, _Held(layout.untie(w, where=f"step {s}")))
            for s, w in zip(numbers, weights, strict=True)
        )
        return cls(snapshots, layout)

    @classmethod
    def line(
        cls,
        start: Weights | Snapshot,
        end: Weights | Snapshot,
        *,
        stages: int = 10,
        schedule: Literal["uniform", "cosine"] = "uniform",
    ) -> "Trajectory":
        """Return the straight line from `start` to `end`, interpolated when it is read.

        Args:
            start: The first snapshot.
            end: The last one, of the same layout.
            stages: Number of moves T; the line has T + 1 snapshots, and the stage is their step.
            schedule: How long the moves are: all the same, or large first as 1 + cos(pi t / T)
                with t = 0..T-1.

        Returns:
            A trajectory whose two ends are exact.

        Raises:
            ValueError: If the layouts differ or there is no stage.

        Example:
            >>> ends = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
            >>> Trajectory.line(*ends, stages=4)["w"].flatten()
            tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000])
        """
        first = start if isinstance(start, Snapshot) else cls.from_weights([start])[0]
        last = end if isinstance(end, Snapshot) else cls.from_weights([end])[0]
        first.layout.check(last.layout.tensors, where="end, compared with start")
        readers = (
            first.reader if f == 0 else last.reader if f == 1 else _Between(first, last, f)
            for f in _fractions(stages, schedule)
        )
        snapshots = (Snapshot(n, None, {}, first.layout, r) for n, r in enumerate(readers))
        return cls(tuple(snapshots), first.layout)

    @property
    def steps(self) -> list[int]:
        """The optimiser steps done at each snapshot."""
        return [snapshot.step for snapshot in self.snapshots]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors, each tied tensor once."""
        return tuple(self.layout.tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: form.shape for name, form in self.layout.tensors.items()}

    def __repr__(self) -> str:
        between = f", steps {self.steps[0]} to {self.steps[-1]}" if self.snapshots else ""
        return f"Trajectory({len(self)} snapshots of {len(self.names)} tensors{between})"

    def __len__(self) -> int:
        return len(self.snapshots)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self.snapshots)

    @overload
    def __getitem__(self, key: int) -> Snapshot: ...
    @overload
    def __getitem__(self, key: slice) -> "Trajectory": ...
    @overload
    def __getitem__(self, key: str) -> Tensor: ...
    def __getitem__(self, key: int | slice | str) -> "Snapshot | Trajectory | Tensor":
        if isinstance(key, str):
            return self._tensor(key)
        if isinstance(key, slice):
            return self._with(self.snapshots[key])
        if not -len(self) <= key < len(self):
            raise IndexError(f"Snapshot {key} was asked for; the trajectory has {len(self)}.")
        return self.snapshots[key]

    def at(self, step: int) -> Snapshot:
        """Return the snapshot of an optimiser step.

        Args:
            step: One of `steps`.

        Returns:
            The snapshot.

        Raises:
            KeyError: If that step was not kept, naming the nearest one.
        """
        nearest = min(self.snapshots, key=lambda s: abs(s.step - step), default=None)
        if nearest is None or nearest.step != step:
            kept = "there is no snapshot" if nearest is None else f"the nearest is {nearest.step}"
            raise KeyError(f"Step {step} was not kept; {kept}.")
        return nearest

    def part(self, name: str, *, start: int, stop: int) -> Tensor:
        """Return a stretch of one tensor at every step, for tensors too large to hold so often.

        Args:
            name: A tensor.
            start: The first number of the flattened tensor.
            stop: The number after the last.

        Returns:
            (steps, stop - start).

        Raises:
            IndexError: If the tensor has no such stretch.

        Example:
            >>> run = Trajectory.from_weights([{"w": torch.arange(4) * t} for t in range(3)])
            >>> run.part("w", start=1, stop=3)
            tensor([[0, 0],
                    [1, 2],
                    [2, 4]])
        """
        stored = self.layout.resolve(name)
        form = self.layout.tensors[stored]
        if not 0 <= start <= stop <= math.prod(form.shape):
            raise IndexError(f"{name!r} {form} has no numbers from {start} to {stop}.")
        return self._read(stored, (stop - start,), start)

    def blocks(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Yield one tensor at every step in stretches, never more than some megabytes at once.

        Args:
            name: A tensor.

        Yields:
            Which numbers of the flattened tensor, and these at every step: (steps, stretch).
        """
        form = self.layout.tensors[self.layout.resolve(name)]
        size = math.prod(form.shape)
        stretch = max(1, _BLOCK // (max(len(self), 1) * form.dtype.itemsize))
        for start in range(0, size, stretch):
            at = slice(start, min(start + stretch, size))
            yield at, self.part(name, start=at.start, stop=at.stop)

    def resample(self, snapshots: int) -> "Trajectory":
        """Return that many of the snapshots, evenly spaced by position, both ends included.

        Existing snapshots are chosen, the nearest to each even position; none is interpolated.

        Args:
            snapshots: How many, from 2 to all.

        Returns:
            A trajectory of existing snapshots.

        Raises:
            ValueError: If `snapshots` is below 2 or above what there is.
        """
        if not 2 <= snapshots <= len(self):
            raise ValueError(f"snapshots must be from 2 to {len(self)}, got {snapshots}.")
        moves, last = snapshots - 1, len(self) - 1
        positions = ((2 * n * last + moves) // (2 * moves) for n in range(snapshots))
        return self._with(tuple(self.snapshots[position] for position in positions))

    def chosen(self, steps: Sequence[int] | None, *, most: int) -> list[Snapshot]:
        """Return the snapshots at some steps, or `most` evenly spaced ones if none are named.

        Raises:
            ValueError: If there is no such step, or no snapshot at all.
        """
        if not len(self):
            raise ValueError("The run holds no snapshot.")
        if steps is None:
            return list(self if len(self) <= most else self.resample(most))
        try:
            return [self.at(step) for step in steps]
        except KeyError as error:
            raise ValueError(error.args[0]) from error

    def _with(self, snapshots: tuple[Snapshot, ...]) -> "Trajectory":
        return Trajectory(snapshots, self.layout, self.description)

    def _tensor(self, name: str) -> Tensor:
        stored = self.layout.resolve(name)
        return self._read(stored, self.layout.tensors[stored].shape)

    def _read(self, stored: str, shape: tuple[int, ...], start: int = 0) -> Tensor:
        dtype = self.layout.tensors[stored].dtype
        if self.snapshots and math.prod(shape) * dtype.itemsize > _BLOCK:
            # Before memory is taken: run.json may tell any shape, the file is asked.
            self.snapshots[0].reader.read_into(stored, torch.empty(0, dtype=dtype))
        out = _empty((len(self), *shape), dtype)  # (steps, *shape)

        def read(snapshot: Snapshot, row: Tensor) -> None:
            snapshot.reader.read_into(stored, row, start)

        if len(self) == 1 or out.nbytes < _WORTH_THREADS:
            for snapshot, row in zip(self.snapshots, out, strict=True):
                read(snapshot, row)
        else:
            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(read, self.snapshots, out))
        return out


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory to read into: numpy asks for huge pages, torch does not, which is 3x slower here."""
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(shape)


@dataclass(frozen=True)
class _Held:
    """Weights in memory."""

    held: dict[str, Tensor]

    def weights(self) -> dict[str, Tensor]:
        return dict(self.held)

    def read_into(self, name: str, out: Tensor, start: int = 0) -> None:
        _copy_part(self.held[name], out, start)


@dataclass(frozen=True)
class _Between:
    """A point of the straight line between two snapshots."""

    start: Snapshot
    end: Snapshot
    fraction: float

    def weights(self) -> dict[str, Tensor]:
        return interpolate(self.start.weights, self.end.weights, self.fraction)

    def read_into(self, name: str, out: Tensor, start: int = 0) -> None:
        ends = [torch.empty_like(out) for _ in range(2)]
        for snapshot, end in zip((self.start, self.end), ends, strict=True):
            snapshot.reader.read_into(name, end, start)
        first, last = ({name: end} for end in ends)
        out.copy_(interpolate(first, last, self.fraction)[name])


def _copy_part(value: Tensor, out: Tensor, start: int) -> None:
    """Copy numbers from `start` of the flattened `value`, as many as `out` holds."""
    out.view(-1).copy_(value.reshape(-1)[start : start + out.numel()])


def _fractions(stages: int, schedule: str) -> list[float]:
    """Positions on the line, 0 to 1."""
    if stages < 1:
        raise ValueError(f"stages must be at least 1, got {stages}.")
    if schedule not in ("uniform", "cosine"):
        raise ValueError(f"schedule must be 'uniform' or 'cosine', got {schedule!r}.")
    if schedule == "uniform":
        return [stage / stages for stage in range(stages + 1)]
    moves = [1 + math.cos(math.pi * t / stages) for t in range(stages)]
    return [math.fsum(moves[:stage]) / math.fsum(moves) for stage in range(stages + 1)]
