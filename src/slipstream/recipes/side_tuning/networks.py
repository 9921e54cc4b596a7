"""The networks of side-tuning: the base, what is trained beside it, and both together."""

from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import device_of
from slipstream.recipes.modules import Frozen, find_layer
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights


class SideTask(nn.Module):
    """What side-tuning trains for one task: the side network S, the blend alpha, the head."""

    def __init__(self, side: nn.Module, head: nn.Module) -> None:
        """Begin with as much of the base as of the side: alpha = 0.

        Args:
            side: Maps inputs to features of the base's shape.
            head: Maps features to outputs.
        """
        super().__init__()
        self.side, self.head = side, head
        like = next(iter([*side.parameters(), *head.parameters()]), torch.zeros(()))
        self.alpha = nn.Parameter(torch.zeros((), dtype=like.dtype, device=like.device))

    def forward(self, features: Tensor, *inputs: Any, **named: Any) -> Any:
        """Map features of the base, and its inputs, to outputs."""
        side = self.side(*inputs, **named)
        if side.shape != features.shape:
            raise ValueError(
                f"side must give features of the base's shape, {tuple(features.shape)}; its own "
                f"have shape {tuple(side.shape)}."
            )
        blend = torch.sigmoid(self.alpha)
        return self.head(blend * features + (1 - blend) * side)

    @property
    def blend(self) -> float:
        """How much the base counts: a = sigmoid(alpha)."""
        return float(torch.sigmoid(self.alpha.detach()))


class SideNetwork(nn.Module):
    """A frozen base B with the parts of one task: head(a B(x) + (1 - a) S(x)).

    The base runs in eval mode and without gradients, whatever the mode of this module: neither
    its weights nor its buffers ever change, and several tasks can share it.

    Example:
        >>> network = SideNetwork(nn.Identity(), SideTask(nn.Flatten(), nn.Identity()))
        >>> network(torch.ones(1, 2))
        tensor([[1., 1.]], grad_fn=<AddBackward0>)
    """

    def __init__(self, base: nn.Module, task: SideTask) -> None:
        """Put the two together; neither is copied.

        Args:
            base: Maps inputs to features.
            task: What is trained.
        """
        super().__init__()
        self.base, self.task = base, task

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Map inputs to outputs of the task."""
        return self.task(Frozen(self.base)(*inputs, **named), *inputs, **named)


def features_of(model: nn.Module, *, weights: Weights | None = None, head: str) -> nn.Module:
    """Return a frozen copy of a model without its head: what side-tuning calls the base.

    Args:
        model: Any module; left as it was.
        weights: Of the model, such as a transferred run's last snapshot, instead of its own.
        head: Name of the layer to leave out, such as `head`: its inputs are the features.

    Returns:
        A module that maps inputs to features, in eval mode; nothing in it requires a gradient.

    Raises:
        ValueError: If there is no such layer, or the weights have another layout.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 5))
        >>> features_of(model, head="2")(torch.ones(1, 2)).shape
        torch.Size([1, 3])
    """
    base = model_at(model, weights, name="weights")
    find_layer(base, head)
    base.set_submodule(head, nn.Identity())
    return base.eval().requires_grad_(False)


def small_side(base: nn.Module, inputs: Tensor, *, width: int = 32, seed: int = 0) -> nn.Module:
    """Return a small network with features of the base's shape: one hidden layer, dense.

    Args:
        base: Maps inputs to features.
        inputs: Of a batch: (examples, ...).
        width: Units of the hidden layer.
        seed: Of its weights.

    Returns:
        The network, on the device of the base.

    Raises:
        ValueError: If `width` is below 1.

    Example:
        >>> small_side(nn.Linear(4, 6), torch.zeros(2, 4), width=3)(torch.zeros(2, 4)).shape
        torch.Size([2, 6])
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}.")
    inputs = inputs.to(device_of(base))
    features = Frozen(base)(inputs).shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Linear(inputs[0].numel(), width), nn.Linear(width, features.numel())
    side = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.Unflatten(1, features))
    return side.to(inputs)
