"""Inputs that are looked for, with fixed labels and free coefficients, and how they are split."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slipstream.recipes.reconstruction.equation import Equation

_ITERATIONS = 8  # of the power method: a direction is wanted, not an eigenvalue


class Candidates(nn.Module):
    """Inputs and coefficients, which are trained; labels take turns."""

    labels: Tensor

    def __init__(self, inputs: Tensor, *, classes: int) -> None:
        super().__init__()
        self.inputs = nn.Parameter(inputs)
        self.coefficients = nn.Parameter(torch.ones(len(inputs), device=inputs.device))
        labels = torch.arange(len(inputs), device=inputs.device) % classes
        self.register_buffer("labels", labels)
        self.register_buffer("unit", torch.ones((), device=inputs.device))  # of the coefficients
        self.unit: Tensor

    def fit_unit_(self, equation: Equation) -> None:
        """Choose the unit such that the first sum is as long as the target."""
        found = equation.sum_of_gradients(self.inputs, self.labels, self.coefficients)
        lengths = [
            sum(float(value.detach().square().sum()) for value in side.values())
            for side in (equation.target, found)
        ]
        if lengths[1] > 0:
            self.unit.fill_((lengths[0] / lengths[1]) ** 0.5)

    def residual(self, equation: Equation) -> Tensor:
        """Return the squared relative residual."""
        return equation.residual(self.inputs, self.labels, self.coefficients * self.unit)

    def outside(self, low: float, high: float) -> Tensor:
        """Return by how much inputs leave the box: summed squares, a mean over candidates."""
        over = (self.inputs - high).relu().square() + (low - self.inputs).relu().square()
        return over.sum() / len(self.inputs)

    def split_(
        self,
        equation: Equation,
        *,
        share: float = 0.25,
        distance: float = 0.1,
        optimizer: Optimizer | None = None,
    ) -> int:
        """Split candidates along the direction in which the residual bends down most, in place.

        One candidate at x becomes two at x +- distance v, of half the weight each; the residual
        falls in second order by the curvature of `rest . c . df/dtheta` along v. The copies take
        the places of the candidates with the least coefficients.

        Args:
            equation: What is fitted.
            share: Of the candidates, at most, that are split.
            distance: Relative to the size of the candidate.
            optimizer: What it remembers of a candidate is copied with it.

        Returns:
            How many were split.
        """
        curvature, direction = self._bent(equation)
        gain = curvature * self.coefficients.detach().clamp_min(0)
        count = int(share * len(gain))
        ranked = torch.argsort(gain, descending=True)
        weakest = torch.argsort(self.coefficients.detach())
        chosen = [int(i) for i in ranked[:count] if gain[i] > 0]
        free = [int(i) for i in weakest if int(i) not in chosen][: len(chosen)]
        size = self.inputs.detach().flatten(1).norm(dim=1)
        with torch.no_grad():
            for one, other in zip(chosen, free, strict=False):
                step = distance * size[one] * direction[one]
                self.coefficients[one] *= 0.5
                self.coefficients[other] = self.coefficients[one]
                self.labels[other] = self.labels[one]
                self.inputs[other] = self.inputs[one] - step
                self.inputs[one] += step
                for state in optimizer.state.values() if optimizer else ():
                    for value in state.values():
                        if (
                            isinstance(value, Tensor)
                            and len(value.shape)
                            and len(value) == len(gain)
                        ):
                            value[other] = value[one]
        return len(free)

    def _bent(self, equation: Equation) -> tuple[Tensor, Tensor]:
        """The largest curvature of each candidate's part of the sum along the rest, and where."""
        inputs = self.inputs.detach().requires_grad_()
        coefficients = (self.coefficients * self.unit).detach()
        found = equation.sum_of_gradients(inputs, self.labels, coefficients)
        rest = {n: (equation.target[n] - value).detach() for n, value in found.items()}
        along = torch.stack([(rest[n] * value).sum() for n, value in found.items()]).sum()
        (slope,) = torch.autograd.grad(along, inputs, create_graph=True)
        generator = torch.Generator().manual_seed(len(inputs))
        drawn = torch.randn(inputs.shape, generator=generator).to(inputs).flatten(1)
        value = torch.zeros(len(inputs), device=inputs.device)
        for shifted in (0.0, 1.0):  # a second time with the spectrum moved above 0
            shift = value.abs()[:, None] * shifted
            for _ in range(_ITERATIONS):
                unit = nn.functional.normalize(drawn, dim=1)
                (bent,) = torch.autograd.grad(
                    slope, inputs, unit.view_as(inputs), retain_graph=True
                )
                value = (bent.flatten(1) * unit).sum(1)
                drawn = bent.flatten(1) + shift * unit
        return value, nn.functional.normalize(drawn, dim=1).view_as(inputs)
