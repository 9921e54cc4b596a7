"""Gradients: taken on batches, dense or as the two factors that a linear layer's gradient has."""

import contextlib
import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slipstream.deprecated import moved_names
from slipstream.evaluation import Batch, Loss, batch_size, eval_mode, weights_in
from slipstream.evaluation.batches import sized_batches
from slipstream.evaluation.metrics import checked_loss
from slipstream.weights import Weights

__getattr__ = moved_names(__name__)  # of version 0.1
P = ParamSpec("P")
T = TypeVar("T")


def without_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function compute in its tensors' own precision, whatever its caller autocasts to."""

    @functools.wraps(function)
    def run(*args: P.args, **named: P.kwargs) -> T:
        with contextlib.ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **named)

    return run


@dataclass(frozen=True)
class LowRank:
    """The matrix `left.T @ right`: output gradients and inputs of a linear layer, row by row."""

    left: Tensor  # (rows, outputs)
    right: Tensor  # (rows, inputs)

    @without_autocast
    def dense(self) -> Tensor:
        """Return the matrix itself, (outputs, inputs)."""
        return self.left.T @ self.right

    def factor(self, axis: int) -> Tensor:
        """Return the factor that lies along an axis of the matrix."""
        return self.right if axis else self.left

    def along(self, axis: int, change: Callable[[Tensor], Tensor]) -> "LowRank":
        """Return the gradient with another factor along an axis of the matrix."""
        sides = [self.left, self.right]
        sides[axis] = change(sides[axis])
        return LowRank(*sides)

    def numel(self) -> int:
        """Return how many values the two factors hold."""
        return self.left.numel() + self.right.numel()


Gradient = Tensor | LowRank


def dense(gradient: Gradient) -> Tensor:
    """Return the gradient as a plain tensor."""
    return gradient.dense() if isinstance(gradient, LowRank) else gradient


def dtype_of(gradient: Gradient) -> torch.dtype:
    """Return the dtype of a gradient, plain or low-rank."""
    return gradient.left.dtype if isinstance(gradient, LowRank) else gradient.dtype


def wide(gradient: Gradient) -> Tensor:
    """Return the gradient as a plain tensor in float32 or better, where sums are exact enough."""
    value = dense(gradient)
    return value.to(torch.promote_types(value.dtype, torch.float32))


def parts(value: Tensor) -> Tensor:
    """Return a view of the real and imaginary parts of complex values, along a new last axis."""
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def as_real(gradient: Gradient) -> Gradient:
    """Return a gradient, or the parts of a complex one."""
    return parts(dense(gradient)) if dtype_of(gradient).is_complex else gradient


@without_autocast
def inner_product(first: Gradient, second: Gradient) -> float:
    """Return the inner product of two gradients of one tensor, without forming low-rank ones."""
    first, second = as_real(first), as_real(second)
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        rows = (first.left @ second.left.T) * (first.right @ second.right.T)
        return float(rows.sum(dtype=torch.float64))
    # In pieces: the products of a large tensor are never all there.
    pieces = zip(*(torch.split(dense(g).flatten(), 1 << 22) for g in (first, second)), strict=True)
    return sum(float((wide(a) * wide(b)).sum(dtype=torch.float64)) for a, b in pieces)


def scaled(gradient: Gradient, factor: float) -> Gradient:
    """Return the gradient times a number."""
    if isinstance(gradient, LowRank):
        return LowRank(gradient.left * factor, gradient.right)
    return gradient * factor


