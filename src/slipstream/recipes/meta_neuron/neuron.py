"""The neuron: seven small maps that all units share, and the network that they rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

LIMIT, BOUND = 3.0, 1.0  # of weights and of the states of units, either way
TINY = 1e-6


@dataclass(frozen=True)
class NetworkState:
    """All that networks know, one for each stream."""

    weights: tuple[Tensor, ...]  # of each layer, (streams, inputs, units)
    units: Tensor  # the states of the units of all layers, (streams, units, channels)

    def detached(self) -> "NetworkState":
        """Return the same without a history."""
        return NetworkState(tuple(w.detach() for w in self.weights), self.units.detach())


class MetaNeuron(nn.Module):
    """The maps that replace neuron and update rule; they do not depend on a layer's size.

    Signals have a few channels, every unit a state h and every edge a weight w. Forward: z is the
    weighted sum of the signals, standardised over the units of a layer, and act(z, h) is passed
    on. An update moves h by inner(h, z, b), where b is the label passed back through the weights,
    and w by the product of prev(h of the unit before) and next(h of the unit after). No gradient
    is involved, and nothing is known of the order of units: permuted units stay permuted.

    Source: "A Meta-Learned Neuron model for Continual Learning" (Siry, 2021).

    Example:
        >>> neuron = MetaNeuron((64, 32, 10))
        >>> sum(value.numel() for value in neuron.parameters())
        801
    """

    def __init__(self, sizes: Sequence[int], *, channels: int = 5, hidden: int = 10) -> None:
        """Draw the maps.

        Args:
            sizes: Inputs, units of each hidden layer, and classes of the networks it rules.
            channels: Of signals and states.
            hidden: Units within each map.

        Raises:
            ValueError: If there are fewer than two sizes.
        """
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must be those of inputs and classes at least, got {sizes}.")
        self.sizes, self.channels = tuple(sizes), channels
        shapes = {
            "expand": (1, channels), "act": (2 * channels, channels), "shrink": (channels, 1),
            "first": (1, channels), "inner": (3 * channels, channels),
            "prev": (channels, channels), "next": (channels, channels),
        }  # fmt: skip
        self.maps = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(before, hidden), nn.ReLU(), nn.Linear(hidden, after, bias=False)
                )
                for name, (before, after) in shapes.items()
            }
        )
        self.rate = nn.Parameter(torch.ones(()))

    def born(self, streams: int, generator: torch.Generator) -> NetworkState:
        """Return networks that know nothing: weights from N(0, 1), states of 0."""
        like = self.rate
        weights = tuple(
            torch.randn(streams, before, after, generator=generator).to(like)
            for before, after in pairwise(self.sizes)
        )
        units = torch.zeros(streams, sum(self.sizes[1:]), self.channels).to(like)
        return NetworkState(weights, units)

    def forward(
        self, state: NetworkState, inputs: Tensor, labels: Tensor, queries: Tensor
    ) -> tuple[NetworkState, Tensor]:
        """Absorb a piece of each stream, then answer.

        Args:
            state: Of the networks.
            inputs: (streams, steps, ...), absorbed one after another.
            labels: int64, (streams, steps).
            queries: (streams, queries, ...).

        Returns:
            The state afterwards, and the logits of the queries, (streams, queries, classes).
        """
        for step in range(inputs.shape[1]):
            state = self.update(state, inputs[:, step], labels[:, step])
        return state, self.logits(state, queries)

    def logits(self, state: NetworkState, inputs: Tensor) -> Tensor:
        """Return the answers of the networks: (streams, examples, classes)."""
        found: Tensor = self.maps["shrink"](self._signals(state, inputs.flatten(2))[1])
        return found.squeeze(-1)

    def update(self, state: NetworkState, inputs: Tensor, labels: Tensor) -> NetworkState:
        """Learn one labelled example in each stream.

        Args:
            state: Of the networks.
            inputs: (streams, ...).
            labels: int64, (streams,).

        Returns:
            The new state.
        """
        inputs = inputs.flatten(1)
        sums = [total[:, 0] for total in self._signals(state, inputs[:, None])[0]]
        label = nn.functional.one_hot(labels, self.sizes[-1]).to(inputs)
        back = [label[..., None].expand(-1, -1, self.channels)]
        for weight in reversed(state.weights[1:]):
            back.insert(0, _standardised(weight @ back[0]))
        # The maps see the units of all layers at once: they are the same everywhere.
        seen = torch.cat([state.units, torch.cat(sums, 1), torch.cat(back, 1)], -1)
        units = self.maps["inner"](seen).clamp(-BOUND, BOUND)
        before = torch.cat([self.maps["first"](inputs[..., None]), units[:, : -self.sizes[-1]]], 1)
        left = torch.split(self.maps["prev"](before), list(self.sizes[:-1]), 1)
        right = torch.split(self.maps["next"](units), list(self.sizes[1:]), 1)
        weights = []
        for weight, u, v in zip(state.weights, left, right, strict=True):
            u, v = nn.functional.normalize(u, dim=1), nn.functional.normalize(v, dim=1)
            moved = torch.baddbmm(weight, self.rate * u, v.mT)  # summed over the channels
            weights.append(moved.clamp(-LIMIT, LIMIT))
        return NetworkState(tuple(weights), units)

    def _signals(self, state: NetworkState, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """The standardised sums of each layer, and the last signals; of (streams, n, inputs)."""
        signal, sums = self.maps["expand"](inputs[..., None]), []
        states = state.units[:, None].expand(-1, inputs.shape[1], -1, -1)
        for weight, unit in zip(
            state.weights, torch.split(states, list(self.sizes[1:]), 2), strict=True
        ):
            sums.append(_standardised(torch.einsum("snm,sqnc->sqmc", weight, signal)))
            signal = self.maps["act"](torch.cat([sums[-1], unit], -1))
        return sums, signal


def _standardised(values: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the units, per channel; of (..., units, channels)."""
    rows = values.transpose(-1, -2)
    return nn.functional.layer_norm(rows, rows.shape[-1:], eps=TINY).transpose(-1, -2)
