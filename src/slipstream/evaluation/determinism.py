"""Do two passes over the data give the same loss, and if not, which module is the cause?"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from slipstream.evaluation.batches import Batch, Loss, batch_size, device_of, to_device
from slipstream.evaluation.swapped_weights import weights_in
from slipstream.storage.fingerprints import batch_digest
from slipstream.weights import Weights


@dataclass(frozen=True)
class DeterminismProbe:
    """Result of `probe_determinism`."""

    deterministic: bool
    first_loss: float  # loss over the data set in the first pass
    second_loss: float
    suspects: tuple[str, ...]  # what made the passes differ, in words; empty if deterministic


def probe_determinism(
    model: nn.Module,
    loss: Loss,
    *,
    weights: Weights | None = None,
    data: Iterable[Batch],
    batch_size: Callable[[Batch], int] = batch_size,
) -> DeterminismProbe:
    """Pass over the data twice, in the mode the model is in, and name what differs.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        weights: What to probe instead of the model's own tensors.
        data: Batches; iterated twice.
        batch_size: What a batch weighs in the mean: its examples, or its tokens.

    Returns:
        Whether both passes gave the same batches and the same loss, and who is to blame if not.

    Raises:
        ValueError: If `data` is empty.
    """
    with weights_in(model, weights), torch.no_grad():
        first, second = (_pass_over(model, loss, data, batch_size) for _ in range(2))
        if not first.digests:
            raise ValueError("data is empty: there is no batch to probe.")
        repeated = [float(loss(model, first.batch)) for _ in range(2)]
    suspects = _data_suspects(first, second)
    if not _same(*repeated):
        suspects += _model_suspects(model)
    if not suspects and not _same(first.loss, second.loss):
        suspects = (
            "the computation: equal batches gave unequal losses (kernels, or hidden state)",
        )
    return DeterminismProbe(not suspects, first.loss, second.loss, suspects)


@dataclass(frozen=True)
class _Pass:
    digests: tuple[bytes, ...]  # one for each batch
    loss: float  # the mean over the pass, NaN if it was empty
    batch: Batch  # the first one


def _pass_over(
    model: nn.Module, loss: Loss, data: Iterable[Batch], size_of: Callable[[Batch], int]
) -> _Pass:
    device = device_of(model)
    digests, sizes, losses, first = [], [], [], None
    for batch in data:
        moved = to_device(batch, device)
        first = moved if first is None else first
        digests.append(batch_digest(batch))
        sizes.append(size_of(batch))
        losses.append(float(loss(model, moved)))
    total = sum(size * value for size, value in zip(sizes, losses, strict=True))
    return _Pass(tuple(digests), total / sum(sizes) if sizes else math.nan, first)


def _data_suspects(first: _Pass, second: _Pass) -> tuple[str, ...]:
    if first.digests == second.digests:
        return ()
    if not second.digests:
        return ("the data: the second pass gave no batches (a generator runs out; pass a list)",)
    return ("the data: two passes gave different batches (random augmentation or shuffling)",)


def layers_that_drop(model: nn.Module) -> list[str]:
    """Return the names of the layers that drop something at random in the mode they are in."""
    return [name for name, m in model.named_modules() if m.training and _drops(m)]


def _model_suspects(model: nn.Module) -> tuple[str, ...]:
    names = layers_that_drop(model)
    return tuple(f"dropout in train mode at {name or 'the model'}" for name in names) or (
        "the model or the loss: a random operation (two losses on the same batch differ)",
    )


def _drops(module: nn.Module) -> bool:
    """Dropout, DropPath, RReLU and their like, or attention and recurrence with a dropout rate."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    named = any(word in type(module).__name__ for word in ("Drop", "StochasticDepth", "RReLU"))
    rate = getattr(module, "dropout", 0.0)
    return named or (isinstance(rate, float) and rate > 0)


def _same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))
