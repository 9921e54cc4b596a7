"""A copy of a model that can be traced and proven: it computes the same, in the plainest way."""

import copy
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.modules import transformer

DENSE = "slipstream_dense"  # under which transformers knows `_dense_experts`


@contextmanager
def evaluation_copy(model: nn.Module) -> Generator[nn.Module]:
    """Yield a copy of `model` in evaluation mode, or the model itself if it refuses to be copied.

    Either way, the model is as before when the block ends.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        replica = copy.deepcopy(model)
    except (RuntimeError, TypeError):  # a module holds a computed tensor, or a lock
        replica = model
    try:
        # The grouped products of transformers refuse float64, in which groups are proven.
        with plainly(), _experts(replica, "eager"):
            yield replica.eval()
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def traceable(model: nn.Module) -> Generator[None]:
    """Let `model` run without looking at the values of tensors, as far as that can be arranged."""
    # As torch.export does it: models skip checks of values then, and caches of what they computed,
    # which would hand out tensors without numbers ever after.
    with _experts(model, DENSE), patch.object(torch.compiler, "_is_compiling_flag", True):
        yield


@contextmanager
def plainly() -> Generator[None]:
    """Let PyTorch's transformer layers take neither short cuts nor guesses from values."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            # Whether a mask is the causal one is a hint for kernels; the mask is applied anyway.
            if hasattr(transformer, "_detect_is_causal_mask"):
                stack.enter_context(patch.object(transformer, "_detect_is_causal_mask", _as_told))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def answer(result: Any) -> Any:
    """Return what a model is asked for: of a dictionary with logits only the logits.

    Models of transformers also return hidden states and caches, which no reader of the logits sees.

    Args:
        result: What a model returned.

    Returns:
        The logits, or the result as it is.

    Example:
        >>> answer({"logits": 1, "last_hidden_state": 2})
        {'logits': 1}
    """
    if isinstance(result, Mapping):
        logits = {name: value for name, value in result.items() if "logits" in str(name)}
        return logits or result
    return result


def _as_told(_mask: Tensor | None, is_causal: bool | None, _size: int | None) -> bool:
    return bool(is_causal)


@contextmanager
def _experts(model: nn.Module, implementation: str) -> Generator[None]:
    """Choose how the mixtures of experts of transformers inside `model` are computed."""
    owners: list[Any] = [
        module for module in model.modules() if hasattr(module, "set_experts_implementation")
    ]
    before = [owner.get_experts_implementation() for owner in owners]
    try:
        for owner in owners:
            if any(before):
                _register_dense_experts()
                owner.set_experts_implementation(implementation)
        yield
    finally:
        for owner, names in zip(owners, before, strict=True):
            owner.set_experts_implementation(names)


def _register_dense_experts() -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if DENSE not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(DENSE, _dense_experts)


def _dense_experts(layer: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Ask all experts about all tokens, and weigh the answers: no shape depends on the choice.

    Args:
        layer: A module of transformers that stacks the weights of its experts.
        hidden: (tokens, features)
        chosen: (tokens, choices) numbers of experts.
        weights: (tokens, choices)

    Returns:
        (tokens, features)
    """
    shares = (one_hot(chosen, layer.num_experts) * weights[..., None]).sum(1)  # (tokens, experts)
    first = layer.gate_up_proj if layer.has_gate else layer.up_proj
    turned = layer.is_transposed
    values = torch.einsum("th,ehi->tei" if turned else "th,eih->tei", hidden, first)
    if layer.has_bias:
        values = values + (layer.gate_up_proj_bias if layer.has_gate else layer.up_proj_bias)
    values = layer._apply_gate(values) if layer.has_gate else layer.act_fn(values)
    values = torch.einsum("tei,eih->teh" if turned else "tei,ehi->teh", values, layer.down_proj)
    if layer.has_bias:
        values = values + layer.down_proj_bias
    if layer.has_post_expert_norm:
        values = layer.post_expert_norm(values)
    return (values * shares[..., None]).sum(1).to(hidden.dtype)
