"""What each exchange inside a neuron group is worth, with the sign that makes the best of it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Similarity:
    """Entry [i, j] is what the objective gets when place i receives source neuron j."""

    even: Tensor  # (*parents, n, n): whatever the sign
    odd: Tensor | None = None  # the same times the sign of the neuron, in a signed group

    @property
    def best(self) -> Tensor:
        """Every entry with its better sign, (*parents, n, n)."""
        return self.even if self.odd is None else self.even + self.odd.abs()

    def signs(self, order: Tensor) -> Tensor | None:
        """Return the better sign of each place, (*parents, n) int8; None if there is no choice."""
        if self.odd is None:
            return None
        return torch.where(_chosen(self.odd, order) < 0, -1, 1).to(torch.int8)

    def worth(self, order: Tensor, signs: Tensor | None = None) -> float:
        """Return what an order is worth, with signs that are +1 by default.

        Args:
            order: (*parents, n) the source neuron that each place receives.
            signs: (*parents, n) its sign.

        Returns:
            The sum of the chosen entries.

        Example:
            >>> entries = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
            >>> Similarity(entries, entries).worth(torch.tensor([1, 0]), torch.tensor([1, -1]))
            10.0
        """
        value = _chosen(self.even, order)
        if self.odd is not None:
            odd = _chosen(self.odd, order)
            value = value + (odd if signs is None else odd * signs.to(odd))
        return float(value.sum(dtype=torch.float64))


def _chosen(entries: Tensor, order: Tensor) -> Tensor:
    return entries.gather(-1, order.to(entries.device).unsqueeze(-1)).squeeze(-1)
