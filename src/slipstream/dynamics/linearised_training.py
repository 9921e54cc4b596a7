"""A network that is trained by its linearisations: one at the start, or several along the way."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from slipstream.deprecated import moved_names
from slipstream.dynamics.function_space import (
    ClosedForm,
    Combination,
    LinearisedState,
    OutputLoss,
    Start,
    largest_eigenvalue,
    train_linearised,
)
from slipstream.dynamics.jacobians import Network
from slipstream.dynamics.prediction_plan import PredictionPlan
from slipstream.dynamics.sgd import RealTraining, SGDSettings
from slipstream.dynamics.tangent_kernel import TangentKernel, tangent_kernel
from slipstream.evaluation import Batch, Task, classification_loss, squared_loss, to_device
from slipstream.weights import clone, load_weights_

__getattr__ = moved_names(__name__)  # of version 0.1

Report = Callable[[str, int, int], None]  # what is done now, the steps done, and their number
_DIVERGED = 1e3  # times the loss at the start


@dataclass(frozen=True)
class LinearisedPoint:
    """Where a linearised network is."""

    outputs: Tensor  # (N, C)
    weights: dict[str, Tensor]  # those that are trained
    velocity: dict[str, Tensor]  # of the optimiser; empty without momentum


class Linearisation:
    """A network linearised at its weights; it keeps a copy of them."""

    def __init__(
        self,
        network: Network,
        kernel: TangentKernel,
        loss: OutputLoss,
        *,
        inputs: list[Tensor],
        velocity: Mapping[str, Tensor],
        step: int,
    ) -> None:
        self.kernel = kernel
        self._network = replace(network, trained=clone(network.trained))
        self._loss, self._inputs, self._velocity, self._step = loss, inputs, velocity, step
        self._squared: ClosedForm | None = None
        self._state: LinearisedState | None = None

    def start(self, settings: SGDSettings) -> Start:
        """Return where training in the space of outputs starts."""
        decay = self._image(self._network.trained) if settings.weight_decay else None
        velocity = self._image(self._velocity) if self._velocity else None
        return Start(self.kernel.outputs, self._step, velocity=velocity, image=decay)

    def losses(self, settings: SGDSettings, *, steps: int, closed_form: bool) -> Iterator[float]:
        """Yield the losses after 1, 2, ... `steps` steps."""
        if closed_form:
            residual = self._loss.slope(self.kernel.outputs)[1] * len(self.kernel.outputs)
            self._squared = ClosedForm(self.kernel, residual, rate=settings.rate(0))
            losses = self._squared.losses(steps)
            next(losses)
            yield from losses
            return
        start = self.start(settings)
        for state in train_linearised(
            self.kernel, self._loss, start=start, settings=settings, steps=steps
        ):
            first, self._state = self._state is None, state
            if not first:
                yield state.loss

    def after(self, steps: int, *, momentum: bool) -> LinearisedPoint:
        """Return where it is after the last loss, which is that after `steps` steps."""
        if self._squared is not None:
            outputs, at = self._squared.after(steps)
            return LinearisedPoint(outputs, self._combined(at), {})
        if self._state is None:
            raise ValueError("There is no loss yet: ask after the first one.")
        state = self._state
        velocity = self._combined(state.velocity) if momentum else {}
        return LinearisedPoint(state.outputs, self._combined(state.weights), velocity)

    def _combined(self, at: Combination) -> dict[str, Tensor]:
        """The tensors that a combination stands for."""
        found = self._pull(at.dual)
        for name, value in found.items():
            value.add_(self._network.trained[name], alpha=at.weights)
            if name in self._velocity:
                value.add_(self._velocity[name].to(value), alpha=at.velocity)
        return found

    def _image(self, direction: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([self._network.image(direction, x) for x in self._inputs])

    def _pull(self, dual: Tensor) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(value) for name, value in self._network.trained.items()}
        ends = accumulate(len(x) for x in self._inputs)
        for x, end in zip(self._inputs, ends, strict=True):
            for name, value in self._network.pull(dual[end - len(x) : end], x).items():
                total[name] += value
        return total


@dataclass
class LossCurve:
    """Losses over the data, step by step, and their means over the latest steps."""

    window: int
    raw: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Append the loss after one more step."""
        self.raw.append(value)
        self.means.append(statistics.fmean(self.raw[-self.window :]))

    def correct(self, value: float) -> None:
        """Put another loss in the place of the last one."""
        self.raw.pop()
        self.means.pop()
        self.add(value)

    @property
    def steps(self) -> int:
        """How many steps led to the last loss."""
        return len(self.raw) - 1

    @property
    def diverged(self) -> bool:
        """Whether the last loss is beyond all bounds."""
        return not math.isfinite(self.raw[-1]) or self.raw[-1] > _DIVERGED * self.raw[0]


