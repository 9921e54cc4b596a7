"""Training by choosing which random weights stay: edge-popup, and IteRand beside your own loop."""

import fnmatch
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from slipstream.recipes.iterand_plan import IterandPlan
from slipstream.recipes.random_weights import initial_scores, redraw, values_of_round
from slipstream.recipes.selection import select
from slipstream.recipes.ticket import Ticket, pruned
from slipstream.weights import Weights, copy, load_weights_, weights_of

ROUNDS = 117  # of randomisation in a training, as in the paper
EVERY = 300  # steps between them, where the length of the training is not known


class Iterand:
    """Lets a model's own weights be random, those with low scores pruned, while scores are trained.

    While it is attached, the model's parameters hold m w, ordinary numbers: w random, m = 1 where
    the score is among the highest. Any module will do, and whatever looks at its weights sees the
    pruned network. After the backward pass a score s of a weight w gets the gradient straight
    through the mask, dL/ds = w dL/d(m w) (times the sign of s if absolute scores are ranked).
    After each step of the optimiser the mask is found anew; every `plan.every` steps some of the
    fallen weights are drawn anew, which leaves the function as it is.

    Weights are masked that have two or more dimensions and require a gradient. What else there is
    is frozen; what is excluded is left alone, and may be trained by the same optimiser.

    Source: "Pruning Randomly Initialized Neural Networks with Iterative Randomization" (Chijiwa et
    al., 2021), algorithm 1; "What's Hidden in a Randomly Weighted Neural Network?" (Ramanujan et
    al., 2020), section 3.2.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> iterand = Iterand(model, IterandPlan(pruned=0.5))
        >>> optimizer = torch.optim.SGD(iterand.parameters(), lr=0.1)
        >>> with iterand.attach(optimizer):
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(1, 4)).square().sum().backward()
        ...         optimizer.step()
        >>> int((model.weight == 0).sum()), iterand.step
        (4, 3)
    """

    def __init__(
        self, model: nn.Module, plan: IterandPlan | None = None, *, steps: int | None = None
    ) -> None:
        """Draw weights and scores, and put the pruned weights into the model.

        Args:
            model: Its parameters are written to from now on.
            plan: What and how.
            steps: How long the training will be: so randomisations are spread over it; without
                it, and without `plan.every`, there is one every 300 steps.

        Raises:
            ValueError: If there is nothing to mask, a weight to mask is tied or parametrised, or a
                pattern matches nothing.
        """
        self.plan = plan or IterandPlan()
        self._model = model
        self._weights = maskable(model, self.plan.exclude)
        self._shares = self.plan.shares(self._weights)
        self.every = self.plan.every or (max(1, round(steps / ROUNDS)) if steps else EVERY)
        if self.plan.biases == "zero":
            load_weights_(model, _neutral(model, self.plan.exclude))
        self._random: dict[str, Tensor] = {}
        self._births: dict[str, Tensor] = {}  # the round that a weight's value is of
        self.scores: dict[str, nn.Parameter] = {}
        seed = self.plan.seed
        for number, (name, weight) in enumerate(self._weights.items()):
            shape = tuple(weight.shape)
            value = values_of_round(shape, self.plan.initial, seed=seed, tensor=number, number=0)
            self._random[name] = value.to(weight)
            self._births[name] = torch.zeros(shape, dtype=torch.int32, device=weight.device)
            score = initial_scores(shape, seed=seed, tensor=number)
            # Small steps add up in a score: bfloat16 would lose them.
            wide = torch.promote_types(weight.dtype, torch.float32)
            self.scores[name] = nn.Parameter(score.to(weight.device, wide))
        self.masks: dict[str, Tensor] = {}  # bool, as the weights: true where a weight stays
        self.step = self.rounds = 0
        self._undo: list[Callable[[], object]] = []
        self._put()

    def parameters(self) -> list[nn.Parameter]:
        """Return the scores, for the optimiser."""
        return list(self.scores.values())

    def attach(self, optimizer: Optimizer) -> Self:
        """Send gradients to the scores, and follow the optimiser's steps, until it is closed.

        Attach a `Recorder` after this, so that it sees the new weights of a step.

        Args:
            optimizer: Trains the scores.

        Returns:
            Itself, for a `with` statement.

        Raises:
            RuntimeError: If it is attached already.
            ValueError: If the optimiser does not train the scores, or trains masked weights.
        """
        if self._undo:
            raise RuntimeError("This is attached to an optimizer already; close it first.")
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, score in self.scores.items():
            if id(score) not in trained or id(self._weights[name]) in trained:
                raise ValueError(
                    "The optimizer must train the scores, and no masked weight: make it of "
                    f"iterand.parameters(). See {name!r}."
                )
        for name, parameter in self._model.named_parameters():
            self._undo.append(_restore(parameter))
            if name in self._weights:
                parameter.grad = None
                hook = _when_accumulated(parameter, self._sender(name))
                self._undo.append(hook.remove)
            elif not _matches(name, self.plan.exclude):
                parameter.requires_grad_(False)
        self._undo.append(optimizer.register_step_post_hook(self._after_step).remove)
        return self

    def close(self) -> None:
        """Let go of optimiser and gradients; the model keeps the pruned weights."""
        while self._undo:
            self._undo.pop()()

    def randomize(self) -> None:
        """Draw a random part of the fallen weights anew; scores and masks stay."""
        self.rounds += 1
        for number, (name, mask) in enumerate(self.masks.items()):
            self._random[name], new = redraw(
                self._random[name],
                mask,
                initial=self.plan.initial,
                share=self.plan.redrawn,
                seed=self.plan.seed,
                tensor=number,
                number=self.rounds,
            )
            self._births[name].masked_fill_(new, self.rounds)

    def ticket(self) -> Ticket:
        """Return what there is now: the chosen weights with all that makes them, copied."""
        everything = weights_of(self._model)
        return Ticket(
            seed=self.plan.seed,
            initial=self.plan.initial,
            names=tuple(everything),
            random=copy(self._random),
            masks=copy(self.masks),
            births=copy(self._births),
            others=copy({n: v for n, v in everything.items() if n not in self.masks}),
            scores=copy(self.scores),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs; the model's other tensors are not in it."""
        return {
            "scores": {name: score.detach() for name, score in self.scores.items()},
            "random": self._random,
            "births": self._births,
            "step": self.step,
            "rounds": self.rounds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stopped, and put its weights into the model."""
        load: dict[str, tuple[Mapping[str, Tensor], Weights]] = {
            "scores": (self.scores, state["scores"]),
            "random": (self._random, state["random"]),
            "births": (self._births, state["births"]),
        }
        with torch.no_grad():
            for own, given in load.values():
                for name, value in own.items():
                    value.copy_(given[name])
        self.step, self.rounds = state["step"], state["rounds"]
        self._put()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _after_step(self, *_: object) -> None:
        self.step += 1
        self._put()
        if self.plan.redrawn and self.step % self.every == 0:
            self.randomize()

    @torch.no_grad()
    def _put(self) -> None:
        """Find the masks of the scores, and let the model's parameters be the pruned weights."""
        plan = self.plan
        self.masks = select(
            self.scores, self._shares, selection=plan.selection, ranking=plan.ranking
        )
        for name, weight in self._weights.items():
            weight.copy_(pruned(self._random[name], self.masks[name]))

    def _sender(self, name: str) -> Callable[[Tensor], None]:
        """What gives a weight's gradient to its score."""

        @torch.no_grad()
        def send(weight: Tensor) -> None:
            if weight.grad is None:  # the loss does not depend on it
                return
            score = self.scores[name]
            slope = (weight.grad * self._random[name]).to(score.dtype)
            if self.plan.ranking == "absolute":
                slope *= score.sign()
            score.grad = slope if score.grad is None else score.grad + slope
            weight.grad = None

        return send


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
        if not fnmatch.filter(named, pattern):
            raise ValueError(
                f"exclude: {pattern!r} matches no parameter of {type(model).__name__}."
            )
    found: dict[str, nn.Parameter] = {}
    for name, parameter in named.items():
        if parameter.dim() < 2 or not parameter.numel() or not parameter.requires_grad:
            continue
        if not parameter.is_floating_point() or _matches(name, exclude):
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


def _neutral(model: nn.Module, exclude: tuple[str, ...]) -> dict[str, Tensor]:
    """Biases 0, and the gains of normalisation layers 1, as if these had neither."""
    norms = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    found = {}
    for owner, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{owner}.{leaf}".lstrip(".")
            if parameter.dim() != 1 or not parameter.requires_grad or _matches(name, exclude):
                continue
            if "bias" in leaf:
                found[name] = torch.zeros_like(parameter)
            elif leaf == "weight" and isinstance(module, norms):
                found[name] = torch.ones_like(parameter)
    return found


def _when_accumulated(
    parameter: nn.Parameter, function: Callable[[Tensor], None]
) -> RemovableHandle:
    hook: RemovableHandle = parameter.register_post_accumulate_grad_hook(function)  # type: ignore[no-untyped-call]
    return hook


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _restore(parameter: nn.Parameter) -> Callable[[], None]:
    """What gives a parameter its gradient and its `requires_grad` back."""
    kept, required = parameter.grad, parameter.requires_grad

    def restore() -> None:
        parameter.requires_grad_(required)
        parameter.grad = kept

    return restore
