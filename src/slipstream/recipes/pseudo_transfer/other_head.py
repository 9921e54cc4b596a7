"""The same network under another head: two tasks that share all weights but the last ones."""

import copy as copying

import torch
from torch import nn

from slipstream.recipes.modules import find_layer

REPAIR = "Give the head for the source's classes yourself, as PseudoSource(head=...)."


def under_other_head(
    model: nn.Module, *, head: str, classes: int, seed: int, other: nn.Module | None = None
) -> nn.Module:
    """Return a model that shares every tensor with the given one, but for those of its head.

    Args:
        model: Any module; left as it was. What is trained in one changes in the other.
        head: Name of the layer that is replaced, such as `head`.
        classes: Outputs of the other head.
        seed: Of its initial weights; the global generators are not touched.
        other: The other head, instead of one like the model's own; copied.

    Returns:
        The model.

    Raises:
        ValueError: If there is no such layer, or no other one can be made like it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
        >>> shared_body = under_other_head(model, head="1", classes=7, seed=0)
        >>> shared_body[0].weight is model[0].weight, shared_body[1].weight.shape
        (True, torch.Size([7, 3]))
    """
    own = find_layer(model, head)
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    shared_body = copying.deepcopy(model, dict(shared))
    if other is None:
        other = _like(own, head, classes, seed)
    shared_body.set_submodule(head, copying.deepcopy(other).to(next(iter(shared.values()))))
    return shared_body


def _like(layer: nn.Module, name: str, classes: int, seed: int) -> nn.Module:
    """A new layer with as many inputs, and an output for each class."""
    bias = getattr(layer, "bias", None) is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if type(layer) is nn.Linear:
            return nn.Linear(layer.in_features, classes, bias=bias)
        if type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.groups == 1:
            return nn.Conv2d(layer.in_channels, classes, 1, bias=bias)
    raise ValueError(
        f"{name!r} is a {type(layer).__name__}; a head like it can only be made of a Linear or a "
        f"1x1 Conv2d. {REPAIR}"
    )
