"""A model with disturbed weights, and what it computes from them, in float64."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map

from slipstream.symmetry.capture import ExampleInput, call_with
from slipstream.symmetry.disturbance import (
    disturbed_statistics,
    disturbed_weights,
    raised_weights,
    random_signs,
)
from slipstream.symmetry.double_precision import double_precision, to_double
from slipstream.symmetry.eval_copy import in_mode
from slipstream.symmetry.neuron_groups import Block, NeuronGroups
from slipstream.symmetry.outputs import output_tensors
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.untouched import Memory
from slipstream.weights import weights_of

EXAMPLES = 8  # of a batch are enough, two if they are large, one if it is very large
LARGE = 2**14  # values of all of them together
LAST_BIT = 2.0**-52
FLAT = 1e-12  # of the largest value: an output that varies less is constant
MODES = (False, True)  # evaluation, training without chance


@dataclass(frozen=True)
class PerturbedModel:
    """A model with disturbed weights: gains, biases and statistics differ for every neuron."""

    model: nn.Module
    memory: Memory  # of what the model keeps, put back after every evaluation
    groups: NeuronGroups
    example_input: ExampleInput  # float64
    tensors: Mapping[str, Tensor]  # all tensors of the model, disturbed, float64
    modes: tuple[bool, ...] = (False,)  # in which it is evaluated: training or not
    outputs: Sequence[Tensor] = ()
    # |weight * derivative| of blocks, and of tensors by name, as far as there are derivatives
    effects: Mapping[Block | str, float] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        memory: Memory,
        groups: NeuronGroups,
        example_input: ExampleInput,
        *,
        seed: int,
        training: bool,
    ) -> "PerturbedModel":
        """Disturb the weights, and evaluate the model on a few of the examples.

        Args:
            model: In evaluation mode.
            memory: Of `model`.
            groups: Whose blocks' effects on the output are measured.
            example_input: A batch; all of it is used if the model does not accept a part.
            seed: Of the disturbance.
            training: Evaluate it in training mode too if its outputs are others there.

        Returns:
            The perturbed model.
        """
        few = _first_examples(example_input)
        try:
            return cls._on(model, memory, groups, few, seed, training)
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
            return cls._on(model, memory, groups, example_input, seed, training)

    @classmethod
    def _on(
        cls,
        model: nn.Module,
        memory: Memory,
        groups: NeuronGroups,
        example_input: ExampleInput,
        seed: int,
        training: bool,
    ) -> "PerturbedModel":
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        wide = tree_map(to_double, example_input)
        names = weights_of(model)
        with torch.no_grad():
            own |= raised_weights(own, names)
            own |= disturbed_weights(own, names, seed)
            own |= disturbed_statistics(model, memory, own, example_input, seed=seed)
            tensors = {name: to_double(tensor.detach(), copy=True) for name, tensor in own.items()}
        perturbed = cls(model, memory, groups, wide, tensors)
        if training:
            perturbed = replace(perturbed, modes=perturbed._modes())
        return perturbed._with_effects()

    def evaluate(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the output tensors of all modes for other values of some tensors."""
        return [
            output
            for training in self.modes
            for output in self._evaluate({**self.tensors, **tensors}, training=training)
        ]

    def _evaluate(self, tensors: Mapping[str, Tensor], *, training: bool) -> list[Tensor]:
        buffers = dict(self.model.named_buffers())
        # A model may write to its buffers: each evaluation begins with the same.
        given = {n: value.clone() if n in buffers else value for n, value in tensors.items()}
        try:
            with double_precision(), in_mode(self.model, training=training):
                result = call_with(self.model, given, self.example_input)
            outputs = output_tensors(result).values()
            return [v if v.layout is torch.strided else v.to_dense() for v in outputs]
        finally:
            self.memory.restore()

    def change(self, tensors: Mapping[str, Tensor]) -> float:
        """Return how far the outputs move, relative to how far the values of each are apart."""
        with torch.no_grad():
            outputs = self.evaluate(tensors)
        return _largest_change(outputs, self.outputs)

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
                name: value * (1 + LAST_BIT * random_signs(value.shape, generator).to(value))
                for name, value in self.tensors.items()
                if value.is_floating_point() or value.is_complex()
            }
        )

    def permuted(
        self, names: Sequence[str], *, seed: int, only: Block | None = None
    ) -> dict[str, Tensor]:
        """Return the tensors that move when every one of the named groups does.

        Args:
            names: Of groups.
            seed: Of the permutations.
            only: The one block in which they move, if not in all.
        """
        drawn = Permutation.random(self.groups, seed=seed)
        orders = {
            name: _never_identity(order) if name in names else _identity(order)
            for name, order in drawn.orders.items()
        }
        signs = {name: _both(sign) for name, sign in drawn.signs.items() if name in names}
        groups = self.groups if only is None else _only(self.groups, names, only)
        moving = {b.tensor for name in names for b in groups.blocks_of(name)}
        own = {name: value for name, value in self.tensors.items() if name in moving}
        return Permutation(groups, orders, signs).apply(own)

    def _modes(self) -> tuple[bool, ...]:
        """Evaluation, and training if that computes something else, and the same every time."""
        with torch.no_grad():
            plain = self._evaluate(self.tensors, training=False)
            try:
                first = self._evaluate(self.tensors, training=True)
                if len(first) == len(plain) and _largest_change(first, plain) == 0:
                    return (False,)
                again = self._evaluate(self.tensors, training=True)
            except Exception:  # ruff: ignore[blind-except] - it may need targets, or a loss
                return (False,)
        repeats = len(first) == len(again) and _largest_change(again, first) == 0
        return MODES if repeats else (False,)

    def _with_effects(self) -> "PerturbedModel":
        statistics = _running_statistics(self.model)
        own = {
            name: value.detach().requires_grad_()
            for name, value in self.tensors.items()
            if (value.is_floating_point() or value.is_complex()) and name not in statistics
        }
        try:
            with torch.enable_grad():
                outputs = self.evaluate(own)
                found = _derivatives(outputs, list(own.values()))
        except RuntimeError:  # an operator without a derivative
            with torch.no_grad():
                outputs, found = self.evaluate({}), [None] * len(own)
        effects: dict[Block | str, float] = {}
        for (name, value), derivative in zip(own.items(), found, strict=True):
            if derivative is not None:
                dense = derivative.to_dense()  # some embeddings have sparse ones
                effect = (value.detach() * dense).abs()
                effects[name] = float(effect.norm())
                for block in self.groups.blocks_on(name):
                    length = self.groups.length(block)
                    effects[block] = float(effect.narrow(block.axis, block.offset, length).norm())
        return replace(self, outputs=[output.detach() for output in outputs], effects=effects)


