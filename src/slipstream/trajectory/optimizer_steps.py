"""Hooks after the real steps of an optimiser, also of one inside a wrapper."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


def after_each_step(optimizer: Optimizer, call: Callable[..., None]) -> Callable[[], None]:
    """Call a function after each step that an optimiser really takes.

    Steps that gradient accumulation or a gradient scaler leaves out do not count.

    Args:
        optimizer: An optimiser, or what wraps one, such as accelerate's.
        call: Called with whatever the hook of PyTorch gives.

    Returns:
        What removes the hook.

    Raises:
        TypeError: If it is neither.
    """
    return _wrapped(optimizer).register_step_post_hook(call).remove


def _wrapped(optimizer: Any) -> Optimizer:
    """The optimiser that has hooks: a wrapper that never called `Optimizer.__init__` has none."""
    found = optimizer
    # Its own attribute: a wrapper may pass on those of what it wraps.
    while "_optimizer_step_post_hooks" not in getattr(found, "__dict__", {}):
        inner = getattr(found, "optimizer", None) or getattr(found, "_optimizer", None)
        if inner is None or inner is found:
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer or wrap one as its attribute "
                f"`optimizer`, got {type(optimizer).__name__}."
            )
        found = inner
    if not isinstance(found, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}."
        )
    return found
