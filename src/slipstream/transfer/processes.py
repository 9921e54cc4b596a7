"""Several processes that share one transfer (torchrun): who writes, and what is averaged."""

import torch.distributed
from torch import Tensor


def in_process_group() -> bool:
    """Return whether this process is one of several that share the work."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_main_process() -> bool:
    """Return whether this process writes: the only one, or the one of rank 0."""
    return not in_process_group() or torch.distributed.get_rank() == 0


def mean_over_processes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average floating-point tensors over all processes, in place; alone, leave them."""
    if in_process_group():
        for value in tensors.values():
            if value.is_floating_point():
                torch.distributed.all_reduce(value)
                value /= torch.distributed.get_world_size()
    return tensors
