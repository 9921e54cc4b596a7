"""A model with disturbed weights, and what it computes from them, in float64."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from slipstream.symmetry.capture import ExampleInput, call_with
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import weights_of

EXAMPLES = 8  # of a batch are enough, two if they are large, one if it is very large
LARGE = 2**14  # numbers of all of them together
LAST_BIT = 2.0**-52
LOW_PRECISION = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Trial:
    """A model with disturbed weights: gains, biases and statistics differ for every neuron."""

    model: nn.Module
    groups: NeuronGroups
    example_input: ExampleInput  # float64
    tensors: Mapping[str, Tensor]  # all tensors of the model, disturbed, float64
    outputs: Sequence[Tensor] = ()
    effects: Mapping[str, float] = field(default_factory=dict)  # |weight * derivative| of weights

    @classmethod
    def prepare(
        cls, model: nn.Module, groups: NeuronGroups, example_input: ExampleInput, *, seed: int
    ) -> "Trial":
        """Disturb the weights, and evaluate the model on a few of the examples.

        Args:
            model: In evaluation mode.
            groups: Whose tensors' effects on the output are measured.
            example_input: A batch; all of it is used if the model does not accept a part.
            seed: Of the disturbance.

        Returns:
            The trial.
        """
        few = _first_examples(example_input)
        try:
            return cls._on(model, groups, few, seed)
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
            return cls._on(model, groups, example_input, seed)

    @classmethod
    def _on(
        cls, model: nn.Module, groups: NeuronGroups, example_input: ExampleInput, seed: int
    ) -> "Trial":
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        tensors = {name: _to_double(tensor.detach(), copy=True) for name, tensor in own.items()}
        trial = cls(model, groups, tree_map(_to_double, example_input), tensors)
        with torch.no_grad():
            _measure_statistics_(trial)
            tensors = _disturbed(tensors, weights_of(model), seed)
        return replace(trial, tensors=tensors)._with_effects()

    def evaluate(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the output tensors for other values of some tensors."""
        with _double_precision():
            result = call_with(self.model, {**self.tensors, **tensors}, self.example_input)
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def change(self, tensors: Mapping[str, Tensor]) -> float:
        """Return how far the outputs move, relative to the largest number of each."""
        with torch.no_grad():
            outputs = self.evaluate(tensors)
        changes = [_relative(*pair) for pair in zip(outputs, self.outputs, strict=True)]
        return max(changes, default=0.0)

    @cached_property
    def repeated(self) -> float:
        """How far a second evaluation moves the outputs."""
        return self.change({})

    @cached_property
    def rounding(self) -> float:
        """How far the outputs move when every weight is rounded up or down, in its last bit."""
        generator = torch.Generator().manual_seed(0)
        return self.change(
            {
                name: value * (1 + LAST_BIT * _signs(value.shape, generator).to(value))
                for name, value in self.tensors.items()
                if value.is_floating_point()
            }
        )

    def permuted(self, names: Sequence[str], *, seed: int) -> dict[str, Tensor]:
        """Return the tensors that move when every one of the named groups does."""
        drawn = Permutation.random(self.groups, seed=seed)
        orders = {
            name: _never_identity(order) if name in names else _identity(order)
            for name, order in drawn.orders.items()
        }
        signs = {name: _both(sign) for name, sign in drawn.signs.items() if name in names}
        moving = {b.tensor for name in names for b in self.groups.blocks_of(name)}
        own = {name: value for name, value in self.tensors.items() if name in moving}
        return Permutation(self.groups, orders, signs).apply(own)

    def _with_effects(self) -> "Trial":
        parameters = dict(self.model.named_parameters())
        names = [n for n in dict.fromkeys(b.tensor for b in self.groups.blocks) if n in parameters]
        own = {name: self.tensors[name].detach().requires_grad_() for name in names}
        with torch.enable_grad():
            outputs = self.evaluate(own)
            derivatives = _derivatives(outputs, list(own.values()))
        effects = {
            name: 0.0 if derivative is None else derivative.mul_(own[name].detach()).norm().item()
            for name, derivative in zip(names, derivatives, strict=True)
        }
        return replace(self, outputs=[output.detach() for output in outputs], effects=effects)


