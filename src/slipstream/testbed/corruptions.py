"""Images changed in a way that is known: related tasks from one data set."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def permuted(images: Tensor) -> Tensor:
    """Return the images with their places in another order, the same for all: (..., h, w)."""
    places = images.shape[-2] * images.shape[-1]
    order = torch.from_numpy(np.random.default_rng(0).permutation(places))
    return images.flatten(-2)[..., order].view(images.shape)


def turned(images: Tensor) -> Tensor:
    """Return the images after a quarter turn: (..., h, w)."""
    return torch.rot90(images, dims=(-2, -1)).contiguous()


def inverted(images: Tensor) -> Tensor:
    """Return the images with dark and light exchanged."""
    return -images


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "permuted": permuted,
    "turned": turned,
    "inverted": inverted,
}


def split_name(spec: str) -> tuple[str, Callable[[Tensor], Tensor] | None, str]:
    """Return the parts of `NAME+CHANGE:DIR`: the name, what changes the images, the folder.

    Args:
        spec: What names a data set; change and folder may be missing.

    Returns:
        The parts, None for no change.

    Raises:
        ValueError: If there is no such change.

    Example:
        >>> split_name("mnist:data"), split_name("digits+turned")[0]
        (('mnist', None, 'data'), 'digits')
    """
    before, _, folder = spec.partition(":")
    name, plus, change = before.partition("+")
    if plus and change not in CHANGES:
        raise ValueError(f"{spec!r}: a change must be {', '.join(CHANGES)}, got {change!r}.")
    return name, CHANGES.get(change), folder
