"""Matrices that change by a product of two thin ones (LoRA), while they themselves are frozen."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRankChange(nn.Module):
    """W to W + up down, with a `down` that is drawn and an `up` of zeros.

    Source: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2022).
    """

    def __init__(self, matrix: Tensor, rank: int, generator: torch.Generator) -> None:
        """Begin without a change.

        Args:
            matrix: (outputs, inputs).
            rank: Of the change; at most the smaller side is used.
            generator: Draws; on the CPU.
        """
        super().__init__()
        outputs, inputs = matrix.shape
        rank = min(rank, outputs, inputs)
        drawn = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        self.down = nn.Parameter(drawn.to(matrix))
        self.up = nn.Parameter(matrix.new_zeros(outputs, rank))

    def forward(self, matrix: Tensor) -> Tensor:
        """Return the changed matrix."""
        return matrix + self.up @ self.down


def make_low_rank_(model: nn.Module, rank: int, *, seed: int) -> None:
    """Freeze a model, and let the matrices of its linear layers change by low ranks.

    Args:
        model: Changed in place.
        rank: Of each change.
        seed: Of the draw.

    Raises:
        ValueError: If the model has no linear layer.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("rank needs linear layers; the model has none: train all, with rank 0.")
    model.requires_grad_(False)
    for layer in layers:
        own = LowRankChange(layer.weight, rank, generator)
        parametrize.register_parametrization(layer, "weight", own)


def merged(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors of a model under the names they had before `make_low_rank_`."""
    found = {}
    for name in names:
        path, _, last = name.rpartition(".")
        found[name] = getattr(model.get_submodule(path), last).detach().clone()
    return found
