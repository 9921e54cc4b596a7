"""A model for the length of a `with` block: other weights, eval mode; then as it was."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.sharded import is_sharded
from slipstream.weights import Weights, check_shapes, unwrapped


@contextmanager
def weights_in(model: nn.Module, weights: Weights | None) -> Generator[None]:
    """Put `weights` into `model` for the length of a `with` block, then restore everything.

    Parameters are swapped, not copied, unless dtype or device differ. Buffers are copied: what a
    pass in train mode does to them stays inside the block.

    Args:
        model: Receives the values; tensors that `weights` lacks keep theirs.
        weights: Names and shapes of tensors of `model`; None puts nothing in.

    Yields:
        Nothing.

    Raises:
        ValueError: If a name is unknown to the model, a shape differs, or the model is sharded.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> with weights_in(model, {"weight": Tensor([[3.0]])}):
        ...     model(Tensor([[2.0]])).item()
        6.0
    """
    model = unwrapped(model)
    if weights and is_sharded(model):
        raise ValueError(
            "Other weights cannot be put into a sharded model for a while, as FSDP keeps its own "
            "hold of them: evaluate an unsharded copy, or copy them in for good with "
            "load_weights_(model, weights)."
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    own: dict[str, Tensor] = {**parameters, **buffers}
    check_shapes(weights or {}, {name: tuple(value.shape) for name, value in own.items()})
    saved = [(tensor, tensor.data) for tensor in own.values()]
    try:
        for buffer in buffers.values():
            buffer.data = buffer.data.clone()
        for name, value in (weights or {}).items():
            cast = value.detach().to(own[name])
            own[name].data = cast if name in parameters else cast.clone()
        yield
    finally:
        for tensor, data in saved:
            tensor.data = data


@contextmanager
def eval_mode(model: nn.Module) -> Generator[None]:
    """Switch to eval mode for a `with` block; then every submodule has its own mode back.

    Embeddings with sparse gradients have dense ones meanwhile.
    """
    modes = [(module, module.training) for module in model.modules()]
    sparse = [m for m, _ in modes if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]
    model.eval()
    try:
        for embedding in sparse:
            embedding.sparse = False
        yield
    finally:
        for module, training in modes:
            module.training = training
        for embedding in sparse:
            embedding.sparse = True


def functional_call(
    model: nn.Module, tensors: Mapping[str, Tensor], args: Any, kwargs: dict[str, Any] | None = None
) -> Any:
    """Call a model with other parameters and buffers, as `torch.func.functional_call` does.

    That one leaves a module that is registered under two paths with the other tensors in it. Here
    each tensor is exchanged once, wherever it is reached from.

    Args:
        model: Any module; left as it was.
        tensors: Names to tensors; a tied tensor needs one of its names.
        args: The arguments, or a single one.
        kwargs: Arguments by name.

    Returns:
        What the model returns.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> twice = nn.Sequential(layer, layer)
        >>> functional_call(twice, {"0.weight": torch.full((1, 1), 3.0)}, torch.ones(1)).item()
        9.0
        >>> twice[0].weight is layer.weight
        True
    """
    model = unwrapped(model)
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named |= dict(model.named_buffers(remove_duplicate=False))
    given = {id(named[name]): value for name, value in tensors.items() if name in named}
    modules = dict(model.named_modules(remove_duplicate=False))
    once: dict[tuple[int, str], str] = {}  # the name by which a place of a tensor is exchanged
    for name in (*tensors, *named):
        path, _, own = name.rpartition(".")
        if name not in named or id(named[name]) in given:
            once.setdefault((id(modules.get(path)), own), name)
    exchanged = {n: tensors[n] if n in tensors else given[id(named[n])] for n in once.values()}
    return torch.func.functional_call(model, exchanged, args, kwargs, tie_weights=False)
