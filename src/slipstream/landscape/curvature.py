"""How the loss bends around weights, and along a run: Hessian, sharpness, gradient noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.evaluation import Task, takes_task
from slipstream.landscape.evaluator import Progress
from slipstream.landscape.hessian import MeanLoss
from slipstream.landscape.plans import CurvaturePlan, Mode
from slipstream.landscape.point_store import PointStore
from slipstream.landscape.spectrum import SpectrumPlan, spectrum_of, trace_of
from slipstream.storage.fingerprints import fingerprint
from slipstream.trajectory import Trajectory
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


@takes_task
def gradient_noise(
    task: Task, *, weights: Weights | None = None, mode: Mode = "eval"
) -> GradientNoise:
    """Measure how much the gradients of examples scatter: the simple noise scale.

    With J batches of n_j examples, mean gradients g_j and their mean G over all N examples,

        tr(S) = sum_j n_j |g_j - G|^2 / (J - 1),    |G|^2 - tr(S) / N

    are unbiased estimates of the noise and of the squared gradient of the data's distribution.
    With equal batches they are the paper's, of the two batch sizes n and N; with batches of one
    example they are the most precise. About as many examples in a batch as the noise scale are a
    good compromise between the number of steps and that of examples.

    Args:
        task: The model, left as it was, the loss, and the data: two or more batches of independent
            examples, kept in memory.
        weights: Where to look, instead of at the model's own tensors.
        mode: `eval`, or `own`: as of `hessian_product`.

    Returns:
        Noise, squared gradient, and their quotient, the noise scale.

    Raises:
        ValueError: If there are fewer than two batches, or as of `hessian_product`.

    Source: "An Empirical Model of Large-Batch Training" (McCandlish et al., 2018), equation 2.9
    and appendix A.1.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(1, 1, bias=False)
        >>> mean = lambda model, batch: model(batch).mean()  # its gradient is the mean example
        >>> found = gradient_noise(Task(model, [torch.tensor([[v]]) for v in (1.0, 3.0)], mean))
        >>> found.noise, found.squared_gradient, found.scale  # 4 - 2 / 2
        (2.0, 3.0, 0.6666666666666666)
    """
    return noise_of(MeanLoss(task, weights=weights, mode=mode))


@takes_task
def sharpness(
    task: Task, *, weights: Weights | None = None, radius: float = 0.05, mode: Mode = "eval"
) -> Sharpness:
    """Measure how much the loss rises within a ball, by one step along the gradient.

    It is `L(w + radius g / |g|) - L(w)`, the first-order answer to the largest loss in the ball
    that sharpness-aware minimisation uses; in a bowl with Hessian H it is
    `radius |g| + radius^2 <g, H g> / (2 |g|^2)`. Where the gradient is 0 so is the rise: look at
    the largest eigenvalue there.

    Args:
        task: The model, left as it was, the loss, and the data, which is kept in memory.
        weights: Where to look, instead of at the model's own tensors.
        radius: Of the ball, a distance between weights.
        mode: `eval`, or `own`: as of `hessian_product`.

    Returns:
        The loss at both.

    Raises:
        ValueError: If `radius` is not above 0, or as of `hessian_product`.

    Source: "Sharpness-Aware Minimization for Efficiently Improving Generalization" (Foret et al.,
    2021), equation 2 with p = 2.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> bowl = lambda model, batch: model.weight.square().sum()
        >>> sharpness(Task(model, [torch.zeros(1)], bowl), radius=0.5).rise
        1.25
    """
    mean = MeanLoss(task, weights=weights, mode=mode)
    return sharpness_of(mean, mean.gradient(), radius)


@takes_task(plan=CurvaturePlan)
def measure_curvature(
    task: Task, *, weights: Weights | None = None, plan: CurvaturePlan | None = None
) -> Curvature:
    """Measure the curvature of the mean loss at given weights: spectrum, trace, sharpness, noise.

    Args:
        task: The model, left as it was, the loss, and the data, which is kept in memory.
        weights: Where to look, instead of at the model's own tensors.
        plan: How precisely.

    Returns:
        Values, with residuals and standard error.

    Raises:
        ValueError: As of `hessian_spectrum`, `hessian_trace`, `sharpness` and `gradient_noise`.
    """
    plan = plan or CurvaturePlan()
    mean = MeanLoss(task, weights=weights, mode=plan.mode)
    lanczos = SpectrumPlan(1, plan.iterations, plan.tolerance, plan.seed)
    spectrum = spectrum_of(mean, lanczos)
    trace = trace_of(mean, samples=plan.samples, seed=plan.seed)
    raised = sharpness_of(mean, mean.gradient(), plan.radius)
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


@takes_task(plan=CurvaturePlan)
def curvature_along(
    trajectory: Trajectory,
    task: Task,
    *,
    steps: Sequence[int] | None = None,
    plan: CurvaturePlan | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> CurvatureAlong:
    """Measure the curvature of the mean loss at snapshots of a run.

    Args:
        trajectory: The run.
        task: The model of the run, left as it was, the loss, and the data, which is kept in
            memory; every snapshot sees the same batches.
        steps: Where to measure; by default ten snapshots, evenly spaced.
        plan: How precisely.
        resume: A file for the snapshots done, which is created if it does not exist: after an
            interruption a second call resumes from it.
        progress: Called after each snapshot with the number done, and of all.

    Returns:
        Every value of `Curvature` at every step.

    Raises:
        ValueError: If the run has no such step, `resume` is of other inputs, or as of
            `measure_curvature`.

    Example:
        >>> from torch import nn
        >>> quartic = lambda model, batch: model.weight.pow(4).sum() / 12  # H = w^2
        >>> task = Task(nn.Linear(1, 1, bias=False), [torch.zeros(1)], quartic)
        >>> run = Trajectory.from_weights([{"weight": torch.full((1, 1), w)} for w in (2.0, 1.0)])
        >>> curvature_along(run, task).values["largest"]
        tensor([4., 1.], dtype=torch.float64)
    """
    plan = plan or CurvaturePlan()
    snapshots = trajectory.chosen(steps, most=SNAPSHOTS)
    task = replace(task, data=[task.to(batch) for batch in task.data])
    inputs = {}
    if resume is not None:
        inputs = {
            "steps": str([snapshot.step for snapshot in snapshots]),
            "weights": ", ".join(fingerprint(list(s.weights.values())) for s in snapshots),
            "data": fingerprint(task.data),
            "options": str(asdict(plan)),
        }
    path = None if resume is None else Path(resume)
    names = tuple(Curvature.__dataclass_fields__)
    store = PointStore(path, metrics=names, count=len(snapshots), inputs=inputs)
    try:
        for snapshot in snapshots[store.done :]:
            row = asdict(measure_curvature(task, weights=snapshot.weights, plan=plan))
            store.add({n: torch.tensor([float(row[n])], dtype=torch.float64) for n in names})
            if progress is not None:
                progress(store.done, len(snapshots))
    finally:
        store.save()
    return CurvatureAlong(tuple(s.step for s in snapshots), store.values)


def noise_of(mean: MeanLoss) -> GradientNoise:
    """Do what `gradient_noise` says, of a loss at given weights."""
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
    """Do what `sharpness` says, where the gradient is `slope`."""
    if not radius > 0:
        raise ValueError(f"radius must be above 0, got {radius}.")
    length = float(slope.norm())
    here = mean.value()
    raised = mean.value(slope * (radius / length)) if length > 0 else here
    return Sharpness(here, raised, length, radius)
