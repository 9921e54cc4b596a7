"""Random changes of images that keep what they show: for losses that compare two views."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]  # inputs to changed inputs

SHIFT = 0.125  # of the height and the width, at most
TURN, SHEAR = 30.0, 0.3  # degrees; at most, either way
SCALES = (0.7, 1.3)
CUT = 0.5  # of the height and the width, at most
CONTRASTS = (0.6, 1.4)


def shift_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to an eighth of its size: the weak change.

    That of FixMatch without its flips, since letters and digits become others when mirrored. What
    comes in from outside repeats the border.

    Args:
        images: (images, channels, height, width).
        generator: All randomness comes from it; on the device of the images.

    Returns:
        The changed images.

    Raises:
        ValueError: If the inputs are not images.

    Example:
        >>> shift_images(torch.ones(2, 1, 4, 4), torch.Generator()).unique()
        tensor([1.])
    """
    _check_images(images)
    count = len(images)
    moves = _uniform((count, 2), generator, images) * 2 * SHIFT  # the square has a side of 2
    straight = torch.eye(2).to(images).expand(count, 2, 2)
    return _transformed(images, torch.cat([straight, moves[:, :, None]], 2))


def distort_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, shear, scale and shift every image, change its contrast, cut a square: the strong one.

    It stands in for RandAugment and Cutout: turned by up to 30 degrees, sheared by up to 0.3,
    scaled by 0.7 to 1.3, shifted by up to an eighth, contrast around the image's mean by 0.6 to
    1.4; then a square of up to half the size is set to the image's mean.

    Args:
        images: (images, channels, height, width).
        generator: All randomness comes from it; on the device of the images.

    Returns:
        The changed images.

    Raises:
        ValueError: If the inputs are not images.

    Example:
        >>> distort_images(torch.ones(2, 1, 4, 4), torch.Generator()).unique()
        tensor([1.])
    """
    _check_images(images)
    angle, shear, scale, *moves, contrast = _uniform((6, len(images)), generator, images)
    angle, shear = angle * math.radians(TURN), shear * SHEAR
    scale, cos, sin = _between(scale, SCALES), angle.cos(), angle.sin()
    rows = [
        torch.stack([cos / scale, (cos * shear - sin) / scale, moves[0] * 2 * SHIFT], 1),
        torch.stack([sin / scale, (sin * shear + cos) / scale, moves[1] * 2 * SHIFT], 1),
    ]
    changed = _transformed(images, torch.stack(rows, 1))
    mean = changed.mean((1, 2, 3), keepdim=True)
    changed = mean + (changed - mean) * _between(contrast, CONTRASTS).view(-1, 1, 1, 1)
    return torch.where(_squares(images, generator), mean, changed)


def _squares(images: Tensor, generator: torch.Generator) -> Tensor:
    """True in a square at a random place of every image: (images, 1, height, width)."""
    size, *centre = _uniform((3, len(images)), generator, images)
    half = (size + 1) / 2 * CUT  # of a side of 2
    inside = [
        (torch.linspace(-1, 1, length).to(images) - middle[:, None]).abs() <= half[:, None]
        for length, middle in zip(images.shape[-2:], centre, strict=True)
    ]
    squares: Tensor = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return squares


def _transformed(images: Tensor, transform: Tensor) -> Tensor:
    size = list(images.shape)
    grid: Tensor = torch.nn.functional.affine_grid(transform, size, align_corners=False)
    changed: Tensor = torch.nn.functional.grid_sample(
        images, grid, padding_mode="border", align_corners=False
    )
    return changed


def _uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Values in [-1, 1)."""
    return torch.rand(shape, generator=generator, device=generator.device).to(like) * 2 - 1


def _between(values: Tensor, ends: tuple[float, float]) -> Tensor:
    return ends[0] + (values + 1) / 2 * (ends[1] - ends[0])


def _check_images(images: Tensor) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            "The augmentations that are built in are for images, (images, channels, height, "
            f"width); the inputs are {images.dtype} of shape {tuple(images.shape)}. Give your own "
            "as weak= and strong=, or use the losses pseudo-label or entropy, which need none."
        )
