"""What an optimiser keeps for a weight, and how it goes along with the weight's neurons."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slipstream.symmetry.gather import multiply, take

# What the optimisers of torch keep: tensors that change their sign with the weight, and sizes.
SIGNED = frozenset({"exp_avg", "momentum_buffer", "grad_avg", "ax", "prev"})
SIZES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum"}) | frozenset(
    {"exp_inf", "step_size", "row_var", "col_var", "variance"}
)


def moved_along(
    key: str,
    value: Any,
    *,
    weight: str,
    shape: tuple[int, ...],
    indices: Mapping[int, Tensor],
    factors: Mapping[int, Tensor],
) -> Any:
    """Return one entry of an optimiser's state, moved like the weight that it is kept for.

    Args:
        key: Its name in the state: `exp_avg`.
        value: A tensor like the weight, or with one entry on axes that it is a mean over. Numbers
            are passed on.
        weight: The name of the weight.
        shape: Of the weight.
        indices: From where the entries of the weight receive, as `Permutation.indices` returns it.
        factors: By which signs they are multiplied, as `Permutation.factors` returns it.

    Returns:
        The entry, moved.

    Raises:
        ValueError: If nobody knows how it goes along.
    """
    if not isinstance(value, Tensor) or value.numel() == 1:
        return value
    if value.dim() != len(shape) or any(
        size not in {1, whole} for size, whole in zip(value.shape, shape, strict=True)
    ):
        raise ValueError(
            f"The optimiser state {key!r} of {weight!r} has shape {tuple(value.shape)}, the weight "
            f"{shape}: nobody knows how it goes along with the weight's neurons."
        )
    along = {axis: index for axis, index in indices.items() if value.shape[axis] > 1}
    wide = (index.shape for index in along.values() if index.dim() > 1)
    if any(
        needed > size for sizes in wide for needed, size in zip(sizes, value.shape, strict=True)
    ):
        raise ValueError(
            f"The optimiser state {key!r} of {weight!r} averages entries of which each has an "
            "order of its own on another axis: it does not go along with the weight's neurons."
        )
    changing = {} if key in SIZES else factors
    if changing and key not in SIGNED and not bool((value < 0).any()):
        raise ValueError(
            f"The optimiser state {key!r} of {weight!r} is unknown: it may change its sign with "
            "the weight, or hold squares. Permute without signs: "
            "find_neuron_groups(model, example_input, signs=False)."
        )
    return multiply(take(value, along), changing)
