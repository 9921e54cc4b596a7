"""Several networks that answer together, as one module."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slipstream.evaluation.swapped_weights import functional_call
from slipstream.weights import Weights, check_shapes

Average = Literal["probabilities", "outputs"]


class Ensemble(nn.Module):
    """A model that answers with the weights of several members, and averages the answers.

    Averaged probabilities come out as their logarithm, log mean_i softmax f(x; w_i), so that losses
    and metrics for one classifier take the ensemble as it is. It is for evaluation: members are not
    trained.

    Example:
        >>> members = [{"weight": torch.tensor([[w]])} for w in (1.0, 3.0)]
        >>> both = Ensemble(nn.Linear(1, 1, bias=False), members, average="outputs")
        >>> both(torch.ones(1, 1))
        tensor([[2.]])
    """

    def __init__(
        self, model: nn.Module, members: Sequence[Weights], *, average: Average = "probabilities"
    ) -> None:
        """Take the members as they are, without a copy.

        Args:
            model: What the weights belong to; its last axis are the classes.
            members: Weights of the model, each with BatchNorm statistics of its own.
            average: Whether to average class probabilities, or what the model gives out.

        Raises:
            ValueError: If there is no member, or one does not fit the model.
        """
        super().__init__()
        if not members:
            raise ValueError("members is empty: an ensemble needs the weights of a network.")
        if average not in ("probabilities", "outputs"):
            raise ValueError(f"average must be probabilities or outputs, got {average!r}.")
        own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        own |= dict(model.named_buffers(remove_duplicate=False))
        for member in members:
            check_shapes(member, {name: tuple(value.shape) for name, value in own.items()})
        self.model = model
        self._average = average
        self._members = [
            {name: value.detach().to(own[name]) for name, value in member.items()}
            for member in members
        ]

    @torch.no_grad()
    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the mean answer, in the shape of one."""
        outputs = [functional_call(self.model, own, inputs, named) for own in self._members]
        if self._average == "outputs":
            return torch.stack(outputs).mean(0)
        logs = torch.stack([output.log_softmax(-1) for output in outputs])
        return logs.logsumexp(0) - math.log(len(outputs))
