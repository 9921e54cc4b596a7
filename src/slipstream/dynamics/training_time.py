"""How many steps training will take, predicted from the network linearised at its start."""

import math
import statistics
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slipstream.dynamics.function_space import train_linearised
from slipstream.dynamics.linearised_training import (
    Linearisation,
    LinearisedTraining,
    LossCurve,
    Report,
    ratio,
)
from slipstream.dynamics.prediction_plan import PredictionPlan
from slipstream.dynamics.tangent_kernel import tangent_kernel
from slipstream.evaluation import Task, takes_task, weights_in
from slipstream.weights import Weights, clone, load_weights_, weights_of

Status = Literal["reached", "not reached", "unstable"]
Verdict = Literal["good", "fair", "poor"]
_GOOD, _FAIR = 0.02, 0.05  # path errors
_PROBE_SHARE = 0.05  # of the predicted steps
_PROBE_STEPS = 10  # if no number of steps is predicted
_COMPARED = 16  # examples whose kernel is computed twice, to see it drift


@dataclass(frozen=True)
class Arrival:
    """When the smoothed loss is predicted to reach a threshold."""

    loss: float
    steps: int | None  # the first step after which it is there; None if it never is
    seconds: float | None  # steps times the measured time of one; None if none was taken


@dataclass(frozen=True)
class Trust:
    """What is known of a prediction's error: near 0 is good; `verdict` sums it up in a word."""

    # |f(w) - f_predicted| / |f_predicted - f_before| at the weights w where each linearisation
    # was left: how far the real network is from it there; the largest. No real step is taken.
    path_error: float
    steps: int  # real steps that were taken on a copy, for the following
    output_error: float  # |f_real - f_predicted| / |f_real - f_0| after them
    kernel_drift: float  # |Theta - Theta_0| / |Theta_0| after them, over the first examples
    real_loss: float  # over the data, after them
    predicted_loss: float  # by the first linearisation

    @property
    def verdict(self) -> Verdict:
        """`good`, `fair` or `poor`, by the path error; the documentation has errors measured."""
        if self.path_error < _GOOD:
            return "good"
        return "fair" if self.path_error < _FAIR else "poor"


@dataclass(frozen=True)
class PredictionCost:
    """What a prediction took, in seconds."""

    kernels: float
    descent: float  # training the linearised network
    probe: float  # the real steps of the warm-up and of `Trust`, and what is compared
    step: float | None  # a real step, the median of those taken

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.kernels + self.descent + self.probe