def _running_statistics(model: nn.Module) -> set[str]:
    """The buffers for which batch normalisation has no derivative."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, _NormBase)
        for name, _ in module.named_buffers(recurse=False)
    }


def _only(groups: NeuronGroups, names: Sequence[str], block: Block) -> NeuronGroups:
    """The groups with no block of the named ones but one."""
    kept = (b for b in groups.blocks if b == block or not set(b.groups) & set(names))
    return replace(groups, blocks=tuple(kept))


def _largest_change(outputs: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    changes = [_relative(*pair) for pair in zip(outputs, references, strict=True)]
    return max(changes, default=0.0)


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
    terms = []
    for output in outputs:
        if output.requires_grad and output.numel():
            finite = torch.where(output.isfinite(), output, 0)
            weight = torch.linspace(0.5, 1.5, output.numel()).view_as(output)
            scale = _spread(output.detach())
            parts = (finite.real, finite.imag) if finite.is_complex() else (finite,)
            terms += [(part * weight).sum() / scale for part in parts]
    with suppress(RuntimeError):
        if terms:
            total = torch.stack(terms).sum()
            return list(torch.autograd.grad(total, weights, allow_unused=True))
    return [None] * len(weights)


def _relative(output: Tensor, reference: Tensor) -> float:
    """The largest change, as a share of the spread; what is infinite must stay as it is."""
    if output.shape != reference.shape:
        return math.inf
    if output.numel() == 0:
        return 0.0
    output, reference = (_wide(value) for value in (output, reference))
    finite = reference.isfinite()
    same = torch.where(reference.isnan(), output.isnan(), output == reference)
    if not bool((finite | same).all()):
        return math.inf
    change = float(torch.where(finite, output - reference, 0).abs().max())
    if change == 0 or not math.isfinite(change):
        return 0.0 if change == 0 else math.inf
    return change / _spread(reference)


def _spread(output: Tensor) -> float:
    """How far the values of an output are apart: offsets say nothing about what it depends on."""
    # A class or feature may have an offset of its own, so examples are compared if there are some.
    values = _wide(output)
    values = torch.where(values.isfinite(), values, 0)
    if values.numel() == 0:
        return 1.0
    largest = float(values.abs().max())
    candidates = [values - values.mean()] if values.numel() > 1 else []
    if values.dim() > 1 and len(values) > 1:
        candidates.insert(0, values - values.mean(0))
    spreads = (float(candidate.abs().max()) for candidate in candidates)
    return next((s for s in spreads if s > FLAT * largest), max(largest, 1e-300))


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _identity(order: Tensor) -> Tensor:
    return torch.arange(order.shape[-1]).expand(order.shape)


def _never_identity(order: Tensor) -> Tensor:
    """The order, but one position further where it would move nothing."""
    idle = (order == _identity(order)).all(-1, keepdim=True)
    return torch.where(idle, order.roll(1, -1), order)


def _both(signs: Tensor) -> Tensor:
    """The signs, the first one opposite to the last, so that not all are equal."""
    return torch.cat([-signs[..., -1:], signs[..., 1:]], -1)
