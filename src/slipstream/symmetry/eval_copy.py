"""A copy of a model that can be traced and proven: it computes the same, in the plainest way."""

import copy
import io
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import GeneratorType, ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.modules import transformer
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from slipstream.symmetry.chance import WithoutChance

DENSE = "slipstream_dense"  # under which transformers knows `_dense_experts`
SHARED: tuple[type, ...] = (type(threading.Lock()), type(threading.RLock()), ModuleType)
SHARED += (GeneratorType, io.TextIOWrapper, io.BufferedReader, io.BufferedWriter, io.FileIO)


@contextmanager
def evaluation_copy(model: nn.Module) -> Generator[nn.Module]:
    """Yield a copy of `model` in evaluation mode, or the model itself if it refuses to be copied.

    Either way, modes are as before when the block ends; what else a model keeps is put back by
    `untouched.left_as_it_was`.
    """
    modes = [(module, module.training) for module in model.modules()]
    replica = _copied(model)
    try:
        # The grouped products of transformers refuse float64, in which groups are proven.
        with plainly(), _experts(replica, "eager"):
            yield replica.eval()
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Generator[None]:
    """Run `model` in evaluation mode, or in training mode without chance.

    Dropout and the noise of training are left out, and normalisations use their running
    statistics: what remains are the branches and outputs that only training has.
    """
    if not training:
        model.eval()
        yield
        return
    model.train()
    changed: list[tuple[Any, float]] = []
    for module in model.modules():
        if isinstance(module, _DropoutNd | _NormBase):
            module.eval()
        elif isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            changed.append((module, module.dropout))
            module.dropout = 0.0
    try:
        with WithoutChance():
            yield
    finally:
        model.eval()
        for module, dropout in changed:
            module.dropout = dropout


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy that shares locks, and takes computed tensors out of their graph."""
    shared = dict.fromkeys(SHARED, _itself)
    try:
        with (
            patch.dict(copy._deepcopy_dispatch, shared),  # type: ignore[attr-defined]
            patch.object(Tensor, "__deepcopy__", _copied_tensor),
            patch.object(nn.Parameter, "__deepcopy__", _copied_parameter),
        ):
            replica = copy.deepcopy(model)
    except Exception:  # ruff: ignore[blind-except] - a class may refuse it in its own way
        return model
    own = {id(module) for module in model.modules()}
    return model if any(id(module) in own for module in replica.modules()) else replica


_copy_leaf = Tensor.__deepcopy__


def _copied_tensor(tensor: Tensor, memo: dict[int, Any]) -> Any:
    if id(tensor) in memo:
        return memo[id(tensor)]
    leaf = tensor if tensor.is_leaf else tensor.detach()
    memo.setdefault(id(memo), []).append(leaf)  # as long as its number stands in the memo
    memo[id(tensor)] = copied = _copy_leaf(leaf, memo)  # type: ignore[no-untyped-call]
    return copied


def _copied_parameter(parameter: nn.Parameter, memo: dict[int, Any]) -> Any:
    """As PyTorch does it, but parameters over the same memory are that again."""
    if id(parameter) not in memo:
        values = _copied_tensor(parameter.data, memo)
        memo[id(parameter)] = type(parameter)(values, parameter.requires_grad)
    return memo[id(parameter)]


def _itself(value: Any, _memo: dict[int, Any]) -> Any:
    return value


@contextmanager
def traceable(model: nn.Module) -> Generator[None]:
    """Let `model` run without looking at the values of tensors, as far as that can be arranged."""
    # As torch.export does it: models skip checks of values then, and caches of what they computed,
    # which would hand out tensors without values ever after.
    # `module.compile()` changes nothing but the speed, and so does a scan of transformers, in which
    # the tracer loses what a state depends on.
    plain = {"_compiled_call_impl": None, "use_associative_scan": False}
    before = [
        (module, name, getattr(module, name))
        for module in model.modules()
        for name in plain
        if getattr(module, name, None)
    ]
    for module, name, _ in before:
        setattr(module, name, plain[name])
    listed = [module for module in model.modules() if _lists_experts(module)]
    for module in listed:
        module.forward = partial(_listed_experts, module)
    try:
        with _experts(model, DENSE), patch.object(torch.compiler, "_is_compiling_flag", True):
            yield
    finally:
        for module in listed:
            del module.forward
        for module, name, value in before:
            setattr(module, name, value)


@contextmanager
def plainly() -> Generator[None]:
    """Let PyTorch's transformer layers take neither short cuts nor guesses from values."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            # Whether a mask is the causal one is a hint for kernels; the mask is applied anyway.
            if hasattr(transformer, "_detect_is_causal_mask"):
                stack.enter_context(patch.object(transformer, "_detect_is_causal_mask", _as_passed))
            # A `forward` that converts a module would replace the weights that it is called with.
            stack.enter_context(patch.object(nn.Module, "to", _as_it_is))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _as_passed(_mask: Tensor | None, is_causal: bool | None, _size: int | None) -> bool:
    return bool(is_causal)


def _as_it_is(module: nn.Module, *_args: Any, **_options: Any) -> nn.Module:
    return module


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


def _lists_experts(module: nn.Module) -> bool:
    """Whether a module of transformers holds its experts as modules: Switch, NLLB."""
    named = type(module).__module__.startswith("transformers.")
    return named and isinstance(module, nn.ModuleDict) and hasattr(module, "num_experts")


def _listed_experts(layer: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """As `_dense_experts`, of experts that are modules; `chosen` may be marks, not numbers."""
    marks = chosen if chosen.dim() == 3 else one_hot(chosen, layer.num_experts)
    shares = (marks * weights[..., None]).sum(1)  # (tokens, experts)
    answers = torch.stack([layer[f"expert_{n}"](hidden) for n in range(layer.num_experts)], 1)
    summed: Tensor = (answers * shares[..., None]).sum(1)
    return summed


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