@dataclass
class LinearisedTraining:
    """A model whose own tensors may be changed, and what it is trained on."""

    plan: PredictionPlan
    real: RealTraining  # real steps
    batches: list[tuple[Tensor, Tensor]]
    output_loss: OutputLoss
    report: Report
    kernel_seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)  # of each linearisation, at its end
    sharpest: float = 0.0  # largest eigenvalue of the linearisations

    @classmethod
    def of(cls, task: Task, plan: PredictionPlan, report: Report) -> "LinearisedTraining":
        """Gather the data, and check that the loss is one of outputs and targets."""
        batches = _pairs(task.data, task.device)
        network = Network.of(task.model, dtype=plan.dtype)
        shape = network.outputs(batches[0][0]).shape
        inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        if task.loss is classification_loss or task.loss is squared_loss:
            _check_classes(targets, shape)
        cast = targets.to(network.dtype) if targets.is_floating_point() else targets
        real = RealTraining(task.model, task.loss, (inputs, targets), plan.settings)
        training = cls(plan, real, batches, OutputLoss(task.loss, cast, shape), report)
        training._check_loss()
        return training

    def _network(self) -> Network:
        """The model as it is now."""
        return Network.of(self.real.model, dtype=self.plan.dtype)

    def outputs(self) -> Tensor:
        """Return the outputs (N, C) of the model as it is now."""
        network = self._network()
        return torch.cat([network.outputs(x).reshape(len(x), -1) for x, _ in self.batches])

    def loss(self) -> float:
        """Return the loss over the data of the model as it is now."""
        return self.output_loss.value(self.outputs()).item()

    def _kernel(self) -> TangentKernel:
        """Return the kernel of the model as it is now."""
        kernel = tangent_kernel(
            Task(self.real.model, self.batches),
            outputs=self.plan.outputs,
            dtype=self.plan.dtype,
            memory=self.plan.memory,
            progress=lambda done, total: self.report("kernel", done, total),
        )
        self.kernel_seconds += kernel.seconds
        return kernel

    def descend(
        self, first: Linearisation, curve: LossCurve, *, levels: list[float], steps: int
    ) -> None:
        """Train from here; where the loss falls to a level, see whether to linearise again.

        Args:
            first: The linearisation to begin with.
            curve: Gets the losses; holds those of real steps before.
            levels: Falling losses; the last one is where to stop.
            steps: Where to stop at the latest.
        """
        curve.add(self.output_loss.value(first.kernel.outputs).item())
        here, coming, since = first, self._losses(first, curve, steps), curve.steps
        for level in levels:
            if curve.means[-1] <= level:
                continue
            self._append(coming, curve, level=level, steps=steps)
            if curve.diverged:
                self.gaps.append(math.inf)
                return
            there = here.after(curve.steps - since, momentum=bool(self.plan.momentum))
            gap = self._gap(there, here.kernel.outputs)
            if level == levels[-1] or curve.steps >= steps:
                self.gaps.append(gap)
                return
            if gap > self.plan.tolerance:
                self.gaps.append(gap)
                here = self.linearisation(there.velocity, step=curve.steps)
                coming, since = self._losses(here, curve, steps), curve.steps
                curve.correct(self.output_loss.value(here.kernel.outputs).item())

    def linearisation(self, velocity: dict[str, Tensor], *, step: int) -> Linearisation:
        """Return the linearisation of the model as it is now."""
        kernel = self._kernel()
        inputs = [x for x, _ in self.batches]
        self.sharpest = max(self.sharpest, largest_eigenvalue(kernel, self.output_loss))
        return Linearisation(
            self._network(), kernel, self.output_loss, inputs=inputs, velocity=velocity, step=step
        )

    def _losses(self, here: Linearisation, curve: LossCurve, steps: int) -> Iterator[float]:
        # Eigenvectors pay for the many steps of a linearisation that holds, not for a few.
        closed_form = self.closed_form and not self.gaps
        return here.losses(self.real.settings, steps=steps - curve.steps, closed_form=closed_form)

    def _append(
        self, losses: Iterator[float], curve: LossCurve, *, level: float, steps: int
    ) -> None:
        """Append losses until one is at the level."""
        for value in losses:
            curve.add(value)
            self.report("descent", curve.steps, steps)
            if curve.means[-1] <= level or curve.diverged:
                return

    def _gap(self, there: LinearisedPoint, before: Tensor) -> float:
        """Put weights into the model, and return how far its outputs are from the predicted."""
        load_weights_(self.real.model, there.weights)
        return ratio(self.outputs() - there.outputs, there.outputs - before)

    @property
    def closed_form(self) -> bool:
        """Whether the losses have a closed form."""
        settings = self.real.settings
        return (
            self.real.loss is squared_loss
            and isinstance(settings.lr, int | float)
            and not settings.momentum
            and not settings.weight_decay
            and settings.is_full(len(self.real.data[0]))
        )

    def _check_loss(self) -> None:
        """Raise unless the loss is a function of the outputs."""
        with torch.no_grad():
            real, again = (self.real.loss(self.real.model, self.real.data).item() for _ in range(2))
        if not math.isclose(real, again, rel_tol=1e-5) and math.isfinite(real):
            raise ValueError(
                f"loss is not deterministic: two evaluations gave {real:.6g} and {again:.6g} in "
                "eval mode. Switch off what is random there, such as functional dropout without "
                "training=self.training."
            )
        alone = self.loss()
        if not math.isfinite(real):
            raise ValueError(f"The loss over the data is {real} at the start.")
        if not math.isclose(real, alone, rel_tol=1e-3, abs_tol=1e-6):
            raise ValueError(
                f"loss must depend on the model by its outputs alone: over the data it is "
                f"{real:.6g}, but {alone:.6g} of the same outputs without the model. A penalty on "
                "the weights goes into weight_decay."
            )


