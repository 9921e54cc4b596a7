"""The shape and the dtype of a tensor, as plain data."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TensorForm:
    """The shape and the dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """How much room the numbers take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.shape} {dtype_name(self.dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of `dtype` without `torch.`, such as "float32"."""
    return str(dtype).removeprefix("torch.")
