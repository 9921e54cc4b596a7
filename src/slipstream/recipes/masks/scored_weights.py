"""Random values for a model's weights, a score for each, and the mask that the scores give."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from slipstream.recipes.masks.plan import Initial
from slipstream.recipes.masks.random_weights import initial_scores, redraw, values_of_round
from slipstream.recipes.masks.selection import Masks
from slipstream.recipes.masks.ticket import Ticket, pruned
from slipstream.recipes.patterns import matches, matching
from slipstream.weights import Weights, clone, weights_of

Choose = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # scores to masks


class ScoredWeights:
    """Some weights of a model as random values that scores prune; `put` writes them into it."""

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        *,
        initial: Initial,
        seed: int,
        choose: Choose,
    ) -> None:
        """Draw values and scores, and put the pruned weights into the model.

        Args:
            model: Its parameters are written to from now on.
            weights: Those that are masked, by name.
            initial: From which distribution the values are.
            seed: Of values and scores.
            choose: Finds the masks of the scores.
        """
        self._model, self._weights = model, dict(weights)
        self._initial, self._seed, self._choose = initial, seed, choose
        self.random: dict[str, Tensor] = {}
        self.births: dict[str, Tensor] = {}  # the round that a weight's value is of
        self.scores: dict[str, nn.Parameter] = {}
        for number, (name, weight) in enumerate(self._weights.items()):
            shape = tuple(weight.shape)
            value = values_of_round(shape, initial, seed=seed, tensor=number, number=0)
            self.random[name] = value.to(weight)
            self.births[name] = torch.zeros(shape, dtype=torch.int32, device=weight.device)
            score = initial_scores(shape, seed=seed, tensor=number)
            # Small steps add up in a score: bfloat16 would lose them.
            wide = torch.promote_types(weight.dtype, torch.float32)
            self.scores[name] = nn.Parameter(score.to(weight.device, wide))
        self.masks: Masks = {}  # bool, as the weights: true where a weight stays
        self.rounds = 0
        self.put()

    def choose(self) -> Masks:
        """Find the masks of the scores as they are, and return them."""
        with torch.no_grad():
            self.masks = self._choose(self.scores)
        return self.masks

    @torch.no_grad()
    def put(self) -> None:
        """Find the masks, and let the model's parameters be the pruned weights."""
        self.choose()
        for name, weight in self._weights.items():
            weight.copy_(pruned(self.random[name], self.masks[name]))

    def randomize(self, share: float) -> None:
        """Re-initialise a random part of the pruned weights; scores and masks stay."""
        self.rounds += 1
        for number, (name, mask) in enumerate(self.masks.items()):
            self.random[name], new = redraw(
                self.random[name],
                mask,
                initial=self._initial,
                share=share,
                seed=self._seed,
                tensor=number,
                number=self.rounds,
            )
            self.births[name].masked_fill_(new, self.rounds)

    def ticket(self) -> Ticket:
        """Return what there is now: the chosen weights with all that makes them, copied."""
        everything = weights_of(self._model)
        return Ticket(
            seed=self._seed,
            initial=self._initial,
            names=tuple(everything),
            random=clone(self.random),
            masks=clone(self.masks),
            births=clone(self.births),
            others=clone({n: v for n, v in everything.items() if n not in self.masks}),
            scores=clone(self.scores),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs; the model's other tensors are not in it."""
        return {
            "scores": {name: score.detach() for name, score in self.scores.items()},
            "random": self.random,
            "births": self.births,
            "rounds": self.rounds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another one stopped, and put its weights into the model."""
        load: dict[str, tuple[Mapping[str, Tensor], Weights]] = {
            "scores": (self.scores, state["scores"]),
            "random": (self.random, state["random"]),
            "births": (self.births, state["births"]),
        }
        with torch.no_grad():
            for own, given in load.values():
                for name, value in own.items():
                    value.copy_(given[name])
        self.rounds = state["rounds"]
        self.put()


def maskable(model: nn.Module, exclude: tuple[str, ...] = ()) -> dict[str, nn.Parameter]:
    """Return the weights that can be masked: two or more dimensions, and a gradient.

    Args:
        model: Any module.
        exclude: Patterns of names to leave out.

    Returns:
        Name to parameter, in the order of the model.

    Raises:
        ValueError: If there is none, one is tied or parametrised, or a pattern matches nothing.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    for pattern in exclude:
        matching(named, pattern, name="exclude")
    found: dict[str, nn.Parameter] = {}
    for name, parameter in named.items():
        if parameter.dim() < 2 or not parameter.numel() or not parameter.requires_grad:
            continue
        if not parameter.is_floating_point() or matches(name, exclude):
            continue
        _check_own(model, name)
        for other, value in named.items():
            if value is parameter and other != name:
                raise ValueError(
                    f"{name!r} and {other!r} are one tied weight: it cannot have two scores. "
                    f"Exclude both: exclude=({name!r}, {other!r})."
                )
        found[name] = parameter
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no weight to mask: none of two or more dimensions that "
            "requires a gradient and is not excluded."
        )
    return found


def _check_own(model: nn.Module, name: str) -> None:
    """Raise if a forward pass computes the weight from others."""
    owner, _, leaf = name.rpartition(".")
    # Older wrappers leave what they compute under the plain name: `weight` beside `weight_orig`.
    computed = model.get_submodule(owner).__dict__.get(leaf.rpartition("_")[0])
    if isinstance(computed, Tensor) or "parametrizations" in owner.split("."):
        raise ValueError(
            f"{name!r} is parametrised: its layer computes the weight from it. Remove that first "
            f"(torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove), "
            f"or exclude it: exclude=({name!r},)."
        )


def neutral(model: nn.Module, exclude: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Return biases of 0, and gains of normalisation layers of 1, as if there were neither.

    Args:
        model: Any module; left as it was.
        exclude: Patterns of names to leave out.

    Returns:
        Name to value, of parameters with one dimension that require a gradient.
    """
    norms = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    found = {}
    for owner, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{owner}.{leaf}".lstrip(".")
            if parameter.dim() != 1 or not parameter.requires_grad or matches(name, exclude):
                continue
            if "bias" in leaf:
                found[name] = torch.zeros_like(parameter)
            elif leaf == "weight" and isinstance(module, norms):
                found[name] = torch.ones_like(parameter)
    return found
