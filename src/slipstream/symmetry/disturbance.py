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


def disturbed_statistics(
    model: nn.Module,
    memory: Memory,
    own: Mapping[str, Tensor],
    example_input: ExampleInput,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Return running statistics near those of the input: deep networks neither fade nor explode.

    Every layer is given its own when it is reached, and passes on what they make of its input.

    Args:
        model: In evaluation mode.
        memory: Of `model`.
        own: All tensors of the model; they are not written to.
        example_input: A batch.
        seed: Of the disturbance.

    Returns:
        The running means and variances that are to be replaced, by name.
    """
    normalising = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_var is not None
    }
    if not normalising:
        return {}
    # Any statistics will do, and convolutions take several times as long in float64.
    with suppress(ArithmeticError, LookupError, RuntimeError, TypeError):
        if all(value.dtype not in WIDER or value.dtype == torch.float32 for value in own.values()):
            found = _measured(model, memory, own, example_input, normalising, seed)
            if all(bool(value.isfinite().all()) for value in found.values()):
                return found
    own, example_input = (tree_map(to_double, tree) for tree in (dict(own), example_input))
    with double_precision():
        return _measured(model, memory, own, example_input, normalising, seed)


def _measured(
    model: nn.Module,
    memory: Memory,
    own: Mapping[str, Tensor],
    example_input: ExampleInput,
    normalising: Mapping[str, _NormBase],
    seed: int,
) -> dict[str, Tensor]:
    """The running statistics of some layers, of which each is evaluated with its own."""
    buffers = {name: own[name].clone() for name, _ in model.named_buffers()}
    generator = torch.Generator().manual_seed(seed)

    def measure(module: _NormBase, given: tuple[Tensor, ...]) -> None:
        mean, variance = module.running_mean, module.running_var
        if mean is None or variance is None or given[0].shape[1:2] != mean.shape:
            return
        values = given[0].detach().transpose(0, 1).flatten(1)  # (channels, positions)
        if values.shape[1] > 1:  # one value per channel has no variance
            shift, factor = torch.rand(2, len(mean), generator=generator).to(values)
            variance.copy_(values.var(1))
            mean.copy_(values.mean(1) + (shift - 0.5) * variance.sqrt())
            variance *= factor + 0.5

    handles = [module.register_forward_pre_hook(measure) for module in normalising.values()]
    try:
        call_with(model, {**own, **buffers}, example_input)
    finally:
        memory.restore()
        for handle in handles:
            handle.remove()
    names = (
        f"{path}.{n}".lstrip(".") for path in normalising for n in ("running_mean", "running_var")
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
