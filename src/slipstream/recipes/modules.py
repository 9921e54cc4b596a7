"""Layers by name, and modules that are called but never changed."""

from typing import Any

import torch
from torch import nn

from slipstream.evaluation import eval_mode


class Frozen(nn.Module):
    """A module that is called in eval mode and without gradients, whatever its own mode."""

    def __init__(self, module: nn.Module) -> None:
        """Wrap a module; it is not copied."""
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Call the module."""
        with torch.no_grad(), eval_mode(self.module):
            return self.module(*inputs, **named)


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return a layer of a model.

    Args:
        model: Any module.
        name: Of the layer, such as `head`.

    Returns:
        The layer.

    Raises:
        ValueError: If there is no such layer.
    """
    layers: dict[str, nn.Module] = dict(model.named_modules())
    if not name or name not in layers:
        known = ", ".join([other for other in layers if other][-6:])
        raise ValueError(f"The model has no layer {name!r}; its last ones are {known}.")
    return layers[name]
