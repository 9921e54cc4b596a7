"""The weights dictionary: what every border of the package takes and returns.

Weights are a `Mapping[str, Tensor]`: parameters in `named_parameters` order, then persistent
buffers, under the names of the state dict, each tied tensor once.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from slipstream.deprecated import moved_names
from slipstream.sharded import cut_like, refuse_flat

Weights = Mapping[str, Tensor]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, then the persistent buffers, of `model`: detached, not copied.

    Args:
        model: Any module.

    Returns:
        State-dict names to tensors that share memory with the model; a tied tensor appears once.
        Of a sharded model each process gets its piece, as a `DTensor`.

    Raises:
        TypeError: If the model is sharded by FSDP1, which hides its tensors.

    Example:
        >>> list(weights_of(nn.BatchNorm1d(2)))
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    model = unwrapped(model)
    refuse_flat(model)
    persistent = model.state_dict().keys()  # first: FSDP2 then frees what it has gathered
    weights = {name: value.detach() for name, value in model.named_parameters()}
    for name, buffer in model.named_buffers():
        if name in persistent:
            weights[name] = buffer.detach()
    return weights


def is_continuous(value: Tensor | torch.dtype) -> bool:
    """Return whether values can lie between two others: floating or complex, not counters.

    Example:
        >>> is_continuous(torch.tensor(1j)), is_continuous(torch.int64)
        (True, False)
    """
    dtype = value.dtype if isinstance(value, Tensor) else value
    return dtype.is_floating_point or dtype.is_complex


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile`, `DataParallel` and `DistributedDataParallel`.

    Their prefixes (`_orig_mod.`, `module.`) are not part of the model's names.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> unwrapped(nn.DataParallel(model)) is model
        True
    """
    while True:
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            model = model.get_submodule("module")
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


class TrainablePart(nn.Module):
    """The tensors of a model that are trained, without the others: an adapter without its base.

    What records or averages a model takes it too: `Recorder("run", TrainablePart(model))`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> _ = model[0].requires_grad_(False)
        >>> list(weights_of(TrainablePart(model)))
        ['1.weight', '1.bias']
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._whole = (unwrapped(model),)  # in a tuple, so that it is not a submodule

    def named_parameters(self, *args: Any, **given: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that require a gradient, under their names in the model."""
        named = self._whole[0].named_parameters(*args, **given)
        return ((name, value) for name, value in named if value.requires_grad)

    def forward(self, *args: Any, **given: Any) -> Any:
        """Return what the whole model returns."""
        return self._whole[0](*args, **given)


def parameter_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the trained tensors of `model`, each tied tensor once."""
    return tuple(name for name, _ in unwrapped(model).named_parameters())


def load_weights_(model: nn.Module, weights: Weights) -> None:
    """Copy `weights` into `model`, in place; tensors that `weights` lacks are left alone.

    Args:
        model: Receives the values; if it is sharded, each process takes its piece of them.
        weights: Names and shapes of tensors of `model`.

    Raises:
        ValueError: If a name is unknown to the model or a shape differs.
    """
    model = unwrapped(model)
    own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    own |= dict(model.named_buffers(remove_duplicate=False))
    check_shapes(weights, {name: tuple(value.shape) for name, value in own.items()})
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(cut_like(value, own[name]))


def check_shapes(weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise if a tensor of `weights` is not listed in `shapes` or has another shape there.

    Args:
        weights: The tensors to check.
        shapes: What is expected, by name.

    Raises:
        ValueError: With the first offending name and both shapes.
    """
    for name, value in weights.items():
        if name not in shapes:
            raise ValueError(f"The model has no tensor named {name!r}; it has {_some(shapes)}.")
        if tuple(value.shape) != shapes[name]:
            raise ValueError(
                f"Tensor {name!r} has shape {tuple(value.shape)}, expected {shapes[name]}."
            )


