"""Several processes that share the work (torchrun): which one writes, and what all agree on."""

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


def in_process_group() -> bool:
    """Return whether this process is one of several that share the work."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_main_process() -> bool:
    """Return whether this process writes: the only one, or the one of rank 0."""
    return not in_process_group() or torch.distributed.get_rank() == 0


def from_main_process(value: T, group: "ProcessGroup | None" = None) -> T:
    """Return the main process's value in all of them: what only one may decide, or can read."""
    held = [value]
    if in_process_group():
        torch.distributed.broadcast_object_list(held, group=group)
    return held[0]


def on_main_process(work: Callable[[], T], group: "ProcessGroup | None" = None) -> T:
    """Do something in the main process only, and return its result in all of them.

    Args:
        work: Returns something that pickles.
        group: Of all processes, to communicate in; by default the usual one.

    Returns:
        What it returned.

    Raises:
        BaseException: What it raised, in all processes: none waits for a result in vain.
    """
    value: T | None = None
    error: BaseException | None = None
    if is_main_process():
        try:
            value = work()
        except BaseException as raised:  # ruff: ignore[blind-except]  an interruption, too
            error = raised
    if in_process_group():
        value, error = from_main_process((value, picklable(error)), group)
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def picklable(error: BaseException | None) -> BaseException | None:
    """Return an error that can be sent to other processes: itself, or one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # ruff: ignore[blind-except]  whatever an error's own pickling raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def of_all_processes(value: T, group: "ProcessGroup | None" = None) -> list[T]:
    """Return the values of all processes, in the order of their ranks."""
    if not in_process_group():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=group)
    return values


def pool_statistics(buffers: dict[str, Tensor], *, examples: int) -> dict[str, Tensor]:
    """Merge the BatchNorm statistics of all processes, weighted by how many examples each saw.

    Args:
        buffers: `running_mean` and `running_var` of each layer, and others that are left alone.
        examples: How many this process saw.

    Returns:
        Buffers that are the same in all processes; alone, those given.
    """
    if not in_process_group():
        return buffers
    share = examples / sum(of_all_processes(examples))
    pooled = dict(buffers)
    for name, local in buffers.items():
        if name.endswith("running_mean"):
            spread = f"{name.removesuffix('mean')}var"
            mean = _sum(share * local.double())
            variance = _sum(share * (buffers[spread].double() + (local - mean).square()))
            pooled |= {name: mean.to(local), spread: variance.to(local)}
    return pooled


def _sum(value: Tensor) -> Tensor:
    torch.distributed.all_reduce(value)
    return value
