"""Training mode without chance: what is random in it is left out, or has one fixed value."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

DROPOUTS = {
    getattr(place, name)
    for place in (functional, torch)
    for name in (
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_dropout",
        "feature_alpha_dropout",
        "dropout_",
        "alpha_dropout_",
        "feature_dropout_",
        "feature_alpha_dropout_",
    )
    if hasattr(place, name)
}
NOISE = {torch.rand: 0.5, torch.rand_like: 0.5, torch.randn: 0.0, torch.randn_like: 0.0}
MADE: dict[Any, Callable[..., Tensor]] = {
    torch.rand: torch.zeros,
    torch.randn: torch.zeros,
    torch.rand_like: torch.zeros_like,
    torch.randn_like: torch.zeros_like,
}
FILLED = {
    Tensor.bernoulli_: 1.0,
    Tensor.exponential_: 1.0,
    Tensor.uniform_: 0.5,
    Tensor.normal_: 0.0,
}


class WithoutChance(TorchFunctionMode):
    """Dropout keeps everything, Bernoulli variables are 1, other noise has its mean."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace random functions."""
        given = dict(kwargs or {})
        if func in DROPOUTS:
            return args[0] if args else given["input"]
        if func in MADE:
            given.pop("generator", None)
            return MADE[func](*args, **given).fill_(NOISE[func])
        if func in FILLED:
            return args[0].fill_(FILLED[func])
        if func is functional.gumbel_softmax:
            return _softmax(*args, **given)
        if func is functional.rrelu:
            args, given = args[:3], {**given, "training": False}
        if func is torch.bernoulli:
            return torch.ones_like(args[0] if args else given["input"])
        if func is functional.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            given.pop("dropout_p", None)
        return func(*args, **given)


def _softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """A Gumbel softmax without its noise."""
    soft = (logits / tau).softmax(dim)
    if not hard:
        return soft
    chosen = soft.max(dim, keepdim=True)[1]
    return torch.zeros_like(soft).scatter_(dim, chosen, 1.0) - soft.detach() + soft
