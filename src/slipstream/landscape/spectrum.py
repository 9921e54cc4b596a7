"""The ends of the Hessian's spectrum, and its trace."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.evaluation import Task, takes_task
from slipstream.landscape.hessian import MeanLoss
from slipstream.landscape.plans import Mode
from slipstream.storage.plan_fields import option
from slipstream.weights import Weights

Progress = Callable[[int, int], object]  # products done, and at most


@dataclass(frozen=True, eq=False)
class HessianSpectrum:
    """Result of `hessian_spectrum`."""

    eigenvalues: Tensor  # (K,) the largest, in falling order, float64
    residuals: Tensor  # (K,) |H v - value v|: a true eigenvalue lies that close
    vectors: tuple[Weights, ...]  # K eigenvectors of norm 1, by parameter
    lowest: float  # the smallest eigenvalue, which is negative at a saddle
    lowest_residual: float
    converged: bool  # whether all residuals are below the tolerance
    products: int  # Hessian-vector products: passes over the data


@dataclass(frozen=True, eq=False)
class HessianTrace:
    """Result of `hessian_trace`."""

    trace: float
    standard_error: float  # of the trace, over the samples
    samples: Tensor  # (S,) <v, H v> for random signs v, float64
    products: int


@dataclass(frozen=True)
class SpectrumPlan:
    """What `hessian_spectrum` looks for."""

    count: int = option(1, "How many of the largest eigenvalues.", minimum=1)
    # At most; each is a product with the Hessian, and keeps a vector in memory.
    iterations: int = option(100, "Of Lanczos, at most.", minimum=1)
    tolerance: float = option(1e-3, "Residual of the eigenvalues, relative to the largest.")
    seed: int = option(0, "Of the first vector.")
    mode: Mode = option("eval", "eval: BatchNorm uses running statistics, dropout is off; or own.")

    def __post_init__(self) -> None:
        if self.iterations < self.count:
            raise ValueError(
                f"iterations must be at least count, {self.count}, got {self.iterations}."
            )
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {self.tolerance}.")


@takes_task(plan=SpectrumPlan)
def hessian_spectrum(
    task: Task,
    *,
    weights: Weights | None = None,
    plan: SpectrumPlan | None = None,
    progress: Progress | None = None,
) -> HessianSpectrum:
    """Find the largest eigenvalues of the Hessian of the mean loss, and the smallest one.

    Lanczos iteration, each new vector made orthogonal twice to all before it, until
    `|H v - value v| <= tolerance max |value|` for all that is asked for. Eigenvalues that are
    exactly equal count once.

    Args:
        task: The model, left as it was, the loss, and the data, which is kept in memory.
        weights: Where to look, instead of at the model's own tensors.
        plan: How many eigenvalues, and how precisely.
        progress: Called after each product with their number, and the most there can be.

    Returns:
        Eigenvalues with residuals and vectors, and whether they converged.

    Raises:
        ValueError: If there are not so many eigenvalues, or as of `hessian_product`.

    Source: "An Iteration Method for the Solution of the Eigenvalue Problem of Linear Differential
    and Integral Operators" (Lanczos, 1950), with full reorthogonalisation.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(3, 1, bias=False)
        >>> bowl = lambda model, batch: (model.weight.square() * batch).sum() / 2
        >>> task = Task(model, [torch.tensor([[5.0, -1.0, 2.0]])], bowl)
        >>> found = hessian_spectrum(task, plan=SpectrumPlan(count=2))
        >>> [round(value, 4) for value in (*found.eigenvalues.tolist(), found.lowest)]
        [5.0, 2.0, -1.0]
        >>> found.converged, found.products
        (True, 3)
    """
    plan = plan or SpectrumPlan()
    return spectrum_of(MeanLoss(task, weights=weights, mode=plan.mode), plan, progress)


@takes_task
def hessian_trace(
    task: Task,
    *,
    weights: Weights | None = None,
    samples: int = 30,
    seed: int = 0,
    mode: Mode = "eval",
    progress: Progress | None = None,
) -> HessianTrace:
    """Estimate the trace of the Hessian of the mean loss: the mean of `<v, H v>`, v random signs.

    Args:
        task: The model, left as it was, the loss, and the data, which is kept in memory.
        weights: Where to look, instead of at the model's own tensors.
        samples: How many vectors, at least 2.
        seed: Of the vectors.
        mode: `eval`, or `own`: as of `hessian_product`.
        progress: Called after each product with their number, and how many there are.

    Returns:
        The estimate, which is unbiased, and its standard error.

    Raises:
        ValueError: If `samples` is below 2, or as of `hessian_product`.

    Source: "A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing
    Splines" (Hutchinson, 1990).

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(3, 1, bias=False)
        >>> bowl = lambda model, batch: (model.weight.square() * batch).sum() / 2
        >>> found = hessian_trace(Task(model, [torch.tensor([[5.0, -1.0, 2.0]])], bowl))
        >>> found.trace, found.standard_error  # exact where the Hessian is diagonal
        (6.0, 0.0)
    """
    mean = MeanLoss(task, weights=weights, mode=mode)
    return trace_of(mean, samples=samples, seed=seed, progress=progress)


def trace_of(
    mean: MeanLoss, *, samples: int, seed: int, progress: Progress | None = None
) -> HessianTrace:
    """Do what `hessian_trace` says, of a loss at given weights."""
    if samples < 2:
        raise ValueError(f"samples must be at least 2, for a standard error, got {samples}.")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for number in range(samples):
        signs = torch.randint(2, (mean.size,), generator=generator) * 2 - 1
        vector = signs.to(mean.device, mean.dtype)
        values.append(_inner(vector, mean.product(vector)))
        if progress is not None:
            progress(number + 1, samples)
    drawn = torch.tensor(values, dtype=torch.float64)
    _check_finite(float(drawn.sum()))
    error = float(drawn.std()) / math.sqrt(samples)
    return HessianTrace(float(drawn.mean()), error, drawn, samples)


def spectrum_of(
    mean: MeanLoss, plan: SpectrumPlan, progress: Progress | None = None
) -> HessianSpectrum:
    """Do what `hessian_spectrum` says, of a loss at given weights."""
    count = plan.count
    if not 1 <= count <= mean.size:
        raise ValueError(f"count must be from 1 to {mean.size}, the parameters, got {count}.")
    most = min(plan.iterations, mean.size)
    lanczos = _Lanczos(mean, plan.seed)
    ritz = None
    while len(lanczos.diagonal) < most:
        lanczos.step()
        if progress is not None:
            progress(len(lanczos.diagonal), most)
        ritz = lanczos.ritz(plan.tolerance)
        if len(lanczos.diagonal) >= count and ritz.settled(count):
            break
    assert ritz is not None  # there is at least one step
    return HessianSpectrum(
        eigenvalues=ritz.values[:count],
        residuals=ritz.residuals[:count],
        vectors=tuple(mean.named(lanczos.combine(ritz.vectors[:, n])) for n in range(count)),
        lowest=float(ritz.values[-1]),
        lowest_residual=float(ritz.residuals[-1]),
        converged=ritz.settled(count),
        products=len(lanczos.diagonal),
    )


@dataclass(frozen=True, eq=False)
class _Ritz:
    """Eigenpairs of the tridiagonal matrix of m iterations, values in falling order."""

    values: Tensor  # (m,) float64
    residuals: Tensor  # (m,)
    vectors: Tensor  # (m, m), a column each
    allowed: float  # residual

    def settled(self, count: int) -> bool:
        ends = torch.cat([self.residuals[:count], self.residuals[-1:]])
        return bool((ends <= self.allowed).all())


class _Lanczos:
    """The iteration: H Q = Q T with orthonormal Q and tridiagonal T."""

    def __init__(self, mean: MeanLoss, seed: int) -> None:
        self._mean = mean
        self._generator = torch.Generator().manual_seed(seed)
        self.basis: list[Tensor] = []
        self.diagonal: list[float] = []
        self.off_diagonal: list[float] = []  # below the diagonal
        self._left = 0.0  # the length of what comes next, before it was normalised
        self._next = self._fresh()

    def step(self) -> None:
        """Multiply once, and prepare the next vector."""
        if self.diagonal:
            self.off_diagonal.append(self._left)
        vector = self._next
        self.basis.append(vector)
        product = self._mean.product(vector)
        self.diagonal.append(_inner(vector, product))
        _check_finite(self.diagonal[-1])
        rest = self._orthogonal(product)
        self._left = float(rest.norm())
        scale = max(abs(self.diagonal[-1]), *map(abs, self.off_diagonal), float(product.norm()))
        if self._left > 10 * torch.finfo(rest.dtype).eps * scale:
            self._next = rest / self._left
        elif len(self.basis) < self._mean.size:  # H maps this space into itself: look elsewhere
            self._left = 0.0
            self._next = self._fresh()

    def ritz(self, tolerance: float) -> _Ritz:
        """Return the eigenpairs by now."""
        matrix = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64))
        if self.off_diagonal:
            off = torch.tensor(self.off_diagonal, dtype=torch.float64)
            matrix += torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(matrix)  # ascending
        values, vectors = values.flip(0), vectors.flip(1)
        residuals = self._left * vectors[-1].abs()
        return _Ritz(values, residuals, vectors, tolerance * float(values.abs().max()))

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return a combination of the basis, (size,), of norm 1."""
        total = torch.zeros_like(self.basis[0])
        for coefficient, vector in zip(coefficients.tolist(), self.basis, strict=True):
            total.add_(vector, alpha=coefficient)
        return total.div_(total.norm())

    def _fresh(self) -> Tensor:
        """A random direction orthogonal to the basis."""
        drawn = torch.randn(self._mean.size, generator=self._generator, dtype=torch.float64)
        rest = self._orthogonal(drawn.to(self._mean.device, self._mean.dtype))
        return rest.div_(rest.norm())

    def _orthogonal(self, vector: Tensor) -> Tensor:
        rest = vector.clone()
        for _ in range(2):  # twice is enough
            for known in self.basis:
                rest.sub_(known, alpha=_inner(known, rest))
        return rest


def _inner(first: Tensor, second: Tensor) -> float:
    return float(torch.dot(first, second))


def _check_finite(value: float) -> None:
    if not math.isfinite(value):
        raise ValueError("The Hessian holds a NaN or an infinity at these weights.")
