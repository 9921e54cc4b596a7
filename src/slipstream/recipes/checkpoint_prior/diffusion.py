"""Noise that is added to weights, level by level, and the way back."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# The usual linear schedule of 1000 levels, from "Denoising Diffusion Probabilistic Models" (2020).
_FIRST, _LAST, _USUAL = 1e-4, 0.02, 1000


@dataclass(frozen=True, eq=False)
class Diffusion:
    """At level t the weights are sqrt(a_t) x + sqrt(1 - a_t) e, with e of the normal distribution.

    Source: "Denoising Diffusion Probabilistic Models" (Ho, Jain, Abbeel, 2020), Equations 4 and 7.
    """

    levels: int

    @cached_property
    def betas(self) -> Tensor:
        """The share of noise that each level adds, (levels,)."""
        scale = _USUAL / self.levels  # so that any number of levels ends in noise
        betas = torch.linspace(scale * _FIRST, scale * _LAST, self.levels, dtype=torch.float64)
        return betas.clamp(max=0.999)

    @cached_property
    def signal(self) -> Tensor:
        """The share of the variance that is left of the weights at each level, a_t: (levels,)."""
        return (1 - self.betas).cumprod(0)

    def noised(self, weights: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Return weights with noise.

        Args:
            weights: (batch, numbers).
            level: Of each, from 0: (batch,).
            noise: As the weights.

        Returns:
            (batch, numbers).
        """
        kept = self.signal.to(weights)[level][:, None]
        return kept.sqrt() * weights + (1 - kept).sqrt() * noise

    def sample(
        self, denoise: Callable[[Tensor, int], Tensor], like: Tensor, *, seed: int
    ) -> Tensor:
        """Return weights from nothing but noise, level by level.

        Args:
            denoise: Maps noisy weights and their level to the weights that are expected.
            like: Of the shape to return.
            seed: Of the noise.

        Returns:
            Weights, (batch, numbers).
        """
        generator = torch.Generator().manual_seed(seed)

        def noise() -> Tensor:
            return torch.randn(like.shape, generator=generator).to(like)

        current = noise()
        for level in reversed(range(1, self.levels)):
            expected = denoise(current, level)
            left, next_left = (float(self.signal[n]) for n in (level, level - 1))
            beta = float(self.betas[level])
            current = (
                expected * (next_left**0.5 * beta / (1 - left))
                + current * ((1 - beta) ** 0.5 * (1 - next_left) / (1 - left))
                + noise() * (beta * (1 - next_left) / (1 - left)) ** 0.5
            )
        return denoise(current, 0)
