"""How many steps training will take, predicted from the network linearised at its start."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from slipstream.dynamics.descent import Descent, Rate
from slipstream.dynamics.function_space import follow
from slipstream.dynamics.linearisation import Linearisation
from slipstream.dynamics.linearised_training import Curve, LinearisedTraining, ratio
from slipstream.dynamics.tangent_kernel import MEMORY, Outputs, tangent_kernel
from slipstream.evaluation import Batch, Loss, weights_in
from slipstream.weights import Weights, copy, load_weights_, weights_of

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
    """What is known of a prediction's error: near 0 is good, and `verdict` is the word for it."""

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


def predict_training_time(
    model: nn.Module,
    loss: Loss,
    *,
    weights: Weights | None = None,
    data: Iterable[Batch],
    thresholds: Sequence[float],
    lr: Rate,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    batch_size: int | None = None,
    seed: int = 0,
    max_steps: int = 10_000,
    smoothing: int = 1,
    warm_up: int = 0,
    linearisations: int = 16,
    tolerance: float = 0.02,
    probe_steps: int | None = None,
    outputs: Outputs = "full",
    dtype: torch.dtype | None = None,
    memory: int = MEMORY,
    progress: Callable[[str, int, int], None] | None = None,
) -> TrainingTime:
    """Predict after how many steps of SGD the loss over `data` falls to each threshold.

    The network is replaced by its linearisation at the weights, `f_0 + J (w - w_0)`. Its training
    takes place in the space of outputs: with the kernel `Theta = J J^T` and the gradient `g` of
    the loss by the outputs, a step is `v <- m v + Theta g`, `f <- f - eta v`. The prediction is
    as good as the linearisation: good for wide networks and small changes, late where features
    are learned. Therefore the network at the predicted weights is looked at again and again, each
    time the loss has fallen by the same factor; where its outputs are not the predicted ones, it
    is linearised anew. `Trust` says how far to believe the prediction.

    Args:
        model: What would be trained, in the mode it would be trained in: no dropout, and BatchNorm
            in eval mode. It is left as it was, and so are weights.
        loss: Maps the model and a batch `(inputs, targets)` to the mean loss, and depends on the
            model by its outputs alone, such as `classification_loss` and `squared_loss`.
        weights: Where training starts, instead of at the model's own tensors.
        data: Batches `(inputs, targets)` of all examples that would be trained on, two tensors.
        thresholds: Losses to reach, below that at the start.
        lr: Learning rate: a number, or one for each step, or a function of the step from 0.
        momentum: Of SGD.
        weight_decay: Of SGD.
        batch_size: Examples in a step, all if not given.
        seed: Of the order of the examples, which is that of `testbed.Batches`.
        max_steps: When to give up.
        smoothing: Steps over which the loss is averaged, the latest ones.
        warm_up: Real steps, on a copy, before the network is linearised.
        linearisations: How often it is linearised at most; each costs a kernel. 1 is the method of
            the paper. The loss falls by the same factor from each time it is looked at to the next.
        tolerance: How far outputs may be from the predicted ones, relative to the way they went,
            before the network is linearised anew.
        probe_steps: Real steps on a copy, for `Trust` and the time of a step; a twentieth of the
            predicted ones if not given, 10 if none are predicted.
        outputs: `separate` neglects what passes between outputs, and takes a C-th of the memory.
        dtype: What to compute the kernel in; that of the parameters if not given.
        memory: Bytes that the kernel, and blocks of the Jacobian, may each take.
        progress: Called with what is done now, the steps or blocks done, and their number.

    Returns:
        The predicted curve, the steps to each threshold, and how far to trust them.

    Raises:
        ValueError: If a setting or the data make no sense, a threshold is not below the loss at
            the start, the kernel does not fit in memory, or the model cannot be differentiated
            example by example.

    Example:
        >>> from slipstream.evaluation import squared_loss
        >>> model = nn.Linear(1, 1, bias=False)
        >>> data = [(torch.tensor([[1.0]]), torch.tensor([[2.0]]))]
        >>> weights = {"weight": torch.zeros(1, 1)}  # the loss is 2, and falls by 3/4 a step
        >>> found = predict_training_time(
        ...     model, squared_loss, weights=weights, data=data, thresholds=[0.2, 0.1], lr=0.5
        ... )
        >>> [arrival.steps for arrival in found.arrivals], found.losses.tolist()
        ([2, 3], [2.0, 0.5, 0.125, 0.03125])

    Source:
        "Predicting Training Time Without Training" (Zancato, Achille, Ravichandran, Bhotika,
        Soatto, 2020), sections 3 and 4.
    """
    descent = Descent(lr, momentum, weight_decay, batch_size, seed)
    steps = descent.last_step(max_steps)
    _check_settings(steps, smoothing, warm_up, linearisations, probe_steps, tolerance)
    with weights_in(model, copy({**weights_of(model), **(weights or {})})):
        training = LinearisedTraining.of(
            model,
            loss,
            data,
            descent=descent,
            outputs=outputs,
            dtype=dtype,
            memory=memory,
            tolerance=tolerance,
            say=progress or _silent,
        )
        levels = _levels(training.loss(), thresholds, count=linearisations)
        started = time.perf_counter()
        curve = _warm_up(training, warm_up, window=smoothing)
        warmed = time.perf_counter()
        at_start = copy(weights_of(model))
        first = training.linearisation(training.walk.velocity, step=warm_up)
        training.descend(first, curve, levels=levels, steps=steps)
        followed = time.perf_counter()
        load_weights_(model, at_start)
        status = _status(curve, levels[-1])
        if probe_steps is None:
            share = math.ceil(_PROBE_SHARE * (curve.steps - warm_up))
            probe_steps = min(steps - warm_up, share if status == "reached" else _PROBE_STEPS)
        trust = _trust(training, first, steps=probe_steps)
        probed = time.perf_counter()
    times = training.walk.seconds
    step = statistics.median(times) if times else None
    return TrainingTime(
        losses=torch.tensor(curve.means, dtype=torch.float64),
        arrivals=tuple(_arrival(curve, one, step) for one in thresholds),
        status=status,
        stable_lr=2 * (1 + momentum) / sharpest if (sharpest := training.sharpest) else math.inf,
        warm_up=warm_up,
        linearisations=len(training.gaps),
        method="closed form" if training.closed_form else "iteration",
        trust=trust,
        cost=PredictionCost(
            kernels=training.kernel_seconds,
            descent=followed - warmed - training.kernel_seconds,
            probe=warmed - started + probed - followed,
            step=step,
        ),
    )


