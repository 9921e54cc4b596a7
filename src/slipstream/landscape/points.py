"""Points of weight space as sums of a few corners: those of lines, planes and curves."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from slipstream.weights import (
    Weights,
    check_same_layout,
    check_shapes,
    first_nonfinite,
    is_continuous,
)


def mix(corners: Sequence[Weights], coefficients: Sequence[float] | Tensor) -> dict[str, Tensor]:
    """Return the point `sum_k coefficients[k] * corners[k]`.

    Tensors of integers (a count of batches) cannot be mixed: they come from the corner that
    counts most.

    Args:
        corners: Weights, or directions, of the same layout.
        coefficients: A value for each corner.

    Returns:
        New tensors of the dtype of the first corner; a corner with the only coefficient that is
        not 0, and that is 1, is given back to the bit.

    Raises:
        ValueError: If the layouts differ, or there is not one coefficient for each corner.

    Example:
        >>> mix([{"w": torch.zeros(1)}, {"w": torch.ones(1)}], [0.75, 0.25])
        {'w': tensor([0.2500])}
    """
    row = torch.as_tensor(coefficients, dtype=torch.float64)
    if row.shape != (len(corners),):
        raise ValueError(
            f"coefficients must be {len(corners)} values, one for each corner, got shape "
            f"{tuple(row.shape)}."
        )
    for corner in corners[1:]:
        check_same_layout(corners[0], corner, names=("corners[0]", "another corner"))
    return {
        name: _mixed(_stacked([corner[name] for corner in corners]), row[None])[0].to(value.dtype)
        for name, value in corners[0].items()
    }


class Corners:
    """The corners on the device of a model, stacked, so that many points are mixed at once."""

    def __init__(self, model: nn.Module, corners: Sequence[Weights]) -> None:
        own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        own |= dict(model.named_buffers(remove_duplicate=False))
        check_shapes(corners[0], {name: tuple(value.shape) for name, value in own.items()})
        self._own = {name: own[name] for name in corners[0]}
        self._stacks = {
            name: _stacked([corner[name].detach().to(value.device) for corner in corners])
            for name, value in self._own.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of one point."""
        return sum(value.nbytes for value in self._own.values())

    def at(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return points as the model has them: (points, corners) to (points, *shape) by name."""
        return {
            name: _mixed(stack, coefficients).to(self._own[name].dtype)
            for name, stack in self._stacks.items()
        }


def named_weights(
    weights: Sequence[Weights] | Mapping[str, Weights], what: str = "weights"
) -> dict[str, Weights]:
    """Return weights by name: `weights[0]`, `weights[1]`, ... where they have none."""
    if isinstance(weights, Mapping):
        return dict(weights)
    return {f"{what}[{number}]": one for number, one in enumerate(weights)}


def check_corners(corners: Mapping[str, Weights]) -> None:
    """Raise unless all weights have the same layout and are finite.

    Args:
        corners: One or more weights, by what to call them in the message.

    Raises:
        ValueError: Naming the weights and the tensor.
    """
    first, origin = next(iter(corners.items()))
    for name, corner in corners.items():
        check_same_layout(origin, corner, names=(first, name))
        for tensor, value in corner.items():
            if is_continuous(value) != is_continuous(origin[tensor]):
                raise ValueError(
                    f"{first} and {name} differ in the dtype of {tensor!r}: "
                    f"{origin[tensor].dtype} and {value.dtype}."
                )
        if (broken := first_nonfinite(corner)) is not None:
            raise ValueError(f"{name} holds a NaN or an infinity in {broken!r}.")


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """(corners, *shape), in float32 or better if they are floating."""
    if not is_continuous(values[0]):
        return torch.stack([value.to(values[0].dtype) for value in values])
    wide = torch.float32
    for value in values:
        wide = torch.promote_types(wide, value.dtype)
    return torch.stack([value.to(wide) for value in values])


def _mixed(stack: Tensor, coefficients: Tensor) -> Tensor:
    """(corners, *shape) and (points, corners) to (points, *shape)."""
    rows = coefficients.to(stack.device)
    if not is_continuous(stack):
        return stack[rows.abs().argmax(1)]
    mixed = rows.to(stack.dtype) @ stack.reshape(len(stack), -1)
    return mixed.view(len(rows), *stack.shape[1:])