def ratio(part: Tensor, whole: Tensor) -> float:
    """Return the length of a part relative to that of the whole; 0 if both are nothing."""
    length = float(whole.norm())
    return float(part.norm()) / length if length else 0.0


def _pairs(data: Iterable[Batch], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    found = []
    for number, batch in enumerate(data):
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        if not pair or not all(isinstance(part, Tensor) for part in batch):
            raise ValueError(
                f"A batch must be (inputs, targets), two tensors; batch {number} (counted from 0) "
                f"is a {type(batch).__name__}."
            )
        inputs, targets = to_device(batch, device)
        for name, part in (("inputs", inputs), ("targets", targets)):
            if part.is_floating_point() and not part.isfinite().all():
                raise ValueError(
                    f"The {name} of batch {number} (counted from 0) are not all finite."
                )
        if len(inputs):
            found.append((inputs, targets))
    if not found:
        raise ValueError("data is empty: there is no example.")
    return found


def _check_classes(targets: Tensor, shape: torch.Size) -> None:
    """Raise if a label is not a class of the model."""
    if targets.is_floating_point() or len(shape) != 2:
        return
    if wrong := [label for label in targets.flatten().tolist() if not 0 <= label < shape[1]]:
        raise ValueError(
            f"targets must be classes from 0 to {shape[1] - 1}, as the model has {shape[1]} "
            f"outputs; one is {wrong[0]}."
        )
