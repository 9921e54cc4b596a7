"""A DeepONet: a network from a function, seen at sensors, to another function."""

from itertools import pairwise

import torch
from torch import Tensor, nn

PERIOD = 1.0  # of x


class Waves(nn.Module):
    """(points, 2), x and t, to sines and cosines of x, and t between -1 and 1."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, points: Tensor) -> Tensor:
        """Return features that are periodic in x, (points, 2 count + 1)."""
        x, t = points.unbind(-1)
        angles = x[:, None] * self._waves(points)
        return torch.cat([angles.sin(), angles.cos(), 2 * t[:, None] - 1], -1)

    def derivatives(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the features and their derivatives by t, by x and twice by x."""
        value, waves = self(points), self._waves(points)
        sines, cosines, _ = value.split([self.count, self.count, 1], -1)
        none = torch.zeros_like(sines)
        last = torch.ones_like(value[:, :1])
        by_t = torch.cat([none, none, 2 * last], -1)
        by_x = torch.cat([waves * cosines, -waves * sines, 0 * last], -1)
        by_xx = torch.cat([-(waves**2) * sines, -(waves**2) * cosines, 0 * last], -1)
        return value, by_t, by_x, by_xx

    def _waves(self, points: Tensor) -> Tensor:
        return torch.arange(1, self.count + 1).to(points) * (2 * torch.pi / PERIOD)


class _Linear(nn.Linear):
    """A layer that draws its weights as tanh wants them."""

    def reset_parameters(self) -> None:
        """Draw new weights."""
        nn.init.xavier_normal_(self.weight)
        nn.init.zeros_(self.bias)


class DeepONet(nn.Module):
    """G[u](x, t) = sum over k of p_k(u) b_k(x, t): the branch gives p, the trunk gives b.

    Both are tanh networks. What comes out is periodic in x by construction.

    Source: "Learning nonlinear operators via DeepONet" (Lu et al., 2021).

    Example:
        >>> network = DeepONet(sensors=8, width=4, terms=3)
        >>> network(torch.zeros(5, 8), torch.rand(7, 2)).shape
        torch.Size([5, 7])
    """

    def __init__(
        self,
        *,
        sensors: int = 64,
        width: int = 64,
        terms: int = 40,
        hidden_layers: int = 3,
        waves: int = 4,
    ) -> None:
        """Draw the weights.

        Args:
            sensors: Where input functions are seen.
            width: Units of each hidden layer.
            terms: Summands, the outputs of branch and trunk.
            hidden_layers: Of each of the two.
            waves: Sines and cosines of x that the trunk is given.
        """
        super().__init__()
        hidden = [width] * hidden_layers
        self.branch = nn.Sequential(*_layers([sensors, *hidden, terms]))
        self.trunk = nn.Sequential(Waves(waves), *_layers([2 * waves + 1, *hidden, terms]))

    def forward(self, functions: Tensor, points: Tensor) -> Tensor:
        """Map functions (functions, sensors) to values at points (points, 2): x, then t.

        Returns:
            (functions, points).
        """
        product: Tensor = self.branch(functions) @ self.trunk(points).T
        return product


def _layers(sizes: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [_Linear(before, after), nn.Tanh()]
    return layers[:-1]
