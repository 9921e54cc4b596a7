"""The loss of an equation: derivatives of the trunk once per batch of points, no solutions."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import jvp

from slipstream.evaluation import Batch

HELD_POINTS = 512  # at which the held-out loss is taken


class Residual(Protocol):
    """An equation of first order in t and second order in x."""

    def __call__(self, u: Tensor, u_t: Tensor, u_x: Tensor, u_xx: Tensor) -> Tensor:
        """Return what is zero where the equation holds; all are (functions, points)."""


@dataclass(frozen=True)
class PhysicsProblem:
    """An equation without solutions: u(x, 0) is given at sensors, u is periodic in x."""

    residual: Residual
    sensors: Tensor  # (sensors,) positions x at which input functions are given
    duration: float = 1.0  # t is between 0 and this
    period: float = 1.0

    @classmethod
    def even(cls, residual: Residual, sensors: int, *, duration: float = 1.0) -> "PhysicsProblem":
        """Return a problem with even sensors from 0 in a period of 1."""
        return cls(residual, torch.arange(sensors) / sensors, duration)

    def __post_init__(self) -> None:
        if self.sensors.dim() != 1 or not torch.isfinite(self.sensors).all():
            raise ValueError(
                f"sensors must be finite positions, (sensors,), got {tuple(self.sensors.shape)}."
            )
        if not self.duration > 0 or not self.period > 0:
            raise ValueError(
                f"duration and period must be above 0, got {self.duration} and {self.period}."
            )

    def drawn_points(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random points, (points, 2): x, then t."""
        drawn = torch.rand(count, 2, generator=generator)
        return drawn * torch.tensor([self.period, self.duration])


@dataclass(frozen=True)
class Derivatives:
    """The trunk and its derivatives, (points, terms)."""

    value: Tensor
    t: Tensor
    x: Tensor
    xx: Tensor


def trunk_derivatives(trunk: nn.Module, points: Tensor) -> Derivatives:
    """Return the trunk's outputs and what is needed of their derivatives.

    They depend on the points alone, so that one pass serves all functions of a batch.

    Args:
        trunk: Maps (points, 2), x and t, to (points, terms).
        points: (points, 2).

    Returns:
        Outputs and derivatives, exact: by the chain rule through linear layers and tanh, by nested
        forward-mode differentiation through everything else.

    Example:
        >>> class Product(nn.Module):
        ...     def forward(self, points):
        ...         return (points[:, :1] ** 3) * points[:, 1:]
        >>> found = trunk_derivatives(Product(), torch.tensor([[2.0, 5.0]]))
        >>> [float(part) for part in (found.value, found.t, found.x, found.xx)]
        [40.0, 8.0, 60.0, 60.0]
    """
    layers = list(trunk) if isinstance(trunk, nn.Sequential) else [trunk]
    if not all(map(_rule_of, layers[1:])):
        return _by_jvp(trunk, points)
    own = getattr(layers[0], "derivatives", None)
    found = _by_jvp(layers[0], points) if own is None else Derivatives(*own(points))
    for layer in layers[1:]:
        rule = _rule_of(layer)
        assert rule is not None
        found = rule(layer, found)
    return found


def _by_jvp(trunk: nn.Module, points: Tensor) -> Derivatives:
    """Of any module, by nested forward-mode differentiation."""
    along_x, along_t = torch.zeros_like(points), torch.zeros_like(points)
    along_x[:, 0], along_t[:, 1] = 1.0, 1.0

    def with_slope(at: Tensor) -> Any:
        return jvp(trunk, (at,), (along_x,))

    with warnings.catch_warnings():  # PyTorch's own, when it loads its rules
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        found: Any = jvp(with_slope, (points,), (along_x,))
        (value, x), (_, xx) = found
        t: Tensor = jvp(trunk, (points,), (along_t,))[1]
    return Derivatives(value, t, x, xx)


def _through_linear(layer: nn.Module, given: Derivatives) -> Derivatives:
    """All four in one product."""
    stacked = torch.cat([given.value, given.t, given.x, given.xx]) @ layer.weight.T  # type: ignore[operator]
    value, t, x, xx = stacked.chunk(4)
    return Derivatives(value if layer.bias is None else value + layer.bias, t, x, xx)  # type: ignore[operator]


def _through_tanh(_: nn.Module, given: Derivatives) -> Derivatives:
    """The chain rule, twice in x."""
    value = given.value.tanh()
    slope = 1 - value.square()
    xx = slope * (given.xx - 2 * value * given.x.square())
    return Derivatives(value, slope * given.t, slope * given.x, xx)