@dataclass(frozen=True)
class TrainingTime:
    """Result of `predict_training_time`."""

    losses: Tensor  # (steps + 1,) smoothed loss after 0, 1, ... steps; float64
    arrivals: tuple[Arrival, ...]  # in the order of the thresholds
    status: Status  # `unstable` if the linearised network diverges: the learning rate is too large
    stable_lr: float  # learning rates from here on are unstable where it was linearised
    warm_up: int  # real steps at the head of `losses`
    linearisations: int  # that were made
    method: Literal["closed form", "iteration"]  # of the first one
    trust: Trust
    cost: PredictionCost

    def __str__(self) -> str:
        first = float(self.losses[0])
        lines = [f"loss {first:.4g} at the start"]
        for one in self.arrivals:
            steps = f"not within {len(self.losses) - 1}" if one.steps is None else f"{one.steps}"
            seconds = "" if one.seconds is None else f", {one.seconds:.3g} s"
            lines.append(f"loss {one.loss:.4g} ({one.loss / first:.0%}): {steps} steps{seconds}")
        if self.status == "unstable":
            lines.append(f"unstable: constant rates are stable below {self.stable_lr:.3g}")
        lines.append(
            f"trust: {self.trust.verdict} (path error {self.trust.path_error:.2g}); "
            f"linearised {self.linearisations} times in {self.cost.seconds:.3g} s"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class _PlanOf01(PredictionPlan):
    """What version 0.1 took for granted."""

    momentum: float = 0.0


@takes_task(plan=_PlanOf01)
def predict_training_time(
    task: Task,
    *,
    weights: Weights | None = None,
    plan: PredictionPlan | None = None,
    progress: Report | None = None,
) -> TrainingTime:
    """Predict after how many steps of SGD the loss over the task's data falls to each threshold.

    The network is replaced by its linearisation at the weights, `f_0 + J (w - w_0)`. Its training
    takes place in the space of outputs: with the kernel `Theta = J J^T` and the gradient `g` of
    the loss by the outputs, a step is `v <- m v + Theta g`, `f <- f - eta v`. The prediction is
    as good as the linearisation: good for wide networks and small changes, late where features
    are learned. Therefore the network at the predicted weights is looked at again and again, each
    time the loss has fallen by the same factor; where its outputs are not the predicted ones, it
    is linearised again. `Trust` says how far to trust the prediction.

    Args:
        task: What would be trained: the model, left as it was, in the mode it would be trained in
            (no dropout, and BatchNorm in eval mode); batches `(inputs, targets)`, two tensors, of
            all examples that would be trained on; and a loss that depends on the model by its
            outputs alone, such as `classification_loss` and `squared_loss`.
        weights: Where training starts, instead of at the model's own tensors.
        plan: The training, the losses to reach, and how to predict.
        progress: Called with what is done now, the steps or blocks done, and their number.

    Returns:
        The predicted curve, the steps to each threshold, and how far to trust them.

    Raises:
        ValueError: If the data make no sense, a threshold is not below the loss at the start, the
            kernel does not fit in memory, or the model cannot be differentiated example by example.

    Example:
        >>> from torch import nn
        >>> from slipstream.evaluation import squared_loss
        >>> data = [(torch.tensor([[1.0]]), torch.tensor([[2.0]]))]
        >>> task = Task(nn.Linear(1, 1, bias=False), data, squared_loss)
        >>> weights = {"weight": torch.zeros(1, 1)}  # the loss is 2, and falls by 3/4 per step
        >>> plan = PredictionPlan(thresholds=["10%", 0.1], lr=0.5, momentum=0)
        >>> found = predict_training_time(task, weights=weights, plan=plan)
        >>> [arrival.steps for arrival in found.arrivals], found.losses.tolist()
        ([2, 3], [2.0, 0.5, 0.125, 0.03125])

    Source:
        "Predicting Training Time Without Training" (Zancato, Achille, Ravichandran, Bhotika,
        Soatto, 2020), sections 3 and 4.
    """
    plan, model = plan or PredictionPlan(), task.model
    with weights_in(model, clone({**weights_of(model), **(weights or {})})):
        training = LinearisedTraining.of(task, plan, progress or _silent)
        initial = training.loss()
        thresholds = plan.losses(initial)
        levels = _levels(initial, min(thresholds), count=plan.linearisations)
        started = time.perf_counter()
        curve = _warm_up(training)
        warmed = time.perf_counter()
        at_start = clone(weights_of(model))
        first = training.linearisation(training.real.velocity, step=plan.warm_up)
        training.descend(first, curve, levels=levels, steps=plan.steps)
        predicted = time.perf_counter()
        load_weights_(model, at_start)
        status = _status(curve, levels[-1])
        trust = _trust(training, first, steps=_probe_steps(plan, curve, status))
        probed = time.perf_counter()
    times, sharpest = training.real.seconds, training.sharpest
    step = statistics.median(times) if times else None
    return TrainingTime(
        losses=torch.tensor(curve.means, dtype=torch.float64),
        arrivals=tuple(_arrival(curve, one, step) for one in thresholds),
        status=status,
        stable_lr=2 * (1 + plan.momentum) / sharpest if sharpest else math.inf,
        warm_up=plan.warm_up,
        linearisations=len(training.gaps),
        method="closed form" if training.closed_form else "iteration",
        trust=trust,
        cost=PredictionCost(
            kernels=training.kernel_seconds,
            descent=predicted - warmed - training.kernel_seconds,
            probe=warmed - started + probed - predicted,
            step=step,
        ),
    )


def _levels(initial: float, lowest: float, *, count: int) -> list[float]:
    """The losses at which the network is linearised again, and the last one to reach."""
    if count > 1 and lowest <= 0:
        raise ValueError(
            f"thresholds must be positive with several linearisations, got {lowest:g}: they are "
            "spread over the factor by which the loss falls."
        )
    between = [initial * (lowest / initial) ** (n / count) for n in range(1, count)]
    return [*between, lowest]


def _warm_up(training: LinearisedTraining) -> LossCurve:
    """Take real steps, and keep the loss before each."""
    curve, steps = LossCurve(training.plan.smoothing), training.plan.warm_up
    for step in range(steps):
        training.report("warm-up", step, steps)
        curve.add(training.loss())
        training.real.take(1)
    return curve


def _probe_steps(plan: PredictionPlan, curve: LossCurve, status: Status) -> int:
    """How many real steps are taken for `Trust`."""
    if plan.probe_steps is not None:
        return plan.probe_steps
    share = math.ceil(_PROBE_SHARE * (curve.steps - plan.warm_up))
    return min(plan.steps - plan.warm_up, share if status == "reached" else _PROBE_STEPS)


def _trust(training: LinearisedTraining, linearised: Linearisation, *, steps: int) -> Trust:
    """Take real steps from where the model is, and compare with the linearised network."""
    plan, model, loss = training.plan, training.real.model, training.output_loss
    first = training.real.data[0][:_COMPARED]
    kernel, start = linearised.kernel, linearised.start(plan.settings)
    *_, predicted = train_linearised(kernel, loss, start=start, settings=plan.settings, steps=steps)
    for step in range(steps):
        training.report("real steps", step, steps)
        training.real.take(1)
    real, before = training.outputs(), kernel.part(len(first))
    after = tangent_kernel(Task(model, [first]), outputs=kernel.kind, dtype=plan.dtype)
    return Trust(
        path_error=max(training.gaps, default=0.0),
        steps=steps,
        output_error=ratio(real - predicted.outputs, real - start.outputs),
        kernel_drift=ratio(after.blocks - before, before),
        real_loss=loss.value(real).item(),
        predicted_loss=predicted.loss,
    )


def _arrival(curve: LossCurve, threshold: float, seconds: float | None) -> Arrival:
    steps = next((at for at, value in enumerate(curve.means) if value <= threshold), None)
    known = None if steps is None or seconds is None else steps * seconds
    return Arrival(threshold, steps, known)


def _status(curve: LossCurve, lowest: float) -> Status:
    if curve.means[-1] <= lowest:
        return "reached"
    late = curve.raw[-max(1, len(curve.raw) // 4) :]
    rising = curve.diverged or statistics.fmean(late) > curve.raw[0]
    return "unstable" if rising else "not reached"


def _silent(*_: object) -> None:
    """Report nothing."""
