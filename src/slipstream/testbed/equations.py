"""Periodic advection, diffusion and Burgers equations, solved pseudo-spectrally."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slipstream.testbed.deeponet import PERIOD

TAIL = 1e-3  # share of the amplitude that may be in the upper third of the resolved waves
COURANT = 0.5  # cells that the fastest wave may cross in a step


class UnresolvedError(ValueError):
    """The grid is too coarse, or the step too long, for a solution."""


@dataclass(frozen=True)
class FlowEquation:
    """u_t + speed u_x + steepening u u_x = viscosity u_xx, for x in [0, 1), periodic."""

    steepening: float = 1.0
    viscosity: float = 0.02
    speed: float = 0.0

    def __post_init__(self) -> None:
        values = (self.steepening, self.viscosity, self.speed)
        if not np.isfinite(values).all() or self.viscosity < 0:
            raise ValueError(
                f"The equation needs finite numbers and a viscosity of at least 0, got {values}."
            )

    def residual(self, u: Tensor, u_t: Tensor, u_x: Tensor, u_xx: Tensor) -> Tensor:
        """Return by how much a function violates the equation, point by point.

        Example:
            >>> one = torch.ones(1)
            >>> FlowEquation(2.0, 0.5).residual(one, one, 3 * one, 4 * one)
            tensor([5.])
        """
        return u_t + (self.speed + self.steepening * u) * u_x - self.viscosity * u_xx


def solve(
    equation: FlowEquation, start: Tensor, times: Sequence[float], *, grid: int = 256
) -> Tensor:
    """Solve an equation by Fourier modes in space and Runge-Kutta of order 4 in time.

    Advection and diffusion are solved exactly, by an integrating factor; the product u u_x is
    computed at the grid points, without the upper third of the waves, which would be aliased.

    Args:
        equation: What is solved.
        start: At time 0, (functions, positions), at even positions from 0; any float dtype.
        times: When the solution is wanted, ascending from at least 0.
        grid: Points that are computed with, a multiple of the positions.

    Returns:
        float64, (functions, times, positions).

    Raises:
        ValueError: If start is not finite, or grid or times do not fit.
        UnresolvedError: If the solution is not resolved by the grid: it blew up, or its shortest
            waves hold too much and would be aliased.

    Example:
        >>> x = torch.arange(16) / 16
        >>> heat = FlowEquation(0.0, 0.1)
        >>> found = solve(heat, torch.sin(2 * torch.pi * x)[None], [1.0], grid=16)
        >>> round(float(found[0, 0, 4]), 4)  # exp(-0.1 (2 pi)^2)
        0.0193
    """
    positions = _checked(start, times, grid)
    values = _refined(start.detach().double().numpy(), grid)
    solver = _Solver(equation, grid)
    modes, now = np.fft.rfft(values), 0.0
    found = []
    for time in times:
        modes = solver.advanced(modes, time - now)
        now = time
        found.append(np.fft.irfft(modes, grid)[:, :: grid // positions])
    return torch.from_numpy(np.stack(found, 1))


def _checked(start: Tensor, times: Sequence[float], grid: int) -> int:
    if start.dim() != 2 or not torch.isfinite(start).all():
        raise ValueError(
            f"start must be finite, (functions, positions), got the shape {tuple(start.shape)}"
            f"{'' if torch.isfinite(start).all() else ' and a NaN or an infinity'}."
        )
    if grid % start.shape[1]:
        raise ValueError(f"grid must be a multiple of {start.shape[1]} positions, got {grid}.")
    if list(times) != sorted(times) or not times or times[0] < 0:
        raise ValueError(f"times must ascend from at least 0, got {list(times)}.")
    return start.shape[1]


def _refined(values: np.ndarray, grid: int) -> np.ndarray:
    """The same functions at more points, by their Fourier series."""
    count = values.shape[1]
    modes = np.fft.rfft(values)
    if count % 2 == 0 and grid > count:
        modes[:, -1] /= 2  # the highest wave stood for two
    return np.asarray(np.fft.irfft(modes, grid) * (grid / count))


class _Solver:
    """The linear part exactly, the rest step by step."""

    def __init__(self, equation: FlowEquation, grid: int) -> None:
        self.equation, self.grid = equation, grid
        waves = 2 * np.pi / PERIOD * np.arange(grid // 2 + 1)
        self.slope = 1j * waves
        self.linear = -1j * waves * equation.speed - equation.viscosity * waves**2
        self.kept = np.arange(grid // 2 + 1) < grid / 3

    def advanced(self, modes: np.ndarray, time: float) -> np.ndarray:
        """The modes after a time."""
        if not self.equation.steepening:
            return np.asarray(modes * np.exp(self.linear * time))
        done = 0.0
        while time - done > 1e-12:
            fastest = np.abs(np.fft.irfft(modes, self.grid)).max() * abs(self.equation.steepening)
            step = min(time - done, COURANT * PERIOD / self.grid / max(fastest, 1e-9))
            with np.errstate(over="ignore", invalid="ignore"):  # refused below
                modes = self._step(modes, step)
            done += step
            self._check(modes, step)
        return modes

    def _product(self, modes: np.ndarray) -> np.ndarray:
        """-steepening u u_x as modes."""
        square = np.fft.irfft(modes * self.kept, self.grid) ** 2
        found = np.fft.rfft(square) * self.slope * self.kept
        return np.asarray(-self.equation.steepening / 2 * found)

    def _step(self, modes: np.ndarray, step: float) -> np.ndarray:
        half = np.exp(self.linear * step / 2)
        whole = half**2
        first = self._product(modes)
        second = self._product(half * (modes + step / 2 * first))
        third = self._product(half * modes + step / 2 * second)
        fourth = self._product(whole * modes + step * half * third)
        return np.asarray(
            whole * (modes + step / 6 * first)
            + step / 3 * half * (second + third)
            + step / 6 * fourth
        )

    def _check(self, modes: np.ndarray, step: float) -> None:
        size = np.abs(modes[:, 1:])
        if not np.isfinite(size).all():
            raise UnresolvedError(
                f"The solution blew up at steps of {step:.2g}: waves that the {self.grid} points "
                "cannot tell apart were aliased. Use a larger grid or a larger viscosity."
            )
        kept = np.flatnonzero(self.kept)
        upper = size[:, kept[2 * len(kept) // 3] :][:, : len(kept) - 2 * len(kept) // 3 - 1]
        share = (upper.max(1) / np.maximum(size.max(1), 1e-300)).max() if upper.size else 0.0
        if share > TAIL:
            raise UnresolvedError(
                f"The solution is not resolved by {self.grid} points: its shortest waves have "
                f"{share:.1%} of the amplitude, at most {TAIL:.1%} may, and more are aliased. Use "
                "a larger grid or a larger viscosity."
            )


def random_functions(count: int, *, positions: int = 64, waves: int = 4, seed: int = 0) -> Tensor:
    """Return smooth random periodic functions with a deviation of about 1/2.

    Args:
        count: How many.
        positions: Even positions from 0.
        waves: Sines and cosines in each; the amplitude of the k-th is drawn from N(0, 1 / k^2).
        seed: Of the draw.

    Returns:
        float32, (functions, positions).

    Raises:
        ValueError: If the positions do not resolve the waves.
    """
    if not 1 <= waves < positions / 2:
        raise ValueError(f"{positions} positions cannot hold {waves} waves.")
    generator = torch.Generator().manual_seed(seed)
    k = torch.arange(1, waves + 1, dtype=torch.float64)
    angles = 2 * torch.pi * k[:, None] * torch.arange(positions) / positions
    drawn = torch.randn(count, 2, waves, generator=generator, dtype=torch.float64) / k
    made = drawn[:, 0] @ angles.sin() + drawn[:, 1] @ angles.cos()
    scale = 2 * (1 / k.square()).sum().sqrt()
    return (made / scale).float()


def solution_batches(
    equation: FlowEquation,
    functions: Tensor,
    *,
    duration: float = 1.0,
    instants: int = 17,
    batch_size: int = 50,
    grid: int = 256,
) -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
    """Return the solutions of an equation as batches for an operator network.

    Args:
        equation: What is solved.
        functions: At time 0, (functions, positions).
        duration: Time of the last instant.
        instants: Even times, from 0, at which the solution is given at all positions.
        batch_size: Functions per batch.
        grid: As of `solve`.

    Returns:
        Batches `((functions, points), values)`: (functions, positions), (points, 2) with x and t,
        and (functions, points), all float32.

    Raises:
        ValueError: As of `solve`.
    """
    times = torch.linspace(0, duration, instants)
    values = solve(equation, functions, times.tolist(), grid=grid).float().flatten(1)
    points = points_of(times, functions.shape[1])
    parts = (torch.split(part, batch_size) for part in (functions, values))
    return [((own, points), wanted) for own, wanted in zip(*parts, strict=True)]


def points_of(times: Tensor, positions: int) -> Tensor:
    """Return all positions at all times, (points, 2), the positions fastest."""
    x = torch.arange(positions).to(times) * (PERIOD / positions)
    return torch.stack([x.repeat(len(times)), times.repeat_interleave(positions)], -1)