def with_noise(example_input: ExampleInput, *, seed: int) -> ExampleInput:
    """Return the input with other signs, and noise on it: the function must be the same there."""
    generator = torch.Generator().manual_seed(seed)

    def disturb(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        factor, noise = torch.randn(2, *leaf.shape, generator=generator).to(leaf)
        return torch.where(leaf.isfinite(), leaf * factor + noise, leaf)

    return tree_map(disturb, example_input)


def _first_examples(example_input: ExampleInput) -> ExampleInput:
    """A few examples, where all tensors of the input have as many rows."""
    tensors = [leaf for leaf in tree_leaves(example_input) if isinstance(leaf, Tensor)]
    lengths = {leaf.shape[0] if leaf.dim() else 0 for leaf in tensors}
    if len(lengths) != 1 or not (length := lengths.pop()):
        return example_input
    each = max(sum(leaf.numel() for leaf in tensors) // length, 1)
    count = 1 if each > LARGE else min(max(LARGE // each, 2), EXAMPLES)
    return tree_map(lambda leaf: leaf[:count] if isinstance(leaf, Tensor) else leaf, example_input)


def _derivatives(outputs: Iterable[Tensor], weights: list[Tensor]) -> list[Tensor | None]:
    """Of a weighted sum of all outputs; none where the model overwrites what they need."""
    terms = [
        (output * torch.linspace(0.5, 1.5, output.numel()).view_as(output)).sum()
        / output.detach().abs().max().clamp_min(1e-300)
        for output in outputs
        if output.requires_grad
    ]
    with suppress(RuntimeError):
        if terms:
            total = torch.stack(terms).sum()
            return list(torch.autograd.grad(total, weights, allow_unused=True))
    return [None] * len(weights)


def _measure_statistics_(trial: Trial) -> None:
    """Give untrained BatchNorm the statistics of the input; with 0 and 1 deep networks fade."""
    untrained = [
        module
        for module in trial.model.modules()
        if isinstance(module, _NormBase) and _is_constant(module.running_var)
    ]
    if not untrained:
        return
    momenta = [module.momentum for module in untrained]
    for module in untrained:
        module.train().momentum = 1.0
    # One value per channel has no variance: then the statistics stay 0 and 1.
    with suppress(ValueError):
        trial.evaluate({})
    for module, momentum in zip(untrained, momenta, strict=True):
        module.eval().momentum = momentum


def _is_constant(tensor: Tensor | None) -> bool:
    if tensor is None or tensor.numel() == 0:
        return False
    # A look at the beginning spares a pass over a large matrix.
    flat = tensor.flatten()
    return all(bool((part == flat[0]).all()) for part in (flat[:100], flat))


def _disturbed(tensors: Mapping[str, Tensor], names: Iterable[str], seed: int) -> dict[str, Tensor]:
    """Multiply vectors and constant tensors by U(.5, 1.5), or put that in the place of zeros."""
    generator = torch.Generator().manual_seed(seed)
    disturbed = dict(tensors)
    for name in names:
        value = tensors[name]
        if (
            value.numel()
            and value.is_floating_point()
            and (value.dim() == 1 or _is_constant(value))
        ):
            noise = torch.rand(value.shape, generator=generator).to(value) + 0.5
            disturbed[name] = value * noise if value.abs().max() > 1e-3 else noise
    return disturbed


def _relative(output: Tensor, reference: Tensor) -> float:
    if output.numel() == 0:
        return 0.0
    change = (output.double() - reference.double()).abs().max()
    return float(change / reference.double().abs().max().clamp_min(1e-300))


def _signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(2, tuple(shape), generator=generator) * 2 - 1


def _identity(order: Tensor) -> Tensor:
    return torch.arange(order.shape[-1]).expand(order.shape)


def _never_identity(order: Tensor) -> Tensor:
    """The order, but one place further where it would move nothing."""
    idle = (order == _identity(order)).all(-1, keepdim=True)
    return torch.where(idle, order.roll(1, -1), order)


def _both(signs: Tensor) -> Tensor:
    """The signs, the first one opposite to the last, so that not all are equal."""
    return torch.cat([-signs[..., -1:], signs[..., 1:]], -1)


def _to_double(value: Any, *, copy: bool = False) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(torch.float64 if value.is_floating_point() else value.dtype, copy=copy)


class _InDoublePrecision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets `x.float()` inside a model keep float64."""

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        wide = {
            key: torch.float64 if isinstance(v, torch.dtype) and v in LOW_PRECISION else v
            for key, v in (kwargs or {}).items()
        }
        return func(*args, **wide)


@contextmanager
def _double_precision() -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _InDoublePrecision():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)
