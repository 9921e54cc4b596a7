"""The shape and the dtype of a tensor, as plain data: read without torch."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SIZES = {  # bytes of one value
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e5m2", "float8_e4m3fn"), 1),
    **dict.fromkeys(("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("uint16", "int16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("uint32", "int32", "float32", "complex32"), 4),
    **dict.fromkeys(("uint64", "int64", "float64", "complex64"), 8),
    "complex128": 16,
}


@dataclass(frozen=True)
class TensorForm:
    """The shape and the dtype of a tensor.

    Example:
        >>> import torch
        >>> TensorForm.of(torch.zeros(2, 3)) == TensorForm((2, 3), "float32")
        True
    """

    shape: tuple[int, ...]
    dtype_name: str  # such as "float32"; a dtype of torch is taken too, and kept as its name

    def __post_init__(self) -> None:
        name = dtype_name(self.dtype_name)
        if name not in _SIZES:
            raise ValueError(f"there is no dtype {name!r}")
        object.__setattr__(self, "dtype_name", name)

    @classmethod
    def of(cls, tensor: "torch.Tensor") -> "TensorForm":
        """Return the form of a tensor."""
        return cls(tuple(tensor.shape), dtype_name(tensor.dtype))

    @property
    def dtype(self) -> "torch.dtype":
        """The dtype."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype_name)
        return found

    @property
    def continuous(self) -> bool:
        """Whether values can lie between two others: floating or complex, not counters."""
        return "float" in self.dtype_name or "complex" in self.dtype_name

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return _SIZES[self.dtype_name]

    @property
    def bytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.itemsize

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype_name}"


def dtype_name(dtype: "torch.dtype | str") -> str:
    """Return the name of `dtype` without `torch.`, such as "float32"."""
    return str(dtype).removeprefix("torch.")
