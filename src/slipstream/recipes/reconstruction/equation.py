"""The equations that weights fulfil at the end of a training, or between two snapshots of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slipstream.dynamics.jacobians import check_mode
from slipstream.dynamics.margin import margin_directions
from slipstream.evaluation import Loss, Task
from slipstream.evaluation.swapped_weights import eval_mode, functional_call
from slipstream.recipes.reconstruction.plan import EquationName
from slipstream.weights import Weights, check_same_layout, first_nonfinite, weights_of

_RELUS = (
    *(nn.functional.relu, nn.functional.relu_, torch.relu, torch.relu_),
    *(Tensor.relu, Tensor.relu_),
)


@dataclass(frozen=True)
class Equation:
    """`sum_j lam_j c_j . df/dtheta(theta; x_j) = target`, c_j a direction of an example's outputs.

    For a margin, c_j is the unit vector of the label less a mean of those of the other classes, by
    the softmax of their outputs: the classes that come closest share it, as they do in the end of
    a training. For the two others it is minus the slope of the example's loss in the outputs.
    """

    kind: EquationName
    model: nn.Module
    loss: Loss
    weights: Mapping[str, Tensor]  # theta: where gradients are taken
    target: Mapping[str, Tensor]  # of the trained tensors
    smoothness: float  # of ReLU's derivative

    @classmethod
    def of(
        cls,
        kind: EquationName,
        task: Task,
        *,
        weights: Weights,
        later: Weights | None = None,
        smoothness: float = 10.0,
    ) -> "Equation":
        """Write the equation of a snapshot.

        Args:
            kind: Which one.
            task: The model, and the loss that it was trained with.
            weights: Of the snapshot.
            later: Those of a later snapshot, for a displacement.
            smoothness: ReLU's derivative is differentiated as that of sigmoid(smoothness x).

        Returns:
            The equation, in the dtype of the model.

        Raises:
            ValueError: If the weights do not fit or do not move, or a layer mixes examples.
        """
        with eval_mode(task.model):
            check_mode(task.model)
        for name, value in (("weights", weights), ("later", later or {})):
            if bad := first_nonfinite(value):
                raise ValueError(f"{name} holds a NaN or an infinity in {bad!r}.")
        kinds = weights_of(task.model)
        trained = [name for name, p in task.model.named_parameters() if p.requires_grad]
        own = {name: value.detach().to(kinds[name]) for name, value in weights.items()}
        target = {name: own[name] for name in trained}
        if kind == "displacement":
            if later is None:
                raise ValueError("A displacement needs two snapshots: give the later one too.")
            check_same_layout(weights, later, names=("weights", "later"))
            target = {name: (later[name] - weights[name]).to(own[name]) for name in trained}
        if not any(bool(value.any()) for value in target.values()):
            raise ValueError("Nothing moved between the two snapshots: give others.")
        return cls(kind, task.model, task.loss, own, target, smoothness)

    def directions(self, inputs: Tensor, labels: Tensor, outputs: Tensor) -> Tensor:
        """Return c, one row for each example, which depends on the inputs."""
        if self.kind == "margin":
            pairs = margin_directions(outputs.detach(), labels)  # (N, K, C)
            behind = torch.einsum("nkc,nc->nk", pairs, outputs)
            return torch.einsum("nkc,nk->nc", pairs, (-behind).softmax(1))
        stub: Any = _Given(outputs)  # a loss asks its model for the outputs
        total = self.loss(stub, (inputs, labels)) * len(inputs)
        (slope,) = torch.autograd.grad(total, outputs, create_graph=True)
        return -slope

    def sum_of_gradients(
        self, inputs: Tensor, labels: Tensor, coefficients: Tensor
    ) -> dict[str, Tensor]:
        """Return the left side, which can be differentiated by inputs and coefficients."""
        at = {name: self.weights[name].requires_grad_() for name in self.target}
        with eval_mode(self.model), _Smoothed(self.smoothness):
            outputs = functional_call(self.model, {**self.weights, **at}, (inputs,))
            c = self.directions(inputs, labels, outputs)
            scaled = c * coefficients.view(-1, *[1] * (c.dim() - 1))
            found = torch.autograd.grad(outputs, list(at.values()), scaled, create_graph=True)
        return dict(zip(at, found, strict=True))

    def residual(self, inputs: Tensor, labels: Tensor, coefficients: Tensor) -> Tensor:
        """Return `|target - sum| / |target|`, squared."""
        found = self.sum_of_gradients(inputs, labels, coefficients)
        missing = [(self.target[name] - value).square().sum() for name, value in found.items()]
        size = sum(value.square().sum() for value in self.target.values())
        relative: Tensor = torch.stack(missing).sum() / size
        return relative


class _Given(nn.Module):
    """Returns what is known already."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, *_: object) -> Tensor:
        return self._outputs


class _SmoothRelu(torch.autograd.Function):
    """ReLU whose derivative is a steep sigmoid where it is differentiated once more."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, smoothness: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.smoothness = smoothness
        return values.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        return slopes[0] * torch.sigmoid(ctx.smoothness * values), None


class _Smoothed(TorchFunctionMode):
    """Lets every ReLU of a model, module or function, be a smooth one inside a `with` block."""

    def __init__(self, smoothness: float) -> None:
        super().__init__()
        self._smoothness = smoothness

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RELUS:
            return _SmoothRelu.apply(args[0], self._smoothness)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))