def _levels(initial: float, thresholds: Sequence[float], *, count: int) -> list[float]:
    """The losses at which the network is linearised again, and the last one to reach."""
    if not thresholds:
        raise ValueError("thresholds is empty: give the losses to reach.")
    for value in thresholds:
        if not value < initial:
            raise ValueError(
                f"thresholds must be below the loss at the start, {initial:.6g}, got {value:g}."
            )
    lowest = min(thresholds)
    if count > 1 and lowest <= 0:
        raise ValueError(
            f"thresholds must be positive with several linearisations, got {lowest:g}: they are "
            "spread over the factor by which the loss falls."
        )
    between = [initial * (lowest / initial) ** (n / count) for n in range(1, count)]
    return [*between, lowest]


def _warm_up(training: LinearisedTraining, steps: int, *, window: int) -> Curve:
    """Take real steps, and note the loss before each."""
    curve = Curve(window)
    for step in range(steps):
        training.say("warm-up", step, steps)
        curve.add(training.loss())
        training.walk.go(1)
    return curve


def _trust(training: LinearisedTraining, linearised: Linearisation, *, steps: int) -> Trust:
    """Take real steps from where the model is, and compare with the linearised network."""
    walk, first = training.walk, training.walk.data[0][:_COMPARED]
    kernel, start = linearised.kernel, linearised.start(walk.descent)
    *_, predicted = follow(
        kernel, training.output_loss, start=start, descent=walk.descent, steps=steps
    )
    for step in range(steps):
        training.say("real steps", step, steps)
        walk.go(1)
    real, before = training.outputs(), kernel.part(len(first))
    after = tangent_kernel(walk.model, data=[first], outputs=kernel.kind, dtype=training.dtype)
    return Trust(
        path_error=max(training.gaps, default=0.0),
        steps=steps,
        output_error=ratio(real - predicted.outputs, real - start.outputs),
        kernel_drift=ratio(after.blocks - before, before),
        real_loss=training.output_loss.value(real).item(),
        predicted_loss=predicted.loss,
    )


def _check_settings(
    steps: int,
    smoothing: int,
    warm_up: int,
    linearisations: int,
    probe_steps: int | None,
    tolerance: float,
) -> None:
    for name, value, least in (
        ("smoothing", smoothing, 1),
        ("warm_up", warm_up, 0),
        ("linearisations", linearisations, 1),
        ("probe_steps", probe_steps or 0, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}.")
    needed = warm_up + max(1, probe_steps or 0)
    if steps < needed:
        raise ValueError(
            f"max_steps, and lr if it is a sequence, must reach as far as warm_up and probe_steps, "
            f"{needed} steps; they end after {steps}."
        )


def _arrival(curve: Curve, threshold: float, seconds: float | None) -> Arrival:
    steps = next((at for at, value in enumerate(curve.means) if value <= threshold), None)
    known = None if steps is None or seconds is None else steps * seconds
    return Arrival(threshold, steps, known)


def _status(curve: Curve, lowest: float) -> Status:
    if curve.means[-1] <= lowest:
        return "reached"
    late = curve.raw[-max(1, len(curve.raw) // 4) :]
    rising = curve.diverged or statistics.fmean(late) > curve.raw[0]
    return "unstable" if rising else "not reached"


def _silent(*_: object) -> None:
    """Tell nobody."""
