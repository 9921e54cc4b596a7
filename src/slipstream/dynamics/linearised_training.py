"""A network that is trained by its linearisations: one at the start, or several along the way."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn

from slipstream.dynamics.descent import Descent, Walk
from slipstream.dynamics.function_space import (
    Combination,
    OutputLoss,
    SquaredDescent,
    Start,
    follow,
)
from slipstream.dynamics.jacobians import Network
from slipstream.dynamics.tangent_kernel import Outputs, TangentKernel, tangent_kernel
from slipstream.evaluation import (
    Batch,
    Loss,
    classification_loss,
    device_of,
    squared_loss,
    to_device,
)

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


@dataclass(frozen=True)
class End:
    """Where a linearised network got to."""

    outputs: Tensor  # (N, C)
    place: Combination
    speed: Combination | None  # None without momentum


@dataclass
class LinearisedTraining:
    """A model whose own tensors may be changed, and what it is trained on."""

    walk: Walk  # real steps
    batches: list[tuple[Tensor, Tensor]]
    output_loss: OutputLoss
    outputs_kind: Outputs
    dtype: torch.dtype | None
    memory: int
    say: Say
    kernel_seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)  # of each linearisation, at its end

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
            say,
        )
        training._check_loss()
        return training

    @property
    def network(self) -> Network:
        """The model as it is now."""
        return Network.of(self.walk.model, dtype=self.dtype)

    def outputs(self) -> Tensor:
        """Return the outputs (N, C) of the model as it is now."""
        network = self.network
        return torch.cat([network.outputs(x).reshape(len(x), -1) for x, _ in self.batches])

    def loss(self) -> float:
        """Return the loss over the data of the model as it is now."""
        return self.output_loss.value(self.outputs()).item()

    def linearise(self) -> TangentKernel:
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

    def start(self, kernel: TangentKernel, velocity: dict[str, Tensor], *, step: int) -> Start:
        """Return where the linearised network sets out: here, and as fast as the optimiser is."""
        network = self.network
        return Start(
            kernel.outputs,
            step,
            velocity=self._image(network, velocity) if velocity else None,
            image=self._image(network, network.trained) if self.walk.descent.weight_decay else None,
        )

    def descend(
        self, kernel: TangentKernel, curve: Curve, *, levels: list[float], steps: int
    ) -> None:
        """Train from here, with a new linearisation wherever the loss has fallen to a level.

        Args:
            kernel: Of the model as it is now.
            curve: Gets the losses; holds those of real steps before.
            levels: Falling losses; the last one is where to stop.
            steps: Where to stop at the latest.
        """
        velocity = dict(self.walk.velocity)
        curve.add(self.output_loss.value(kernel.outputs).item())
        new = kernel
        for level in levels:
            if curve.means[-1] <= level:
                continue
            if self.gaps:
                new = self.linearise()
            start = self.start(new, velocity, step=curve.steps)
            end = self._follow(new, start, curve, level=level, steps=steps)
            velocity = self._move(end, velocity)
            if not curve.diverged:
                real = self.outputs()
                self.gaps.append(ratio(real - end.outputs, end.outputs - start.outputs))
                # The linearised loss is the closed form's; what comes next sets out from the real.
                if level is not levels[-1] and curve.means[-1] <= level:
                    curve.correct(self.output_loss.value(real).item())
            if curve.diverged or curve.steps >= steps:
                return

    def _follow(
        self, kernel: TangentKernel, start: Start, curve: Curve, *, level: float, steps: int
    ) -> End:
        """Append losses until one is at the level."""
        descent, left = self.walk.descent, steps - curve.steps
        if self.closed_form:
            residual = self.output_loss.slope(kernel.outputs)[1] * len(kernel.outputs)
            squared = SquaredDescent(kernel, residual, rate=descent.rate(0))
            taken = self._append(squared.losses(left), curve, level=level, steps=steps)
            moved, place = squared.after(taken)
            return End(kernel.outputs + moved, place, None)
        paths = follow(kernel, self.output_loss, start=start, descent=descent, steps=left)
        latest = [next(paths)]

        def losses() -> Iterator[float]:
            yield latest[0].loss
            for path in paths:
                latest[0] = path
                yield path.loss

        self._append(losses(), curve, level=level, steps=steps)
        path = latest[0]
        return End(path.outputs, path.place, path.speed if descent.momentum else None)

    def _append(self, losses: Iterator[float], curve: Curve, *, level: float, steps: int) -> int:
        """Append losses but the first, which is there; return how many."""
        next(losses)
        before = curve.steps
        for value in losses:
            curve.add(value)
            self.say("descent", curve.steps, steps)
            if curve.means[-1] <= level or curve.diverged:
                break
        return curve.steps - before

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

    @torch.no_grad()
    def _move(self, end: End, velocity: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put the weights at the end into the model; return the velocity there."""
        network = self.network
        places = self._pull(network, end.place)
        speeds = self._pull(network, end.speed) if end.speed else {}
        found = {}
        for name, weight in self.walk.model.named_parameters():
            if name not in network.trained:
                continue
            first, fast = network.trained[name].clone(), velocity.get(name)
            found[name] = _combined(end.speed, first, fast, speeds.get(name))
            weight.copy_(_combined(end.place, first, fast, places[name]))
        return found if end.speed else {}

    def _image(self, network: Network, direction: dict[str, Tensor]) -> Tensor:
        return torch.cat([network.image(direction, x) for x, _ in self.batches])

    def _pull(self, network: Network, at: Combination) -> dict[str, Tensor]:
        ends = list(accumulate(len(x) for x, _ in self.batches))
        total: dict[str, Tensor] = {}
        for (x, _), end in zip(self.batches, ends, strict=True):
            dual = at.dual[end - len(x) : end]
            for name, value in network.pull(dual, x).items():
                total[name] = total[name] + value if name in total else value
        return total

    def _check_loss(self) -> None:
        """Raise unless the loss is a function of the outputs."""
        with torch.no_grad():
            real = self.walk.loss(self.walk.model, self.walk.data).item()
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


def _combined(
    at: Combination | None, weight: Tensor, velocity: Tensor | None, pulled: Tensor | None
) -> Tensor:
    """The tensor that a combination stands for."""
    found = torch.zeros_like(weight) if pulled is None else pulled
    if at is not None:
        found = found.add(weight, alpha=at.weights)
        if velocity is not None:
            found = found.add(velocity.to(weight), alpha=at.velocity)
    return found


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
