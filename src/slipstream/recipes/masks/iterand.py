"""Training by choosing which random weights stay: edge-popup, and IteRand, in your own loop."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from slipstream.recipes.masks.plan import IterandPlan
from slipstream.recipes.masks.scored_weights import ScoredWeights, maskable, neutral
from slipstream.recipes.masks.selection import Masks, select
from slipstream.recipes.masks.ticket import Ticket
from slipstream.recipes.patterns import matches
from slipstream.trajectory.optimizer_steps import after_each_step
from slipstream.weights import load_weights_

ROUNDS = 117  # of randomisation in a training, as in the paper
EVERY = 300  # steps between them, where the length of the training is not known


class Iterand:
    """Lets a model's own weights be random, those with low scores pruned, while scores are trained.

    While it is attached, the model's parameters hold m w, ordinary weights: w random, m = 1 where
    the score is among the highest. Any module will do, and whatever looks at its weights sees the
    pruned network. After the backward pass a score s of a weight w gets the gradient straight
    through the mask, dL/ds = w dL/d(m w) (times the sign of s if absolute scores are ranked).
    After each step of the optimiser the mask is found again; every `plan.every` steps some of the
    pruned weights are re-initialised, which leaves the function as it is.

    Weights are masked that have two or more dimensions and require a gradient. All other
    parameters are frozen; what is excluded is left alone, and may be trained by the same optimiser.

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
        """Initialise weights and scores, and put the pruned weights into the model.

        Args:
            model: Its parameters are written to from now on.
            plan: How many weights are pruned, and how.
            steps: How long the training will be, so that randomisations are spread over it; without
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
            load_weights_(model, neutral(model, self.plan.exclude))
        self._scored = ScoredWeights(
            model,
            self._weights,
            initial=self.plan.initial,
            seed=self.plan.seed,
            choose=self._choose,
        )
        self.step = 0
        self._undo: list[Callable[[], object]] = []

    @property
    def scores(self) -> dict[str, nn.Parameter]:
        """The scores, by the names of the weights."""
        return self._scored.scores

    @property
    def masks(self) -> Masks:
        """Bool, as the weights: true where a weight stays."""
        return self._scored.masks

    @property
    def rounds(self) -> int:
        """How many times weights were re-initialised."""
        return self._scored.rounds

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
            elif not matches(name, self.plan.exclude):
                parameter.requires_grad_(False)
        self._undo.append(after_each_step(optimizer, self._after_step))
        return self

    def close(self) -> None:
        """Release optimiser and gradients; the model keeps the pruned weights."""
        while self._undo:
            self._undo.pop()()

    def randomize(self) -> None:
        """Re-initialise a random part of the pruned weights; scores and masks stay."""
        self._scored.randomize(self.plan.redrawn)

    def ticket(self) -> Ticket:
        """Return the present ticket: the chosen weights with all that makes them, copied."""
        return self._scored.ticket()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs; the model's other tensors are not in it."""
        return {**self._scored.state_dict(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another one stopped, and put its weights into the model."""
        self._scored.load_state_dict(state)
        self.step = state["step"]

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
        self._scored.put()
        if self.plan.redrawn and self.step % self.every == 0:
            self.randomize()

    def _choose(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        plan = self.plan
        return select(scores, self._shares, selection=plan.selection, ranking=plan.ranking)

    def _sender(self, name: str) -> Callable[[Tensor], None]:
        """What gives a weight's gradient to its score."""

        @torch.no_grad()
        def send(weight: Tensor) -> None:
            if weight.grad is None:  # the loss does not depend on it
                return
            score = self.scores[name]
            slope = (weight.grad * self._scored.random[name]).to(score.dtype)
            if self.plan.ranking == "absolute":
                slope *= score.sign()
            score.grad = slope if score.grad is None else score.grad + slope
            weight.grad = None

        return send


def _when_accumulated(
    parameter: nn.Parameter, function: Callable[[Tensor], None]
) -> RemovableHandle:
    hook: RemovableHandle = parameter.register_post_accumulate_grad_hook(function)  # type: ignore[no-untyped-call]
    return hook


def _restore(parameter: nn.Parameter) -> Callable[[], None]:
    """What gives a parameter its gradient and its `requires_grad` back."""
    kept, required = parameter.grad, parameter.requires_grad

    def restore() -> None:
        parameter.requires_grad_(required)
        parameter.grad = kept

    return restore
