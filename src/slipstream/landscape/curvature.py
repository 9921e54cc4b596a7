"""How the loss bends around weights, and along a run: Hessian, sharpness, gradient noise."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss
from slipstream.evaluation.batches import sized_batches
from slipstream.landscape.evaluator import Progress
from slipstream.landscape.hessian import MeanLoss, Mode
from slipstream.landscape.point_store import PointStore, fingerprint
from slipstream.landscape.spectrum import spectrum_of, trace_of
from slipstream.trajectory import Snapshot, Trajectory
from slipstream.weights import Weights

SNAPSHOTS = 10  # measured along a run, by default


@dataclass(frozen=True)
class GradientNoise:
    """Result of `gradient_noise`."""

    noise: float  # tr(S), S the covariance of one example's gradient
    squared_gradient: float  # |G|^2 without what noise adds to it; may be below 0 by chance
    batches: int  # gradients that were compared

    @property
    def scale(self) -> float:
        """The simple noise scale in examples, `tr(S) / |G|^2`; infinite if no gradient is left."""
        return self.noise / self.squared_gradient if self.squared_gradient > 0 else math.inf


@dataclass(frozen=True)
class Sharpness:
    """Result of `sharpness`."""

    loss: float  # at the weights
    raised: float  # at the weights + radius * gradient / |gradient|
    gradient_norm: float
    radius: float

    @property
    def rise(self) -> float:
        """How much the loss rises."""
        return self.raised - self.loss


@dataclass(frozen=True)
class Curvature:
    """Result of `measure_curvature`."""

    loss: float  # mean over the data
    gradient_norm: float
    largest: float  # eigenvalue of the Hessian
    largest_residual: float  # a true eigenvalue lies that close
    lowest: float
    lowest_residual: float
    converged: bool  # whether both residuals are below the tolerance
    trace: float
    trace_error: float  # standard error
    sharpness: float  # rise of the loss within `radius`
    noise_scale: float  # in examples; NaN with a single batch
    products: int  # Hessian-vector products: passes over the data


@dataclass(frozen=True, eq=False)
class CurvatureAlong:
    """Result of `curvature_along`."""

    steps: tuple[int, ...]  # T of the run
    values: Mapping[str, Tensor]  # each field of `Curvature` to (T,), float64

    def at(self, position: int) -> Curvature:
        """Return the curvature at one of the steps, by position."""
        row: dict[str, Any] = {name: value[position].item() for name, value in self.values.items()}
        row |= {"converged": bool(row["converged"]), "products": int(row["products"])}
        return Curvature(**row)


def gradient_noise(
    model: nn.Module,
    loss: Loss,
    *,
    weights: Weights | None = None,
    data: Iterable[Batch],
    mode: Mode = "eval",
) -> GradientNoise:
    """Measure how much the gradients of examples scatter: the simple noise scale.

    With J batches of n_j examples, mean gradients g_j and their mean G over all N examples,

        tr(S) = sum_j n_j |g_j - G|^2 / (J - 1),    |G|^2 - tr(S) / N

    are unbiased estimates of the noise and of the squared gradient of the data's distribution.
    With equal batches they are the paper's, of the two batch sizes n and N; with batches of one
    example they are the most precise. About as many examples in a batch as the noise scale are a
    good compromise between the number of steps and that of examples.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        weights: Where to look, instead of at the model's own tensors.
        data: Two or more batches of independent examples, kept in memory.
        mode: `eval`, or `own`: as of `hessian_product`.

    Returns:
        Noise, squared gradient, and their quotient, the noise scale.

    Raises:
        ValueError: If there are fewer than two batches, or as of `hessian_product`.

    Source: "An Empirical Model of Large-Batch Training" (McCandlish et al., 2018), equation 2.9
    and appendix A.1.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> mean = lambda model, batch: model(batch).mean()  # its gradient is the mean example
        >>> found = gradient_noise(model, mean, data=[torch.tensor([[v]]) for v in (1.0, 3.0)])
        >>> found.noise, found.squared_gradient, found.scale  # 4 - 2 / 2
        (2.0, 3.0, 0.6666666666666666)
    """
    return noise_of(MeanLoss(model, loss, weights=weights, data=data, mode=mode))


def sharpness(
    model: nn.Module,
    loss: Loss,
    *,
    weights: Weights | None = None,
    data: Iterable[Batch],
    radius: float = 0.05,
    mode: Mode = "eval",
) -> Sharpness:
    """Measure how much the loss rises within a ball, by one step along the gradient.

    It is `L(w + radius g / |g|) - L(w)`, the first-order answer to the largest loss in the ball
    that sharpness-aware minimisation uses; in a bowl with Hessian H it is
    `radius |g| + radius^2 <g, H g> / (2 |g|^2)`. Where the gradient is 0 so is the rise: look at
    the largest eigenvalue there.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        weights: Where to look, instead of at the model's own tensors.
        data: Batches, weighted by size, and kept in memory.
        radius: Of the ball, a distance between weights.
        mode: `eval`, or `own`: as of `hessian_product`.

    Returns:
        The loss at both places.

    Raises:
        ValueError: If `radius` is not above 0, or as of `hessian_product`.

    Source: "Sharpness-Aware Minimization for Efficiently Improving Generalization" (Foret et al.,
    2021), equation 2 with p = 2.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> bowl = lambda model, batch: model.weight.square().sum()
        >>> sharpness(model, bowl, data=[torch.zeros(1)], radius=0.5).rise
        1.25
    """
    mean = MeanLoss(model, loss, weights=weights, data=data, mode=mode)
    return sharpness_of(mean, mean.gradient(), radius)


def measure_curvature(
    model: nn.Module,
    loss: Loss,
    *,
    weights: Weights | None = None,
    data: Iterable[Batch],
    iterations: int = 60,
    tolerance: float = 1e-2,
    samples: int = 10,
    radius: float = 0.05,
    seed: int = 0,
    mode: Mode = "eval",
) -> Curvature:
    """Measure the curvature of the mean loss at one place: all that this module has, in one call.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        weights: Where to look, instead of at the model's own tensors.
        data: Batches, weighted by size, and kept in memory.
        iterations: Of `hessian_spectrum`, at most.
        tolerance: Of `hessian_spectrum`.
        samples: Of `hessian_trace`.
        radius: Of `sharpness`.
        seed: Of all that is random.
        mode: `eval`, or `own`: as of `hessian_product`.

    Returns:
        Numbers, with residuals and standard error.

    Raises:
        ValueError: As of the functions named.
    """
    mean = MeanLoss(model, loss, weights=weights, data=data, mode=mode)
    spectrum = spectrum_of(mean, count=1, iterations=iterations, tolerance=tolerance, seed=seed)
    trace = trace_of(mean, samples=samples, seed=seed)
    slope = mean.gradient()
    raised = sharpness_of(mean, slope, radius)
    noise = noise_of(mean).scale if len(mean.batches) > 1 else math.nan
    return Curvature(
        loss=raised.loss,
        gradient_norm=raised.gradient_norm,
        largest=float(spectrum.eigenvalues[0]),
        largest_residual=float(spectrum.residuals[0]),
        lowest=spectrum.lowest,
        lowest_residual=spectrum.lowest_residual,
        converged=spectrum.converged,
        trace=trace.trace,
        trace_error=trace.standard_error,
        sharpness=raised.rise,
        noise_scale=noise,
        products=mean.products,
    )


def curvature_along(
    model: nn.Module,
    loss: Loss,
    *,
    trajectory: Trajectory,
    data: Iterable[Batch],
    steps: Sequence[int] | None = None,
    iterations: int = 60,
    tolerance: float = 1e-2,
    samples: int = 10,
    radius: float = 0.05,
    seed: int = 0,
    mode: Mode = "eval",
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> CurvatureAlong:
    """Measure the curvature of the mean loss at snapshots of a run.

    Args:
        model: Of the run; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        trajectory: The run.
        data: Batches, weighted by size, and kept in memory; every snapshot sees the same ones.
        steps: Where to measure; by default ten snapshots, evenly spaced.
        iterations: Of `hessian_spectrum`, at most.
        tolerance: Of `hessian_spectrum`.
        samples: Of `hessian_trace`.
        radius: Of `sharpness`.
        seed: Of all that is random; the same at every snapshot.
        mode: `eval`, or `own`: as of `hessian_product`.
        resume: A file for the snapshots done, which is made if it is not there: after an
            interruption a second call goes on from it.
        progress: Called after each snapshot with the number done, and of all.

    Returns:
        Every number of `Curvature` at every step.

    Raises:
        ValueError: If the run has no such step, `resume` is of other inputs, or as of
            `measure_curvature`.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> quartic = lambda model, batch: model.weight.pow(4).sum() / 12  # H = w^2
        >>> run = Trajectory.from_weights([{"weight": torch.full((1, 1), w)} for w in (2.0, 1.0)])
        >>> curvature_along(model, quartic, trajectory=run, data=[torch.zeros(1)]).values["largest"]
        tensor([4., 1.], dtype=torch.float64)
    """
    snapshots = _chosen(trajectory, steps)
    batches = [batch for batch, _ in sized_batches(model, data)]
    options: dict[str, Any] = {
        "iterations": iterations, "tolerance": tolerance, "samples": samples, "radius": radius,
        "seed": seed, "mode": mode,
    }  # fmt: skip
    inputs = {}
    if resume is not None:
        inputs = {
            "steps": str([snapshot.step for snapshot in snapshots]),
            "weights": ", ".join(fingerprint(list(s.weights.values())) for s in snapshots),
            "data": fingerprint(batches),
            "options": str(options),
        }
    path = None if resume is None else Path(resume)
    names = tuple(Curvature.__dataclass_fields__)
    store = PointStore(path, metrics=names, count=len(snapshots), inputs=inputs)
    try:
        for snapshot in snapshots[store.done :]:
            found = measure_curvature(
                model, loss, weights=snapshot.weights, data=batches, **options
            )
            row = asdict(found)
            store.add({n: torch.tensor([float(row[n])], dtype=torch.float64) for n in names})
            if progress is not None:
                progress(store.done, len(snapshots))
    finally:
        store.save()
    return CurvatureAlong(tuple(s.step for s in snapshots), store.values)


def noise_of(mean: MeanLoss) -> GradientNoise:
    """Do what `gradient_noise` says, at one place."""
    if len(mean.batches) < 2:
        raise ValueError(
            f"data has {len(mean.batches)} batch; the noise of gradients needs 2 or more: give "
            "smaller batches."
        )
    centre = torch.zeros(mean.size, dtype=mean.dtype, device=mean.device)
    scatter, count = 0.0, 0
    for slope, size in mean.gradients():
        away = slope - centre
        scatter += size * count / (size + count) * float(away.norm()) ** 2
        count += size
        centre += away * (size / count)
    noise = scatter / (len(mean.batches) - 1)
    return GradientNoise(noise, float(centre.norm()) ** 2 - noise / count, len(mean.batches))


def sharpness_of(mean: MeanLoss, slope: Tensor, radius: float) -> Sharpness:
    """Do what `sharpness` says, at one place, where the gradient is `slope`."""
    if not radius > 0:
        raise ValueError(f"radius must be above 0, got {radius}.")
    length = float(slope.norm())
    here = mean.value()
    raised = mean.value(slope * (radius / length)) if length > 0 else here
    return Sharpness(here, raised, length, radius)


def _chosen(trajectory: Trajectory, steps: Sequence[int] | None) -> list[Snapshot]:
    if not len(trajectory):
        raise ValueError("The run holds no snapshot.")
    if steps is None:
        return list(trajectory if len(trajectory) <= SNAPSHOTS else trajectory.resample(SNAPSHOTS))
    try:
        return [trajectory.at(step) for step in steps]
    except KeyError as error:
        raise ValueError(error.args[0]) from error