# What nested jvp would give, at a tenth of its cost: its overhead per operator is large.
_RULES = {nn.Linear.forward: _through_linear, nn.Tanh.forward: _through_tanh}


def _rule_of(layer: nn.Module) -> Callable[[nn.Module, Derivatives], Derivatives] | None:
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return None if hooked else _RULES.get(type(layer).forward)


@dataclass(frozen=True)
class PhysicsParts:
    """Mean squares over functions and points, 0-dim each."""

    residual: Tensor  # of the equation
    initial: Tensor  # of the distance from the given functions at time 0
    boundary: Tensor  # of the distance between both ends of the period


def physics_parts(
    model: nn.Module,
    functions: Tensor,
    points: Tensor,
    *,
    problem: PhysicsProblem,
    boundary: bool = True,
) -> PhysicsParts:
    """Return by how much a model violates a problem.

    Args:
        model: Its `branch` maps functions to coefficients, its `trunk` points to the same number
            of values; the outputs are the sums of their products.
        functions: At time 0, (functions, sensors).
        points: At which the equation is asked for, (points, 2).
        problem: The equation and where functions are given.
        boundary: Whether to look at the ends of the period; 0 if not.

    Returns:
        The three parts.
    """
    branch, trunk = _halves(model)
    at_start = torch.stack([problem.sensors, torch.zeros_like(problem.sensors)], -1).to(points)
    coefficients = branch(functions)
    start = coefficients @ trunk(at_start).T
    found = trunk_derivatives(trunk, points)
    u, u_t, u_x, u_xx = (
        coefficients @ part.T for part in (found.value, found.t, found.x, found.xx)
    )
    gap = torch.zeros(())
    if boundary:
        ends = points.new_tensor([0.0, problem.period])
        left, right = (torch.stack([x.expand(len(points)), points[:, 1]], -1) for x in ends)
        gap = (coefficients @ (trunk(left) - trunk(right)).T).square().mean()
    residual = problem.residual(u, u_t, u_x, u_xx).square().mean()
    return PhysicsParts(residual, (start - functions).square().mean(), gap)


def _halves(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    halves = [getattr(model, name, None) for name in ("branch", "trunk")]
    if not all(isinstance(half, nn.Module) for half in halves):
        raise TypeError(
            f"The model must have a `branch` and a `trunk`, whose outputs it multiplies and sums; "
            f"this {type(model).__name__} has not."
        )
    return halves[0], halves[1]  # type: ignore[return-value]


def check_split(model: nn.Module, functions: Tensor, points: Tensor) -> None:
    """Raise unless a model is the sum of products of its branch and its trunk.

    Args:
        model: Takes functions and points.
        functions: Some, (functions, sensors).
        points: Some, (points, 2).

    Raises:
        TypeError: If it has no such halves.
        ValueError: If its outputs are others.
    """
    branch, trunk = _halves(model)
    with torch.no_grad():
        product = branch(functions) @ trunk(points).T
        found = model(functions, points)
    if found.shape != product.shape or not torch.allclose(found, product, rtol=1e-4, atol=1e-5):
        raise ValueError(
            "The model's outputs are not its branch's times its trunk's, summed: the equation "
            "would be asked of another function. Leave out what it adds or scales."
        )


def functions_in(batch: Batch, problem: PhysicsProblem) -> Tensor:
    """Return the input functions of a batch.

    Args:
        batch: A tensor, (functions, sensors).
        problem: Says how many sensors there are.

    Returns:
        The tensor.

    Raises:
        ValueError: If it holds something else, such as solutions, or a NaN.
    """
    wanted = f"(functions, {len(problem.sensors)})"
    if isinstance(batch, tuple | list):
        raise ValueError(
            "A batch holds more than input functions, such as solutions, which this tuning does "
            f"not look at: give tensors {wanted}, and measure errors on solutions afterwards."
        )
    if not isinstance(batch, Tensor) or batch.dim() != 2 or batch.shape[1] != len(problem.sensors):
        shape = tuple(getattr(batch, "shape", ()))
        raise ValueError(
            f"A batch must be functions at the sensors, {wanted}; its shape is {shape}."
        )
    if not torch.isfinite(batch).all():
        raise ValueError("An input function holds a NaN or an infinity: leave it out.")
    return batch
