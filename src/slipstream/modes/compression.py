"""A whole run in the size of a few snapshots, with its error reported."""

import math
from dataclasses import dataclass
from pathlib import Path

from slipstream.modes.fit import Progress, fit_modes
from slipstream.modes.modes import Modes
from slipstream.modes.statistics import blocks
from slipstream.trajectory import Trajectory, read_run


@dataclass(frozen=True)
class ModesCompression:
    """Result of `compress_to_modes`."""

    path: Path  # of the file that was written
    modes: Modes
    relative_error: float  # distance to the run, relative to that of the run from its mean
    bytes_before: int  # of all snapshots
    bytes_after: int

    @property
    def factor(self) -> float:
        """How many times smaller the file is than the snapshots."""
        return self.bytes_before / self.bytes_after


def compress_to_modes(
    run: str | Path,
    path: str | Path,
    *,
    modes: int = 10,
    max_error: float | None = None,
    progress: Progress | None = None,
) -> ModesCompression:
    """Write a run as a few modes: two values per weight, and the values of the references.

    `Modes.load(path).trajectory()` is the run again, up to the error. The snapshots stay.

    Args:
        run: A run folder of at least three snapshots.
        path: The file to write.
        modes: How many; more of them fit better and cost hardly more.
        max_error: Write nothing if the relative error is larger.
        progress: Called before each tensor.

    Returns:
        The modes, their error, and the sizes.

    Raises:
        ValueError: If the error is larger than `max_error`, or the run cannot be decomposed.

    Source: "Enhancing Neural Training via a Correlated Dynamics Model" (Brokman et al., 2024),
    section 3.
    """
    entries = read_run(run).entries
    trajectory = Trajectory.open(run)
    found = fit_modes(trajectory, modes=modes, reference="component", progress=progress)
    error = _measured_error(trajectory, found)
    if max_error is not None and error > max_error:
        raise ValueError(
            f"With {modes} modes the error is {error:.1%} of the run's motion, more than "
            f"max_error={max_error:g}: nothing was written. Try more modes, or compress without "
            "loss."
        )
    found.save(path, samples=False)
    before = sum(entry.bytes for entry in entries)
    return ModesCompression(Path(path), found, error, before, Path(path).stat().st_size)


def _measured_error(trajectory: Trajectory, found: Modes) -> float:
    """As `Modes.relative_error`, which is a difference and so blind to small errors."""
    modelled = found.trajectory()
    error = motion = 0.0
    for name in found.names:
        for at, block in blocks(trajectory, name):
            fitted = modelled.part(name, start=at.start, stop=at.stop).to(block)
            error += float((block - fitted).double().square().sum())
            motion += float((block - block.mean(0)).double().square().sum())
    return math.sqrt(error / motion)
