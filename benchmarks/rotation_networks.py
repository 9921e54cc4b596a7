"""The networks that `rotations.py` trains: a small ViT, and a GPT for characters."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

LENGTH = 64  # characters in a text


class Block(nn.Module):
    """Attention and two layers, each behind a normalisation, each added."""

    def __init__(
        self, width: int, heads: int, norm: Callable[[int], nn.Module], *, causal: bool
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before, self.between = norm(width), norm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same."""
        read = self.before(x)
        parts = (layer(read) for layer in (self.query, self.key, self.value))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        found: Tensor = x + self.narrow(nn.functional.gelu(self.wide(self.between(x))))
        return found


class Vit(nn.Module):
    """A vision transformer for images of 32 x 32, with LayerNorm: patches of 8 x 8."""

    def __init__(
        self, *, width: int = 96, layers: int = 3, heads: int = 4, classes: int = 10
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, stride=8)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        blocks = (Block(width, heads, nn.LayerNorm, causal=False) for _ in range(layers))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, 32, 32) to (batch, classes)."""
        tokens = self.patch(x).flatten(2).mT + self.position
        found: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return found


class Gpt(nn.Module):
    """A causal transformer with RMSNorm, learned positions and a head of its own."""

    def __init__(
        self, *, characters: int, width: int = 96, layers: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(characters, width)
        self.position = nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(
            *(Block(width, heads, nn.RMSNorm, causal=True) for _ in range(layers))
        )
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, characters, bias=False)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Map (batch, length) to (batch, length, characters)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        found: Tensor = self.head(
            self.norm(self.blocks(self.token(ids) + self.position(positions)))
        )
        return found
