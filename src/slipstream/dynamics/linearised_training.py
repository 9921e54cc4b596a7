"""A network that is trained by its linearisations: one at the start, or several along the way."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from slipstream.dynamics.descent import Descent, Walk
from slipstream.dynamics.function_space import OutputLoss, sharpness
from slipstream.dynamics.jacobians import Network
from slipstream.dynamics.linearisation import Linearisation, Place
from slipstream.dynamics.tangent_kernel import Outputs, TangentKernel, tangent_kernel
from slipstream.evaluation import (
    Batch,
    Loss,
    classification_loss,
    device_of,
    squared_loss,
    to_device,
)
from slipstream.weights import load_weights_

Say = Callable[[str, int, int], None]
_DIVERGED = 1e3  # times the loss at the start


@dataclass
class Curve:
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

    walk: Walk  # real steps
    batches: list[tuple[Tensor, Tensor]]
    output_loss: OutputLoss
    outputs_kind: Outputs
    dtype: torch.dtype | None
    memory: int
    tolerance: float  # of a linearisation's gap, at a level
    say: Say
    kernel_seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)  # of each linearisation, at its end
    sharpest: float = 0.0  # of the linearisations

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss: Loss,
        data: Iterable[Batch],
        *,
        descent: Descent,
        outputs: Outputs,
        dtype: torch.dtype | None,
        memory: int,
        tolerance: float,
        say: Say,
    ) -> "LinearisedTraining":
        """Gather the data, and check that the loss is one of outputs and targets."""
        batches = _pairs(data, device_of(model))
        network = Network.of(model, dtype=dtype)
        shape = network.outputs(batches[0][0]).shape
        inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        if loss is classification_loss or loss is squared_loss:
            _check_classes(targets, shape)
        cast = targets.to(network.dtype) if targets.is_floating_point() else targets
        training = cls(
            Walk(model, loss, (inputs, targets), descent),
            batches,
            OutputLoss(loss, cast, shape),
            outputs,
            dtype,
            memory,
            tolerance,
            say,
        )
        training._check_loss()
        return training

    def _network(self) -> Network:
        """The model as it is now."""
        return Network.of(self.walk.model, dtype=self.dtype)

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
            self.walk.model,
            data=self.batches,
            outputs=self.outputs_kind,
            dtype=self.dtype,
            memory=self.memory,
            progress=lambda done, total: self.say("kernel", done, total),
        )
        self.kernel_seconds += kernel.seconds
        return kernel

    def descend(
        self, first: Linearisation, curve: Curve, *, levels: list[float], steps: int
    ) -> None:
        """Train from here; where the loss falls to a level, see whether to linearise anew.

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
            place = here.place(curve.steps - since, momentum=bool(self.walk.descent.momentum))
            gap = self._gap(place, here.kernel.outputs)
            if level == levels[-1] or curve.steps >= steps:
                self.gaps.append(gap)
                return
            if gap > self.tolerance:
                self.gaps.append(gap)
                here = self.linearisation(place.velocity, step=curve.steps)
                coming, since = self._losses(here, curve, steps), curve.steps
                curve.correct(self.output_loss.value(here.kernel.outputs).item())

    def linearisation(self, velocity: dict[str, Tensor], *, step: int) -> Linearisation:
        """Return the linearisation of the model as it is now."""
        kernel = self._kernel()
        inputs = [x for x, _ in self.batches]
        self.sharpest = max(self.sharpest, sharpness(kernel, self.output_loss))
        return Linearisation(
            self._network(), kernel, self.output_loss, inputs=inputs, velocity=velocity, step=step
        )

    def _losses(self, here: Linearisation, curve: Curve, steps: int) -> Iterator[float]:
        # Eigenvectors pay for the many steps of a linearisation that holds, not for a few.
        closed_form = self.closed_form and not self.gaps
        return here.losses(self.walk.descent, steps=steps - curve.steps, closed_form=closed_form)

    def _append(self, losses: Iterator[float], curve: Curve, *, level: float, steps: int) -> None:
        """Append losses until one is at the level."""
        for value in losses:
            curve.add(value)
            self.say("descent", curve.steps, steps)
            if curve.means[-1] <= level or curve.diverged:
                return

    def _gap(self, place: Place, before: Tensor) -> float:
        """Put weights into the model, and return how far its outputs are from the predicted."""
        load_weights_(self.walk.model, place.weights)
        return ratio(self.outputs() - place.outputs, place.outputs - before)

    @property
    def closed_form(self) -> bool:
        """Whether the losses have a closed form."""
        descent = self.walk.descent
        return (
            self.walk.loss is squared_loss
            and isinstance(descent.lr, int | float)
            and not descent.momentum
            and not descent.weight_decay
            and descent.is_full(len(self.walk.data[0]))
        )

    def _check_loss(self) -> None:
        """Raise unless the loss is a function of the outputs."""
        with torch.no_grad():
            real, again = (self.walk.loss(self.walk.model, self.walk.data).item() for _ in range(2))
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
    """Raise if a label is no class of the model."""
    if targets.is_floating_point() or len(shape) != 2:
        return
    if wrong := [label for label in targets.flatten().tolist() if not 0 <= label < shape[1]]:
        raise ValueError(
            f"targets must be classes from 0 to {shape[1] - 1}, as the model has {shape[1]} "
            f"outputs; one is {wrong[0]}."
        )
