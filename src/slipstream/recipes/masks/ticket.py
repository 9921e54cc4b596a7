"""A ticket: random weights of which a mask keeps some, and how to export it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from slipstream.recipes.masks.plan import Initial
from slipstream.recipes.masks.selection import Masks, share_pruned
from slipstream.symmetry.gather import multiply, take
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import Weights, load_weights_


@dataclass(frozen=True)
class Ticket:
    """Result of `Iterand.ticket`: which random weights stay, and what reproduces them.

    Example:
        >>> from slipstream.recipes import Iterand, IterandPlan
        >>> ticket = Iterand(nn.Linear(4, 2), IterandPlan(pruned=0.25)).ticket()
        >>> ticket.pruned
        {'weight': 0.25}
        >>> list(ticket.weights)
        ['weight', 'bias']
    """

    seed: int | None  # of the values and choices of all rounds; None once it was permuted
    initial: Initial
    names: tuple[str, ...]  # of all tensors, in the order of the model
    random: Weights  # values of the masked weights, pruned ones included
    masks: Masks  # bool, as the weights: true where a weight stays
    births: Mapping[str, Tensor]  # int32, as the weights: the round that its value was drawn in
    others: Weights  # all other tensors: biases, running statistics, what was excluded
    scores: Weights | None = None  # as the weights; None if only the mask was kept

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The ordinary weights of the model: m w, and all other tensors."""
        own = {name: pruned(self.random[name], mask) for name, mask in self.masks.items()}
        return {name: own[name] if name in own else self.others[name] for name in self.names}

    @property
    def pruned(self) -> dict[str, float]:
        """The share of the weights that is pruned, by layer."""
        return share_pruned(self.masks)

    def permute(self, permutation: Permutation) -> "Ticket":
        """Return the ticket with its neurons in another order: the same function.

        Scores, masks and values go where their weights go; a change of sign is one of the values
        alone. No seed gives the new order, so a permuted ticket cannot be written as a seed.

        Args:
            permutation: Of the neuron groups of the model.

        Returns:
            The permuted ticket, without a seed.
        """

        def moved(tensors: Mapping[str, Tensor], *, signs: bool = False) -> dict[str, Tensor]:
            found = {n: take(value, permutation.indices(n)) for n, value in tensors.items()}
            return (
                {n: multiply(v, permutation.factors(n)) for n, v in found.items()}
                if signs
                else found
            )

        return replace(
            self,
            seed=None,
            random=moved(self.random, signs=True),
            masks=moved(self.masks),
            births=moved(self.births),
            others=moved(self.others, signs=True),
            scores=None if self.scores is None else moved(self.scores),
        )

    def prune_state(self) -> dict[str, Tensor]:
        """Return the state dict of the model under `torch.nn.utils.prune`.

        It fits a model whose masked weights were pruned before, by `prune.identity` or `prune_`:
        a weight is two tensors there, `weight_orig` and `weight_mask`.

        Returns:
            State-dict names to tensors.
        """
        state = dict(self.others)
        for name, mask in self.masks.items():
            state[f"{name}_orig"] = self.random[name]
            state[f"{name}_mask"] = mask.to(self.random[name])
        return state

    def prune_(self, model: nn.Module) -> None:
        """Put the ticket into `model`, its masks as those of `torch.nn.utils.prune`.

        Args:
            model: Of the same layout, not pruned yet.

        Raises:
            ValueError: If a tensor is unknown to the model or has another shape.
        """
        load_weights_(model, {**self.others, **self.random})
        for name, mask in self.masks.items():
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            prune.custom_from_mask(module, leaf, mask)  # type: ignore[no-untyped-call]


def pruned(values: Tensor, mask: Tensor) -> Tensor:
    """Return m w: the values where the mask is true, else 0."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
