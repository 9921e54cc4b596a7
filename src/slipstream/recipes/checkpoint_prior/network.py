"""The transformer that expects later weights from noisy ones, the start and two metrics."""

import math

import torch
from torch import Tensor, nn

from slipstream.recipes.checkpoint_prior.plan import PriorPlan
from slipstream.recipes.checkpoint_prior.tokens import TokenLayout

_SCALARS = 3  # noise level, metric of the start, wanted metric
_FREQUENCIES, _HIGHEST = 32, 1000.0


class PriorNetwork(nn.Module):
    """Returns start + D(noisy, start, scalars), where D is 0 before it is trained.

    The tokens of a group of neurons share an encoder and a decoder, so without positions a
    permutation of neurons that permutes tokens permutes what is returned, too.
    """

    def __init__(self, layout: TokenLayout, plan: PriorPlan) -> None:
        super().__init__()
        self.layout, width = layout, plan.width
        sizes = [kind.shape[1] for kind in layout.kinds]
        self.encoders = nn.ModuleList(nn.Linear(2 * size, width) for size in sizes)
        self.decoders = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        for parameter in self.decoders.parameters():
            nn.init.zeros_(parameter)
        tokens = sum(kind.shape[0] for kind in layout.kinds)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width)) if plan.positions else None
        self.scalars = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES * _SCALARS, width), nn.SiLU(), nn.Linear(width, width)
        )
        layer = nn.TransformerEncoderLayer(
            width, plan.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, plan.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, noisy: Tensor, start: Tensor, scalars: Tensor) -> Tensor:
        """Return the expected weights.

        Args:
            noisy: (batch, numbers).
            start: (batch, numbers).
            scalars: Noise level and metrics, from 0 to 1: (batch, scalars).

        Returns:
            (batch, numbers).
        """
        pairs = zip(self.encoders, *map(self.layout.split, (noisy, start)), strict=True)
        hidden = torch.cat([encode(torch.cat([a, b], -1)) for encode, a, b in pairs], 1)
        if self.positions is not None:
            hidden = hidden + self.positions
        hidden = hidden + self.scalars(_waves(scalars))[:, None]
        hidden = self.norm(self.body(hidden))
        parts = hidden.split([len(kind) for kind in self.layout.kinds], 1)
        tokens = [decode(part) for decode, part in zip(self.decoders, parts, strict=True)]
        return start + self.layout.join(tokens)


def _waves(scalars: Tensor) -> Tensor:
    """Sines and cosines of each scalar, (batch, 2 * scalars * frequencies)."""
    exponents = torch.linspace(0, math.log(_HIGHEST), _FREQUENCIES, device=scalars.device)
    angles = scalars[..., None] * exponents.exp()
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
