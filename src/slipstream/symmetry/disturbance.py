"""Weights and inputs, disturbed so that nothing hides an error."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map

from slipstream.symmetry.capture import ExampleInput, call_with
from slipstream.symmetry.double_precision import WIDER, double_precision, to_double
from slipstream.symmetry.untouched import Memory

FAINT = 1e-3  # gains below are raised to about 1: layer scales
NEW = 0.01  # about the size of what is put in the place of zeros


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


def measured_statistics(
    model: nn.Module,
    memory: Memory,
    own: Mapping[str, Tensor],
    example_input: ExampleInput,
    *,
    trained: bool,
) -> dict[str, Tensor]:
    """Return the statistics of the input for untrained BatchNorm; with 0 and 1 deep networks fade.

    Args:
        model: In evaluation mode.
        memory: Of `model`.
        own: All tensors of the model; they are not written to.
        example_input: A batch.
        trained: Measure those of trained layers too: they were of other weights.

    Returns:
        The running means and variances that are to be replaced, by name.
    """
    untrained = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _NormBase)
        if (module.running_var is not None and trained) or is_constant(module.running_var)
    }
    if not untrained:
        return {}
    # Any statistics will do, and convolutions take several times as long in float64.
    with suppress(ArithmeticError, LookupError, RuntimeError, TypeError):
        if all(value.dtype not in WIDER or value.dtype == torch.float32 for value in own.values()):
            found = _measured(model, memory, own, example_input, untrained)
            if all(bool(value.isfinite().all()) for value in found.values()):
                return found
    own, example_input = (tree_map(to_double, tree) for tree in (dict(own), example_input))
    with double_precision():
        return _measured(model, memory, own, example_input, untrained)


def _measured(
    model: nn.Module,
    memory: Memory,
    own: Mapping[str, Tensor],
    example_input: ExampleInput,
    untrained: Mapping[str, _NormBase],
) -> dict[str, Tensor]:
    """The running statistics of some layers after one step of training with a momentum of 1."""
    buffers = {name: own[name].clone() for name, _ in model.named_buffers()}
    momenta = [module.momentum for module in untrained.values()]
    model.eval()
    for module in untrained.values():
        module.train().momentum = 1.0
    try:
        with suppress(ValueError):  # one value per channel has no variance: they stay 0 and 1
            call_with(model, {**own, **buffers}, example_input)
    finally:
        memory.restore()
        for module, momentum in zip(untrained.values(), momenta, strict=True):
            module.eval().momentum = momentum
    names = (
        f"{path}.{n}".lstrip(".") for path in untrained for n in ("running_mean", "running_var")
    )
    return {name: buffers[name] for name in names if name in buffers}


def disturbed_weights(
    tensors: Mapping[str, Tensor], names: Iterable[str], seed: int
) -> dict[str, Tensor]:
    """Multiply vectors and constant tensors by U(.5, 1.5); faint ones become that, zeros small.

    Zeros are nearly always offsets. Large ones would drown what they are added to: of queries and
    keys nothing is seen any more where all tokens became alike.

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
            if not value.any():
                noise *= NEW * random_signs(value.shape, generator).to(value)
            disturbed[name] = value * noise if value.abs().max() > FAINT else noise
    return disturbed


def is_constant(tensor: Tensor | None) -> bool:
    """Return whether all values of a tensor are equal."""
    if tensor is None or tensor.numel() == 0:
        return False
    flat = tensor.flatten()  # a look at the beginning spares a pass over a large matrix
    return all(bool((part == flat[0]).all()) for part in (flat[:100], flat))


def random_signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return a tensor of +1 and -1."""
    return torch.randint(2, tuple(shape), generator=generator) * 2 - 1
