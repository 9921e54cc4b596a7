"""Models whose tensors are cut over several processes: FSDP2 (`fully_shard`), tensor parallelism.

Each process holds one rectangular piece of a tensor, as a `DTensor`. This is all that the package
knows of them: everything else sees tensors.
"""

import sys
from typing import Any

from torch import Tensor, nn

Region = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes of a piece in its tensor


def is_cut(value: Tensor) -> bool:
    """Return whether this process holds a piece of a tensor only."""
    # Importing it takes half a second, and whoever has such tensors has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Return whether the tensors of a model are cut over several processes."""
    return _is_fsdp(model) or any(map(is_cut, model.parameters()))


def region_of(value: Tensor) -> Region:
    """Return which piece of a tensor this process holds: all of it, unless it is cut.

    Example:
        >>> import torch
        >>> region_of(torch.zeros(2, 3))
        ((0, 0), (2, 3))
    """
    if not is_cut(value):
        return (0,) * value.dim(), tuple(value.shape)
    pieces: Any = value
    (chunk,) = pieces.__create_chunk_list__()  # what torch.distributed.checkpoint asks
    return tuple(chunk.offsets), tuple(chunk.sizes)


def local_part(value: Tensor) -> Tensor:
    """Return the piece that this process holds, as a plain tensor that shares its memory."""
    return value.to_local() if is_cut(value) else value  # type: ignore[attr-defined]


def gathered(value: Tensor) -> Tensor:
    """Return the whole tensor; all processes that hold a piece have to ask for it."""
    return value.full_tensor() if is_cut(value) else value  # type: ignore[attr-defined]


def cut_like(value: Tensor, own: Tensor) -> Tensor:
    """Return what this process holds of a whole tensor that is cut as `own` is.

    Args:
        value: The whole tensor, or one that is cut already.
        own: A tensor of the model.

    Returns:
        A tensor that can be copied into `own`; nothing is communicated.

    Raises:
        ValueError: If `value` is cut in another way.
    """
    if is_cut(value):
        same = is_cut(own) and _cut(value) == _cut(own)
        if not same:
            raise ValueError(
                f"A tensor is cut as {_cut(value)}, in the model as {_cut(own)}: the number of "
                "processes or the way of sharding has changed. Save and load such tensors with "
                "torch.distributed.checkpoint, or gather them first: value.full_tensor()."
            )
        return value
    if not is_cut(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    given: Any = own
    whole = value.detach().to(given.device)
    return distribute_tensor(whole, given.device_mesh, given.placements, src_data_rank=None)


def refuse_flat(model: nn.Module) -> None:
    """Raise if a model is sharded by FSDP1, which hides the tensors in flat ones."""
    flat = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    if flat is not None and any(isinstance(module, flat) for module in model.modules()):
        raise TypeError(
            "The model is wrapped in FullyShardedDataParallel, which cuts all tensors of a layer "
            "together: use torch.distributed.fsdp.fully_shard (FSDP2) instead."
        )


def class_of(model: nn.Module) -> type:
    """Return the class of a model: `fully_shard` puts a subclass of its own in the place of it."""
    return type(model).__bases__[-1] if _is_fsdp(model) else type(model)


def _is_fsdp(model: nn.Module) -> bool:
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and isinstance(model, module.FSDPModule)


def _cut(value: Tensor) -> tuple[Any, ...]:
    held: Any = value
    return (tuple(held.device_mesh.shape), held.placements) if is_cut(value) else ("whole",)
