"""The displacement of a method, made once, that can then be applied at any strength."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from slipstream.matching.gradients import dense
from slipstream.porting.fitting import (
    NoOutputBiasError,
    distil,
    few_shot,
    fit_function,
    fit_output_biases,
)
from slipstream.porting.method_inputs import Aligner, MethodInputs, aligned_displacement
from slipstream.porting.plan import DISTILLED, FUNCTION, PortStep, parts_of
from slipstream.porting.problem import LazyWeights, Problem, wide_copy
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import Weights, add_to_

# A variance that a displacement would make negative keeps this share of what it was.
_LEAST_VARIANCE = 0.1


@dataclass(frozen=True)
class Prepared:
    """A displacement in the coordinates of the other base."""

    method: PortStep
    aligner: Aligner
    displacement: Weights  # a new tensor at every access
    rate: float | None = None  # the learning rate of a step that trains

    def at(self, name: str, base: Tensor, *, strength: float) -> Tensor:
        """Return a tensor of the other base with its displacement, in its own dtype."""
        ported = add_to_(self.displacement[name].to(base.device).mul_(strength), base)
        if name.endswith("running_var"):
            ported = torch.maximum(ported, base * _LEAST_VARIANCE)
        return ported.to(base.dtype)

    def held(self) -> "Prepared":
        """Return the same with the displacement computed once and kept in memory."""
        kept = dict(self.displacement)
        return replace(self, displacement=LazyWeights(kept, lambda name: kept[name].clone()))


def prepare(method: PortStep, inputs: MethodInputs, *, rate: float | None = None) -> Prepared:
    """Make a method's displacement.

    Args:
        method: Any but `auto`.
        inputs: The problem, with what the method needs.
        rate: The learning rate of few-shot fine-tuning.

    Returns:
        What can be applied.

    Raises:
        FloatingPointError: If few-shot fine-tuning diverges.
        ValueError: If the method needs a model, a loss or data that was not given.
    """
    coordinates, signs = parts_of(method)
    aligner = inputs.aligner(coordinates)
    names = inputs.problem.carried
    aligned = _aligned_to(inputs.problem, aligner)
    if signs == "none":
        return Prepared(method, aligner, LazyWeights(names, aligned))
    if signs == "fitted":
        make, rate = _fitted(method, inputs, rate)
    elif signs == "mask":
        make = _masked(inputs, aligned)
    else:
        make = _stepped(inputs, aligner, aligned)
    return Prepared(method, aligner, truncated(LazyWeights(names, make), inputs.ranks), rate)


def _fitted(
    method: PortStep, inputs: MethodInputs, rate: float | None
) -> tuple[Callable[[str], Tensor], float | None]:
    """What labels alone give, and the learning rate if there is one."""
    if method == "output-bias":
        moved = fit_output_biases(inputs)
        if not moved:
            raise NoOutputBiasError(
                "The method 'output-bias' needs a bias behind the model's last weights, which the "
                "plan does not exclude and an adapter can hold: there is none."
            )
    elif method in FUNCTION:
        moved = fit_function(inputs, method)
    elif method in DISTILLED:
        moved, rate = distil(inputs, method)
    else:
        first, *others = inputs.plan.rates
        if rate is None and others:
            raise ValueError(
                "The method 'few-shot' needs validation data to choose among the rates "
                f"{inputs.plan.rates}: give Task(..., validation=...), or one rate."
            )
        rate = first if rate is None else rate
        moved = few_shot(inputs, rate)
    base = inputs.problem.to_base
    return lambda n: moved[n].clone() if n in moved else wide_copy(base[n]).zero_(), rate


def _aligned_to(problem: Problem, aligner: Aligner) -> Callable[[str], Tensor]:
    return lambda name: aligned_displacement(problem, aligner, name)


def _masked(inputs: MethodInputs, aligned: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """Only what decreases the other base's loss, as GradFix (Rinaldi et al., 2025) has it."""
    gradient = inputs.gradient

    def masked(name: str) -> Tensor:
        moved = aligned(name)
        if name in gradient:
            moved.mul_(dense(gradient[name]).to(moved.device).mul(moved) < 0)
        return moved

    return masked


def _stepped(
    inputs: MethodInputs, aligner: Aligner, aligned: Callable[[str], Tensor]
) -> Callable[[str], Tensor]:
    """Where signed steps lead; BatchNorm's statistics, not being parameters, have no gradient."""
    steps = inputs.signed(cast("Permutation", aligner))
    return lambda name: steps[name].clone() if name in steps else aligned(name)


def halves(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return two factors whose product is the nearest matrix of a rank.

    Args:
        matrix: (rows, columns).
        rank: How many columns the first factor has, and rows the second; padded with zeros.

    Returns:
        (rows, rank) and (rank, columns), of the same size.

    Source: "The approximation of one matrix by another of lower rank" (Eckart, Young, 1936).

    Example:
        >>> up, down = halves(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), 1)
        >>> up @ down
        tensor([[4., 0.],
                [0., 0.]])
    """
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    root = sizes[:rank].sqrt()
    missing = rank - len(root)
    up = torch.nn.functional.pad(left[:, :rank] * root, (0, missing))
    return up, torch.nn.functional.pad(root[:, None] * right[:rank], (0, 0, 0, missing))


def truncated(displacement: Weights, ranks: Mapping[str, int]) -> Weights:
    """Return the nearest displacement that an adapter can hold, lazily.

    Args:
        displacement: Of every tensor.
        ranks: Of the tensors that are adapted.

    Returns:
        A displacement of the same tensors.
    """

    def make(name: str) -> Tensor:
        moved = displacement[name]
        if name not in ranks:
            return moved
        up, down = halves(moved.flatten(1), ranks[name])
        return (up @ down).view(moved.shape)

    return LazyWeights(displacement, make)
