"""Training in the space of outputs, where the linearised network is a kernel and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slipstream.dynamics.sgd import SGDSettings
from slipstream.dynamics.tangent_kernel import TangentKernel
from slipstream.evaluation import Loss

_CHUNK = 1 << 18  # values that the closed form works on at once


class OutputLoss:
    """The loss over some examples as a function of their outputs alone."""

    def __init__(self, loss: Loss, targets: Tensor, shape: torch.Size) -> None:
        self._loss, self._targets, self._shape = loss, targets, shape
        self._stand_in = _GivenOutputs()

    def value(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the mean loss of outputs (n, C), those of the examples `rows` or of all."""
        targets = self._targets if rows is None else self._targets[rows]
        self._stand_in.outputs = outputs.view(len(outputs), *self._shape[1:])
        # The loss calls its model on inputs that are ignored: it gets these outputs.
        return self._loss(self._stand_in, (outputs, targets))

    def slope(self, outputs: Tensor, rows: Tensor | None = None) -> tuple[float, Tensor]:
        """Return the mean loss and its gradient by the outputs."""
        with torch.enable_grad():
            at = outputs.detach().requires_grad_()
            value = self.value(at, rows)
            (slope,) = torch.autograd.grad(value, at)
        return value.item(), slope

    def curvature_times(self, outputs: Tensor, direction: Tensor) -> Tensor:
        """Return the Hessian of the mean loss by the outputs, times a direction."""
        with torch.enable_grad():
            at = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.value(at), at, create_graph=True)
            if not slope.requires_grad:  # a loss that is linear in the outputs
                return torch.zeros_like(outputs)
            (found,) = torch.autograd.grad(slope, at, direction, materialize_grads=True)
        return found


class _GivenOutputs(nn.Module):
    """Stands where a loss expects its model, and returns the outputs that it was given."""

    outputs: Tensor

    def forward(self, *_: object) -> Tensor:
        return self.outputs


@dataclass(frozen=True)
class Start:
    """Where the training of a linearised network starts."""

    outputs: Tensor  # (N, C)
    step: int = 0  # steps that were taken before
    velocity: Tensor | None = None  # (N, C): J times the optimiser's velocity
    image: Tensor | None = None  # (N, C): J times the weights, for weight decay


@dataclass(frozen=True)
class Combination:
    """A vector in the space of weights, by what the linearised network knows of that space.

    It is `weights * w_0 + velocity * v_0 + J^T dual`, with the weights and the optimiser's
    velocity at the start.
    """

    weights: float
    velocity: float
    dual: Tensor  # (N, C)

    def plus(self, other: "Combination", scale: float) -> "Combination":
        """Return the sum with a multiple of another."""
        return Combination(
            self.weights + scale * other.weights,
            self.velocity + scale * other.velocity,
            self.dual + scale * other.dual,
        )


@dataclass
class LinearisedState:
    """The linearised network while it is trained."""

    loss: float
    outputs: Tensor  # (N, C)
    weights: Combination
    velocity: Combination  # of its optimiser


def train_linearised(
    kernel: TangentKernel, loss: OutputLoss, *, start: Start, settings: SGDSettings, steps: int
) -> Iterator[LinearisedState]:
    """Train the linearised network, and yield its state after 0, 1, ... steps.

    Each step is `v <- m v + Theta g + wd (J w_0 + f - f_0)` and `f <- f - eta v`, where `g` is the
    gradient of the loss of the batch by the outputs, zero at examples outside the batch.

    Args:
        kernel: Of the network at the start.
        loss: As a function of the outputs.
        start: Where to start.
        settings: How it is trained.
        steps: How many.

    Yields:
        A new state after each step.
    """
    examples = len(start.outputs)
    none = torch.zeros_like(start.outputs)
    weights, momentum = Combination(1.0, 0.0, none), Combination(0.0, 1.0, none)
    outputs, velocity = start.outputs, none if start.velocity is None else start.velocity
    full, decay = settings.is_full(examples), settings.weight_decay
    value, slope = loss.slope(outputs)
    yield LinearisedState(value, outputs, weights, momentum)
    for step in range(start.step, start.step + steps):
        if full:
            moved = kernel.times(slope)
        else:
            rows = settings.rows(step, examples).to(outputs.device)
            partial = loss.slope(outputs[rows], rows)[1]
            moved, slope = kernel.columns(rows, partial), none.index_copy(0, rows, partial)
        if start.image is not None:
            moved = moved + decay * (start.image + outputs - start.outputs)
        velocity = settings.momentum * velocity + moved
        pulled = Combination(0.0, 0.0, slope)
        momentum = pulled.plus(momentum, settings.momentum).plus(weights, decay)
        rate = settings.rate(step)
        outputs, weights = outputs - rate * velocity, weights.plus(momentum, -rate)
        if full:
            value, slope = loss.slope(outputs)
        else:
            value = loss.value(outputs).item()
        yield LinearisedState(value, outputs, weights, momentum)


