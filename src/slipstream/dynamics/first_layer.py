"""The layer whose bias is watched, and what of a model breaks the assumptions about it."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slipstream.evaluation.swapped_weights import eval_mode

# Operators after which a network is not piecewise linear any more, by what people call them.
_CURVED = {
    "tanh": "tanh", "sigmoid": "sigmoid", "gelu": "GELU", "silu": "SiLU", "elu": "ELU",
    "celu": "CELU", "softplus": "softplus", "mish": "Mish", "hardswish": "hardswish", "exp": "exp",
    "log": "log", "sin": "sin", "cos": "cos", "pow": "a power", "_softmax": "softmax",
    "_log_softmax": "softmax", "log_sigmoid_forward": "log-sigmoid", "rsqrt": "a normalisation",
    "native_layer_norm": "LayerNorm", "native_group_norm": "GroupNorm", "erf": "erf",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_scaled_dot_product_efficient_attention": "attention",
    "_scaled_dot_product_flash_attention": "attention",
}  # fmt: skip
_LAST = ("sigmoid", "_softmax", "_log_softmax")  # may make the output of what is piecewise linear
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


class InputBias(nn.Module):
    """Adds a trained bias to the input: a first layer that is frozen to the identity."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(tuple(shape)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, *shape) to the same."""
        return x + self.bias


def with_input_bias(model: nn.Module, shape: Sequence[int]) -> nn.Sequential:
    """Return `model` behind a first layer `x + b` that starts at zero: the same function.

    With it the bounds of `TrainingComplexity` are an identity, and any model can be measured: one
    whose first layer is a convolution, has no bias, or is wider than the input.

    Args:
        model: Any module that takes one tensor.
        shape: The shape of one example.

    Returns:
        The layer `input` and the module `model` itself, not copied.

    Example:
        >>> list(dict(with_input_bias(nn.Linear(3, 1), [3]).named_parameters()))
        ['input.bias', 'model.weight', 'model.bias']
    """
    first = InputBias(shape)
    like = next(model.parameters(), None)
    if like is not None:
        first = first.to(device=like.device, dtype=like.dtype)
    return nn.Sequential(OrderedDict[str, nn.Module](input=first, model=model))


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """The layer that is watched."""

    name: str
    module: nn.Module
    bias: nn.Parameter

    def extreme_singular_values(self) -> tuple[float, float]:
        """Return the largest singular value, and the least that bounds from above.

        The upper bound needs that `|W^T g| >= s |g|` for every g. A layer wider than its input has
        directions g that `W^T` loses: then s is 0. It is NaN for both if the layer is not a matrix.
        """
        if isinstance(self.module, InputBias):
            return 1.0, 1.0
        if not isinstance(self.module, nn.Linear):
            return torch.nan, torch.nan
        values = torch.linalg.svdvals(self.module.weight.detach().double())
        wider = self.module.out_features > self.module.in_features
        return float(values[0]), 0.0 if wider else float(values[-1])


def find_first_layer(model: nn.Module, name: str | None) -> FirstLayer:
    """Return the first layer with weights, or the one that is named.

    Args:
        model: Any module.
        name: Of the layer, as in `named_modules`; by default the first linear layer, convolution or
            `InputBias`, in the order in which the model lists them.

    Returns:
        The layer, whose bias is trained.

    Raises:
        ValueError: If there is no such layer, it has no bias, or its bias is frozen.
    """
    modules = dict(model.named_modules())
    if name is None:
        layers = [n for n, m in modules.items() if isinstance(m, (*_WEIGHTED, InputBias))]
        if not layers:
            raise ValueError(
                "The model has no linear layer and no convolution, so there is no bias to watch. "
                "Wrap it: with_input_bias(model, shape)."
            )
        name = layers[0]
    if name not in modules:
        raise ValueError(f"layer is {name!r}, but the model has {', '.join(list(modules)[1:7])}.")
    bias = getattr(modules[name], "bias", None)
    if not isinstance(bias, nn.Parameter):
        raise ValueError(
            f"The first layer, {name!r}, has no bias, and complexity is how far that moves. "
            "Wrap the model: with_input_bias(model, shape)."
        )
    if not bias.requires_grad:
        raise ValueError(f"The bias of the first layer, {name!r}, is frozen: it does not move.")
    return FirstLayer(name, modules[name], bias)


def broken_by_model(model: nn.Module, layer: FirstLayer, inputs: Tensor) -> list[str]:
    """Return in words what of the model breaks the assumptions.

    Args:
        model: Is run once, in eval mode and without gradients.
        layer: Its first layer.
        inputs: What it takes.

    Returns:
        A sentence for each assumption; empty if all hold.
    """
    seen = _Seen()
    arrived: list[Any] = []
    hook = layer.module.register_forward_pre_hook(lambda _, given: arrived.append(given[0]))
    try:
        with eval_mode(model), torch.no_grad(), seen:
            model(inputs)
    finally:
        hook.remove()
    broken = []
    if not isinstance(layer.module, nn.Linear | InputBias):
        kind = type(layer.module).__name__
        broken.append(
            f"the first layer, {layer.name!r}, is a {kind}: there are no bounds for it, only a "
            "length; with_input_bias(model, shape) has bounds"
        )
    before = arrived[0] if arrived else None
    if before is None or before.shape.numel() != inputs.numel() or not _equal(before, inputs):
        broken.append(f"the input does not reach the first layer, {layer.name!r}, unchanged")
    if curved := seen.curved():
        broken.append(f"not piecewise linear, as networks of ReLU are: {', '.join(curved)}")
    if random := [type(m).__name__ for m in model.modules() if m.training and _is_random(m)]:
        broken.append(f"the function differs between steps: {', '.join(dict.fromkeys(random))}")
    return broken


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.names.append(name if name.startswith("_") else name.rstrip("_"))
        return func(*args, **(kwargs or {}))

    def curved(self) -> list[str]:
        """What is not piecewise linear, each once; a squashing of the output does not count."""
        names = [name for name in self.names if name in _CURVED or not _only_shapes(name)]
        if names and names[-1] in _LAST:
            names = names[:-1]
        return list(dict.fromkeys(_CURVED[name] for name in names if name in _CURVED))


def _only_shapes(name: str) -> bool:
    return name in ("view", "squeeze", "flatten", "reshape", "_unsafe_view", "detach", "select")


def _is_random(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True  # batch statistics: the function depends on the batch
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _equal(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.reshape(-1), second.reshape(-1))
