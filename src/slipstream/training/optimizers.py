"""Optimisers that PyTorch lacks: sign descent and Lion, and Muon for whole networks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer


class Lion(Optimizer):
    """Steps of one size against the sign of an average of the gradients; without one, sign descent.

    `w - lr sign(b1 m + (1 - b1) g)`, then `m = b2 m + (1 - b2) g`.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> weight.grad = torch.tensor([0.2, -3.0])
        >>> Lion([weight], lr=0.5, betas=(0.0, 0.0)).step()
        >>> weight.data
        tensor([ 0.5000, -0.5000])

    Source: "Symbolic Discovery of Optimization Algorithms" (Chen et al., 2023), Algorithm 2.
    """

    def __init__(self, params: Any, lr: float, *, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        """Take parameters as any optimiser does.

        Args:
            params: Parameters, or groups of them.
            lr: How far each weight moves per step.
            betas: Of the gradients before, in the step and in what is kept; zeros: sign descent.
        """
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step; there is no use for a `closure`."""
        for group in self.param_groups:
            in_step, kept = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                average: Tensor = state.setdefault("average", torch.zeros_like(weight))
                weight.sub_(average.lerp(weight.grad, 1 - in_step).sign_(), alpha=group["lr"])
                average.lerp_(weight.grad, 1 - kept)


class Muon(Optimizer):
    """PyTorch's Muon for the matrices and filters inside a network, AdamW for all else.

    Filters count as matrices, (out, in x height x width). Embeddings, the last layer with a matrix,
    biases and norms are left to AdamW. Updates are scaled so that one rate suits both.

    Source: "Muon is Scalable for LLM Training" (Liu et al., 2025), Section 2.2.
    """

    def __init__(self, module: nn.Module, lr: float) -> None:
        """Take a network.

        Args:
            module: Its parameters that require a gradient are trained.
            lr: The rate of both.
        """
        trained = [p for p in module.parameters() if p.requires_grad]
        super().__init__(trained, {"lr": lr})
        outside = {id(weight) for weight in _outside(module)}
        inside = [p for p in trained if p.dim() > 1 and id(p) not in outside]
        within = {id(weight) for weight in inside}
        rest = [p for p in trained if id(p) not in within]
        # Muon takes matrices only.
        self._inside = [(p, nn.Parameter(p.detach().flatten(1).clone())) for p in inside]
        self._parts: list[Optimizer] = []
        if inside:
            matrices = [matrix for _, matrix in self._inside]
            muon = torch.optim.Muon(matrices, lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)
        if rest:
            self._parts.append(AdamW(rest, lr, weight_decay=0.0))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step; there is no use for a `closure`."""
        for weight, matrix in self._inside:
            matrix.copy_(weight.flatten(1))
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            part.step()
        for weight, matrix in self._inside:
            weight.copy_(matrix.view_as(weight))


def _outside(module: nn.Module) -> list[nn.Parameter]:
    """Matrices at the ends of a network: embeddings, and those of the last layer that has one."""
    found: list[nn.Parameter] = []
    last: list[nn.Parameter] = []
    for layer in module.modules():
        own = [p for p in layer.parameters(recurse=False) if p.dim() > 1]
        if isinstance(layer, nn.Embedding):
            found += own
        last = own or last
    return [*found, *last]