class ClosedForm:
    """The linearised network under the squared loss, at any step by the closed form.

    With `Theta = U diag(lambda) U^T`, residual `r = f_0 - Y`, full batches and a constant rate, the
    residual after t steps is `U (1 - eta lambda / N)^t U^T r`.
    """

    def __init__(self, kernel: TangentKernel, residual: Tensor, *, rate: float) -> None:
        values, self._vectors = torch.linalg.eigh(kernel.blocks.double())
        self._kernel, self._rate, self._examples = kernel, rate, len(residual)
        self._values = values[:, :, None]  # (blocks, rows, 1)
        self._parts = self._vectors.mT @ kernel.split(residual.double())
        self._factors = 1 - rate * self._values / self._examples

    def losses(self, steps: int) -> Iterator[float]:
        """Yield the losses after 0, 1, ... `steps` steps."""
        factors, parts = self._factors.flatten().square(), self._parts.flatten().square()
        chunk = max(1, _CHUNK // len(factors))
        for first in range(0, steps + 1, chunk):
            times = torch.arange(first, min(first + chunk, steps + 1), device=factors.device)
            found = factors.pow(times[:, None]) @ parts / (2 * self._examples)
            yield from found.tolist()

    def after(self, steps: int) -> tuple[Tensor, Combination]:
        """Return the outputs after some steps, (N, C), and the weights."""
        gone = 1 - self._factors.pow(steps)
        # The sum of the factors' powers, (1 - factor^t) / (1 - factor); t where lambda is 0.
        shares = self._rate * self._values / self._examples
        sums = torch.where(shares.abs() < 1e-12, float(steps), gone / shares)
        dual = self._vectors @ (sums * self._parts) * (-self._rate / self._examples)
        moved = self._vectors @ (-gone * self._parts)
        outputs = self._kernel.outputs
        return (
            outputs + self._kernel.joined(moved).to(outputs),
            Combination(1.0, 0.0, self._kernel.joined(dual).to(outputs)),
        )


def largest_eigenvalue(kernel: TangentKernel, loss: OutputLoss, *, seed: int = 0) -> float:
    """Return the largest eigenvalue of `Theta H`, H the Hessian of the mean loss by the outputs.

    It is that of the Gauss-Newton matrix `J^T H J`: gradient descent with momentum m is stable
    there for rates below `2 (1 + m) / eigenvalue`.

    Args:
        kernel: Of a network.
        loss: As a function of its outputs.
        seed: Of the direction that the power iteration starts with.

    Returns:
        The eigenvalue to about one part in a thousand.
    """
    outputs = kernel.outputs
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(outputs.shape, generator=generator).to(outputs)
    found = 0.0
    for _ in range(200):
        moved = kernel.times(direction)
        length = float((direction * moved).sum())
        curved = loss.curvature_times(outputs, moved)
        if length <= 0 or not (size := float(curved.norm())):
            return 0.0
        # The Rayleigh quotient in the inner product of the kernel, in which H Theta is symmetric.
        before, found = found, float((moved * curved).sum()) / length
        if abs(found - before) < 1e-5 * found:
            break
        direction = curved / size
    return found
