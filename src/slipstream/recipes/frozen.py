"""A module that recipes ask but never change."""

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
