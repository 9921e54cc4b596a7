"""A model that computes in double precision, whatever its code casts to."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WIDER = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}


def to_double(value: Any, *, copy: bool = False) -> Any:
    """Return a tensor of floating-point numbers in double precision, anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.to(WIDER.get(value.dtype, value.dtype), copy=copy)


class _InDoublePrecision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets `x.float()` inside a model keep float64."""

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        wide = {key: _wider(value) for key, value in (kwargs or {}).items()}
        return func(*args, **wide)


def _wider(value: Any) -> Any:
    return WIDER.get(value, value) if isinstance(value, torch.dtype) else value


@contextmanager
def double_precision() -> Generator[None]:
    """Let a model whose tensors are float64 compute in float64, whatever it casts them to."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _InDoublePrecision():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)
