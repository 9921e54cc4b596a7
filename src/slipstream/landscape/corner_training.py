"""Training the corners of a family of weights by the loss at random points between them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, device_of, eval_mode, weights_in
from slipstream.landscape.angles import measured_names, squared_cosine_gradient
from slipstream.landscape.span import Shape
from slipstream.training.loop import Loop, Progress, loss_value
from slipstream.training.plan import TrainingPlan
from slipstream.weights import Weights, check_same_layout, clone, weights_of


class CornerTraining(Loop):
    """Trains corners so that the loss is low everywhere between them, in one run.

    Each step draws coefficients c, takes the gradient g of the loss at P = sum_i c_i w_i in one
    pass, and gives c_i g to corner i: the gradient of the expected loss, E_c loss(P). With
    `repulsion`, beta cos^2(w_j, w_k) of a random pair of corners is added, the cosine over all
    weights together.

    Any module will do: its parameters are replaced for the length of the training. Buffers, such
    as running statistics, are the model's, one set for all points.

    Source: "Learning Neural Network Subspaces" (Wortsman et al., 2021), algorithm 1; with fixed
    ends "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs" (Garipov et al., 2018).
    """

    def __init__(
        self,
        task: Task,
        plan: TrainingPlan,
        *,
        shape: Shape,
        corners: Sequence[Weights],
        trained: Sequence[int],
        layerwise: bool = False,
        repulsion: float = 0.0,
    ) -> None:
        """Begin at the corners.

        Args:
            task: The model that runs, left as it was.
            plan: How.
            shape: How the corners make a point.
            corners: Where each corner starts; at least the parameters of the model.
            trained: Which corners are trained, by number; the others are held.
            layerwise: Whether each layer draws coefficients of its own.
            repulsion: How strongly the corners are pushed towards right angles, beta.

        Raises:
            ValueError: If a corner lacks a parameter, or nothing can be repelled.
        """
        model = task.model
        self._shape, self._parameters = shape, dict(model.named_parameters())
        if not any(p.requires_grad for p in self._parameters.values()):
            raise ValueError("The model has no parameter that requires a gradient.")
        for number, corner in enumerate(corners):
            own = {name: corner[name] for name in self._parameters if name in corner}
            check_same_layout(self._parameters, own, names=("the model", f"corner {number}"))
        held = [i for i in range(shape.corners) if i not in trained]
        # On the device, as they pick coefficients in every step.
        device = device_of(model)
        self._trained = torch.tensor(list(trained), device=device)
        self._held = torch.tensor(held, dtype=torch.int64, device=device)
        stacked = {n: self._stack(corners, n, trained) for n in self._parameters}
        self._free = {name: nn.Parameter(value) for name, value in stacked.items()}
        self._fixed = {n: self._stack(corners, n, held) for n in self._parameters}
        free = list(self._free.values())
        super().__init__(model, plan, trained=free, batch_size=task.batch_size)
        self._layers = {n: layer_of(n) if layerwise else "" for n in self._parameters}
        self._repulsion = repulsion
        self._repelled = [self._free[name] for name in measured_names(self._parameters)]
        if repulsion and not self._repelled:
            raise ValueError(
                "repulsion is the angle between weights of two or more dimensions; the model has "
                "none. Set repulsion=0."
            )
        self._buffers = clone(dict(model.named_buffers()))  # at the end of the last epoch

    def corners(self) -> list[dict[str, Tensor]]:
        """Return copies of all corners as they are now, with the buffers that they share."""
        persistent = weights_of(self.module)
        shared = {name: value for name, value in self._buffers.items() if name in persistent}
        found: list[dict[str, Tensor]] = [{} for _ in range(self._shape.corners)]
        for name in self._parameters:
            for kept, places in ((self._free, self._trained), (self._fixed, self._held)):
                for value, i in zip(kept[name].detach(), places.tolist(), strict=True):
                    found[i][name] = value.clone()
        return [own | clone(shared) for own in found]

    def run(
        self,
        loss: Callable[[Batch], Tensor],
        *,
        data: Iterable[Batch],
        on_epoch: Callable[[], object] = lambda: None,
        progress: Progress | None = None,
    ) -> None:
        """Train to the end of the plan; the loss is of the model, which is lent meanwhile."""

        def after_epoch() -> None:
            self._buffers = clone(dict(self.module.named_buffers()))
            on_epoch()

        with weights_in(self.module, self._buffers), eval_mode(self.module):
            super().run(loss, data=data, on_epoch=after_epoch, progress=progress)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        own = {"free": {name: value.detach() for name, value in self._free.items()}}
        return super().state_dict() | own | {"module": None, "buffers": self._buffers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another one stopped."""
        super().load_state_dict(state)
        with torch.no_grad():
            for name, value in self._free.items():
                value.copy_(state["free"][name])
        self._buffers = dict(state["buffers"])

    def update(self, loss: Callable[[Batch], Tensor], batch: Batch) -> float:
        """Take a step; returns the loss at the point it was taken at."""
        shares = self._draw()
        self._put(shares)
        value = loss(batch)
        found = loss_value(value, self.step)
        learning = {name: p for name, p in self._parameters.items() if p.requires_grad}
        slopes = torch.autograd.grad(value, list(learning.values()), materialize_grads=True)
        for name, slope in zip(learning, slopes, strict=True):
            own = shares[name][self._trained].to(slope)
            self._free[name].grad = own.view(-1, *[1] * slope.dim()) * slope
        if self._repulsion:
            self._repel()
        self.optimizer.step()
        return found

    def _draw(self) -> dict[str, Tensor]:
        """The coefficients of each parameter, (corners,): one draw for each layer, or for all."""
        device = device_of(self.module)
        drawn = {
            layer: torch.tensor(
                self._shape.draw(self.generator), dtype=torch.float64, device=device
            )
            for layer in dict.fromkeys(self._layers.values())
        }
        return {name: drawn[layer] for name, layer in self._layers.items()}

    def _put(self, shares: Mapping[str, Tensor]) -> None:
        """Let the model's parameters be the point with these coefficients."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                free, fixed, row = self._free[name], self._fixed[name], shares[name]
                point = torch.tensordot(row[self._trained].to(free), free, 1)
                if len(fixed):
                    point += torch.tensordot(row[self._held].to(fixed), fixed, 1)
                parameter.data = point

    def _repel(self) -> None:
        j, k = self.generator.choice(len(self._trained), size=2, replace=False).tolist()
        first, second = ([value.detach()[i] for value in self._repelled] for i in (j, k))
        for i, slopes in zip((j, k), squared_cosine_gradient(first, second), strict=True):
            for value, slope in zip(self._repelled, slopes, strict=True):
                if value.grad is not None:
                    value.grad[i] += self._repulsion * slope

    def _stack(self, corners: Sequence[Weights], name: str, places: Sequence[int]) -> Tensor:
        """The values of some corners: (corners, *shape)."""
        like = self._parameters[name].detach()
        rows = [corners[i][name].detach().to(like) for i in places]
        return torch.stack(rows) if rows else like.new_empty(0, *like.shape)


def layer_of(name: str) -> str:
    """Return the module that holds a parameter.

    Example:
        >>> layer_of("block.conv.weight"), layer_of("head.parametrizations.weight.original0")
        ('block.conv', 'head')
    """
    return (
        name.partition(".parametrizations.")[0]
        if "parametrizations" in name
        else name.rpartition(".")[0]
    )
