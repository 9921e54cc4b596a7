"""Operators that make tensors out of nothing."""

from slipstream.symmetry.atoms import Layout, fixed, uniform
from slipstream.symmetry.axis_rules.registry import Call, rule


@rule("zeros ones full empty scalar_tensor zero new_zeros new_ones new_full new_empty")
@rule("zeros_like ones_like full_like empty_like")
def equal(call: Call) -> Layout:
    """All positions are equal."""
    return tuple(uniform(size) for size in call.shapes[0])


@rule("arange linspace eye")
def numbered(call: Call) -> Layout:
    """Every position has its number."""
    cause = call.cause("every position has its number")
    return tuple(fixed(size, cause) for size in call.shapes[0])
