"""Weights and inputs, disturbed so that nothing hides an error."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from slipstream.symmetry.capture import ExampleInput


def with_noise(example_input: ExampleInput, *, seed: int) -> ExampleInput:
    """Return the input with other signs, and noise on it: the function must be the same there."""
    generator = torch.Generator().manual_seed(seed)

    def disturb(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
            return leaf
        factor, noise = torch.randn(2, *leaf.shape, generator=generator).to(leaf)
        return torch.where(leaf.isfinite(), leaf * factor + noise, leaf)

    return tree_map(disturb, example_input)


def raised_weights(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the faint matrices and kernels, scaled up to what keeps the size of values.

    Args:
        tensors: All tensors of a model.
        names: Of its weights.

    Returns:
        Those that change, by name.
    """
    raised = {}
    for name in names:
        value = tensors[name]
        if value.dim() > 1 and value.numel() and value.is_floating_point() | value.is_complex():
            size, wanted = float(value.norm()) / value.numel() ** 0.5, value[0].numel() ** -0.5
            if 0 < size < wanted / 2 and not is_constant(value):
                raised[name] = value * (wanted / size)
    return raised


def disturbed_weights(
    tensors: Mapping[str, Tensor], names: Iterable[str], seed: int
) -> dict[str, Tensor]:
    """Multiply vectors and constant tensors by U(.5, 1.5), or put that in the place of zeros.

    Args:
        tensors: All tensors of a model.
        names: Of its weights.
        seed: Of the disturbance.

    Returns:
        All tensors: gains, biases and statistics differ for every neuron.
    """
    generator = torch.Generator().manual_seed(seed)
    disturbed = dict(tensors)
    for name in names:
        value = tensors[name]
        if not value.numel() or not (value.is_floating_point() or value.is_complex()):
            continue
        if value.dim() == 1 or is_constant(value):
            noise = torch.rand(value.shape, generator=generator).to(value) + 0.5
            disturbed[name] = value * noise if value.abs().max() > 1e-3 else noise
    return disturbed


def is_constant(tensor: Tensor | None) -> bool:
    """Return whether all values of a tensor are equal."""
    if tensor is None or tensor.numel() == 0:
        return False
    flat = tensor.flatten()  # a look at the beginning spares a pass over a large matrix
    return all(bool((part == flat[0]).all()) for part in (flat[:100], flat))
