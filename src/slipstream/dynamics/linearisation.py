"""A network linearised at a point, while it is trained: its losses, and where its weights are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from slipstream.dynamics.descent import Descent
from slipstream.dynamics.function_space import (
    Combination,
    OutputLoss,
    Path,
    SquaredDescent,
    Start,
    follow,
)
from slipstream.dynamics.jacobians import Network
from slipstream.dynamics.tangent_kernel import TangentKernel
from slipstream.weights import copy


@dataclass(frozen=True)
class Place:
    """Where a linearised network is."""

    outputs: Tensor  # (N, C)
    weights: dict[str, Tensor]  # those that are trained
    velocity: dict[str, Tensor]  # of the optimiser; empty without momentum


class Linearisation:
    """A network linearised at its weights; it keeps a copy of them."""

    def __init__(
        self,
        network: Network,
        kernel: TangentKernel,
        loss: OutputLoss,
        *,
        inputs: list[Tensor],
        velocity: Mapping[str, Tensor],
        step: int,
    ) -> None:
        self.kernel = kernel
        self._network = replace(network, trained=copy(network.trained))
        self._loss, self._inputs, self._velocity, self._step = loss, inputs, velocity, step
        self._squared: SquaredDescent | None = None
        self._path: Path | None = None

    def start(self, descent: Descent) -> Start:
        """Return where the descent in the space of outputs sets out."""
        decay = self._image(self._network.trained) if descent.weight_decay else None
        velocity = self._image(self._velocity) if self._velocity else None
        return Start(self.kernel.outputs, self._step, velocity=velocity, image=decay)

    def losses(self, descent: Descent, *, steps: int, closed_form: bool) -> Iterator[float]:
        """Yield the losses after 1, 2, ... `steps` steps."""
        if closed_form:
            residual = self._loss.slope(self.kernel.outputs)[1] * len(self.kernel.outputs)
            self._squared = SquaredDescent(self.kernel, residual, rate=descent.rate(0))
            losses = self._squared.losses(steps)
            next(losses)
            yield from losses
            return
        start = self.start(descent)
        for path in follow(self.kernel, self._loss, start=start, descent=descent, steps=steps):
            first, self._path = self._path is None, path
            if not first:
                yield path.loss

    def place(self, steps: int, *, momentum: bool) -> Place:
        """Return where it is after the last loss, which is that after `steps` steps."""
        if self._squared is not None:
            outputs, at = self._squared.after(steps)
            return Place(outputs, self._combined(at), {})
        if self._path is None:
            raise ValueError("There is no loss yet: ask for the place after the first one.")
        path = self._path
        velocity = self._combined(path.speed) if momentum else {}
        return Place(path.outputs, self._combined(path.place), velocity)

    def _combined(self, at: Combination) -> dict[str, Tensor]:
        """The tensors that a combination stands for."""
        found = self._pull(at.dual)
        for name, value in found.items():
            value.add_(self._network.trained[name], alpha=at.weights)
            if name in self._velocity:
                value.add_(self._velocity[name].to(value), alpha=at.velocity)
        return found

    def _image(self, direction: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([self._network.image(direction, x) for x in self._inputs])

    def _pull(self, dual: Tensor) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(value) for name, value in self._network.trained.items()}
        ends = accumulate(len(x) for x in self._inputs)
        for x, end in zip(self._inputs, ends, strict=True):
            for name, value in self._network.pull(dual[end - len(x) : end], x).items():
                total[name] += value
        return total
