"""Models and inputs that cannot be traced, refused before anything is tried, with the repair."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

WRAPPERS = {
    "OptimizedModule": ("is compiled", "`model._orig_mod`, or the model before torch.compile"),
    "DataParallel": ("is wrapped in DataParallel", "`model.module`"),
    "DistributedDataParallel": ("is wrapped in DistributedDataParallel", "`model.module`"),
    "FullyShardedDataParallel": ("is sharded", "the model before it is sharded"),
}


def refuse_untraceable(model: nn.Module, example_input: Any) -> None:
    """Raise if no tracer can take the model, or the example.

    Args:
        model: What the user calls a model.
        example_input: A tensor, a tuple of arguments, or a dictionary of keyword arguments.

    Raises:
        ValueError: With what to pass instead.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    for path, module in model.named_modules():
        where = f"its module {path!r}" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(_message(model, where, "is scripted", "the module as it was before"))
        if (known := WRAPPERS.get(type(module).__name__)) and _is_of_torch(module):
            raise ValueError(_message(model, where, *known))
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and is_lazy(value):
                raise ValueError(
                    f"The neurons of {type(model).__name__} cannot be found: {where} has no shape "
                    f"for {name!r} yet. Run the model once, so that its lazy layers get theirs."
                )
    tensors = [leaf for leaf in tree_leaves(example_input) if isinstance(leaf, Tensor)]
    if tensors and all(leaf.numel() == 0 for leaf in tensors):
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in tensors)
        raise ValueError(f"example_input is empty ({shapes}): give a batch with some examples.")


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "torch"


def _message(model: nn.Module, where: str, what: str, instead: str) -> str:
    return f"{type(model).__name__} cannot be traced: {where} {what}. Pass {instead}."