def check_same_layout(
    start: Weights, end: Weights, *, names: tuple[str, str] = ("start", "end")
) -> None:
    """Raise unless `start` and `end` have the same names and shapes.

    Args:
        start: Some weights.
        end: Weights that should have the same layout.
        names: What to call the two in the message.

    Raises:
        ValueError: Naming the first tensor that is missing or differs, and both shapes.

    Example:
        >>> check_same_layout({"w": torch.ones(2)}, {"w": torch.ones(3)})
        Traceback (most recent call last):
        ...
        ValueError: start and end differ in the shape of 'w': (2,) and (3,).
    """
    first, second = names
    for name in start:
        if name not in end:
            raise ValueError(f"{second} lacks the tensor {name!r} that {first} has.")
        if start[name].shape != end[name].shape:
            shapes = f"{tuple(start[name].shape)} and {tuple(end[name].shape)}"
            raise ValueError(f"{first} and {second} differ in the shape of {name!r}: {shapes}.")
    for name in end:
        if name not in start:
            raise ValueError(f"{first} lacks the tensor {name!r} that {second} has.")


def interpolate(start: Weights, end: Weights, fraction: float) -> dict[str, Tensor]:
    """Return the point at `fraction` of the straight line from `start` (0) to `end` (1).

    Tensors of whole numbers (a count of batches) cannot lie in between: they come from `end`,
    except at fraction 0.

    Args:
        start: Weights at fraction 0.
        end: Weights at fraction 1; same layout.
        fraction: Position on the line; values outside [0, 1] extrapolate.

    Returns:
        New tensors, except at the ends of whole-number tensors.

    Example:
        >>> interpolate({"w": torch.zeros(1)}, {"w": torch.ones(1)}, 0.25)
        {'w': tensor([0.2500])}
    """
    check_same_layout(start, end)
    return {
        name: torch.lerp(value, end[name], fraction)
        if is_continuous(value)
        else (end[name] if fraction > 0 else value)
        for name, value in start.items()
    }


def difference(end: Weights, start: Weights) -> dict[str, Tensor]:
    """Return `end - start`, the displacement from `start` to `end`, tensor by tensor."""
    check_same_layout(start, end)
    return {name: end[name] - start[name] for name in end}


def displace(weights: Weights, displacement: Weights, *, scale: float = 1.0) -> dict[str, Tensor]:
    """Return `weights + scale * displacement`; tensors without a displacement are kept."""
    check_shapes(displacement, {name: tuple(value.shape) for name, value in weights.items()})
    return {
        name: value.add(displacement[name].to(value), alpha=scale)
        if name in displacement
        else value
        for name, value in weights.items()
    }


def norm(weights: Weights) -> float:
    """Return the Euclidean norm over all tensors together, summed in float64."""
    return math.sqrt(inner(weights, weights))


def inner(first: Weights, second: Weights) -> float:
    """Return the inner product over the tensors of `first`, summed in float64."""
    return math.fsum(
        torch.dot(wide(left), wide(right)).item()
        for name, value in first.items()
        # In pieces, or the two copies in float64 would be the largest thing in memory.
        for left, right in zip(_pieces(value), _pieces(second[name]), strict=True)
    )


def add_to_(target: Tensor, value: Tensor, *, scale: float = 1.0) -> Tensor:
    """Add `scale * value` to a tensor in place.

    A narrower type is converted piece by piece: torch takes twice as long to mix them.

    Args:
        target: Receives the sum.
        value: Of the same shape.
        scale: How often it is added.

    Returns:
        The target.

    Example:
        >>> add_to_(torch.ones(2), torch.ones(2, dtype=torch.bfloat16), scale=-1)
        tensor([0., 0.])
    """
    narrower = value.element_size() < target.element_size()
    if not narrower or not target.is_contiguous() or target.shape != value.shape:
        return target.add_(value, alpha=scale)
    for mine, other in zip(_pieces(target), _pieces(value), strict=True):
        mine.add_(other.to(mine.dtype), alpha=scale)
    return target


def clone(weights: Weights) -> dict[str, Tensor]:
    """Return detached copies of all tensors, in the same order."""
    return {name: value.detach().clone() for name, value in weights.items()}


def first_nonfinite(weights: Weights) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity, or None."""
    for name, value in weights.items():
        if is_continuous(value) and not torch.isfinite(value).all():
            return name
    return None


def wide(value: Tensor) -> Tensor:
    """Return values in float64; complex ones as real and imaginary parts, along the last axis.

    Example:
        >>> wide(torch.tensor([[1 + 2j, 3 + 4j]]))
        tensor([[1., 2., 3., 4.]], dtype=torch.float64)
    """
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj()).flatten(-2)
    return value.double()


def _pieces(value: Tensor) -> tuple[Tensor, ...]:
    return torch.split(value.detach().flatten(), 1 << 18)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")


__getattr__ = moved_names(__name__)