@dataclass
class GradientSampler:
    """Takes gradients of one loss at many weights; linear layers as factors where that is smaller.

    The weight gradient of a linear layer is `outputs' gradients.T @ inputs`. With fewer rows than
    the matrix is wide, the two factors are smaller than the product and comparing them is cheaper.
    A layer whose weight is also used in another way would be wrong: the first gradient is therefore
    taken both ways and compared, and such a layer is kept dense.
    """

    model: nn.Module
    loss: Loss
    names: Collection[str]  # the parameters that are wanted
    factored: bool = True
    evaluations: int = 0  # gradients taken so far
    batch_size: Callable[[Batch], int] = batch_size  # what a batch weighs in the mean
    _layers: dict[str, nn.Linear] | None = field(default=None, repr=False)
    _verified: bool = field(default=False, repr=False)

    def sample(
        self, weights: Weights, batches: Sequence[Batch], *, batch_statistics: bool = False
    ) -> dict[str, Gradient]:
        """Return the gradient of the mean loss over `batches` at `weights`, in eval mode.

        Args:
            weights: Where; the model is left as it was.
            batches: Not necessarily of equal size.
            batch_statistics: Whether BatchNorm normalises by each batch, as in training.

        Returns:
            One gradient for every wanted parameter, in float32 or better. In a process group it is
            the mean over all processes, weighted by how many examples each one saw.

        Raises:
            ValueError: If there is no batch, or a loss is not finite.
        """
        self.evaluations += 1
        wanted = set(self.names)
        trained = {n: p for n, p in self.model.named_parameters() if n in wanted}
        frozen = [p for p in trained.values() if not p.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            with weights_in(self.model, weights), eval_mode(self.model), torch.enable_grad():
                for module in self.model.modules() if batch_statistics else ():
                    module.training = isinstance(module, _BatchNorm)
                return self._mean(trained, batches)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    def _mean(
        self, trained: dict[str, nn.Parameter], batches: Sequence[Batch]
    ) -> dict[str, Gradient]:
        parts: list[dict[str, Gradient]] = []
        sizes: list[int] = []
        for number, (batch, size) in enumerate(sized_batches(self.model, batches, self.batch_size)):
            parts.append(self._one(trained, batch, number, len(batches)))
            sizes.append(size)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return _mean_over_processes(parts, sizes)
        shares = [size / sum(sizes) for size in sizes]
        return {name: _mix([part[name] for part in parts], shares) for name in trained}

    def _one(
        self, trained: dict[str, nn.Parameter], batch: Batch, number: int, batches: int
    ) -> dict[str, Gradient]:
        with _Tape(self._linear_layers(trained)) as tape:
            value = checked_loss(self.loss(self.model, batch), number)
        taped = tape.worthwhile(batches)
        outputs = [tape.outputs[name] for name in taped]
        plain = {n: p for n, p in trained.items() if n not in taped or not self._verified}
        slopes = torch.autograd.grad(value, [*plain.values(), *outputs], materialize_grads=True)
        gradients: dict[str, Gradient] = {
            name: _contiguous(slope) for name, slope in zip(plain, slopes, strict=False)
        }
        for name, slope in zip(taped, slopes[len(plain) :], strict=True):
            factors = LowRank(
                _contiguous(slope).flatten(0, -2), _contiguous(tape.inputs[name]).flatten(0, -2)
            )
            if self._verified or self._agrees(name, factors, gradients[name]):
                gradients[name] = factors
        self._verified = True
        return {name: gradients[name] for name in trained}

    def _linear_layers(self, trained: dict[str, nn.Parameter]) -> dict[str, nn.Linear]:
        """Linear layers whose weight belongs to one module only."""
        if self._layers is None:
            owners: dict[int, int] = {}
            for _, parameter in self.model.named_parameters(remove_duplicate=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
            alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
            self._layers = {
                f"{name}.weight".lstrip("."): module
                for name, module in self.model.named_modules()
                if type(module) is nn.Linear and owners[id(module.weight)] == 1
            }
            if not (self.factored and alone):
                self._layers = {}
        return {name: layer for name, layer in self._layers.items() if name in trained}

    def _agrees(self, name: str, factors: LowRank, slope: Gradient) -> bool:
        """Whether the factors give the gradient that autograd gave; if not, never tape it again."""
        expected = dense(slope)
        if (factors.dense() - expected).norm() <= 1e-2 * expected.norm():
            return True
        del self._layers[name]  # type: ignore[union-attr]
        return False


class _Tape:
    """Keeps inputs and outputs of linear layers during one forward pass."""

    def __init__(self, layers: dict[str, nn.Linear]) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._layers = layers
        self._twice: set[str] = set()

    def __enter__(self) -> "_Tape":
        self._hooks = [
            layer.register_forward_hook(self._keeper(name)) for name, layer in self._layers.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def worthwhile(self, batches: int) -> list[str]:
        """The layers that ran once and whose factors, over all batches, are the smaller form."""
        return [
            name
            for name, inputs in self.inputs.items()
            if name not in self._twice
            and inputs.dim() > 1
            and batches * (inputs.numel() + self.outputs[name].numel())
            < self._layers[name].weight.numel()
        ]

    def _keeper(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if name in self.inputs:
                self._twice.add(name)
            self.inputs[name], self.outputs[name] = inputs[0].detach(), output

        return keep


def _contiguous(value: Tensor) -> Tensor:
    """In float32 or better, and in one piece: a stored gradient must multiply to the same bits."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32)).contiguous()


def _mix(parts: list[Gradient], shares: list[float]) -> Gradient:
    """The mean of the batches' gradients; factors are set below one another."""
    if all(isinstance(part, LowRank) for part in parts):
        left = torch.cat([p.left * share for p, share in zip(parts, shares, strict=True)])  # type: ignore[union-attr]
        return LowRank(left, torch.cat([part.right for part in parts]))  # type: ignore[union-attr]
    total = dense(parts[0]) * shares[0]
    for part, share in zip(parts[1:], shares[1:], strict=True):
        total += dense(part) * share
    return total


def _mean_over_processes(parts: list[dict[str, Gradient]], sizes: list[int]) -> dict[str, Gradient]:
    count = torch.tensor(float(sum(sizes)), device=dense(next(iter(parts[0].values()))).device)
    torch.distributed.all_reduce(count)
    shares = [size / count.item() for size in sizes]
    means = {name: _mix([part[name] for part in parts], shares) for name in parts[0]}
    for mean in means.values():
        torch.distributed.all_reduce(mean)
    return means
