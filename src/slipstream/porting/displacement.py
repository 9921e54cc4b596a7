"""A method makes ready, once, a displacement that can then be applied at any strength."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from slipstream.matching.low_rank import dense
from slipstream.porting.factoring import truncated
from slipstream.porting.method_inputs import Carrier, Workbench
from slipstream.porting.plan import PortMethod, parts_of
from slipstream.porting.problem import LazyWeights, Problem
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import Weights

# A variance that a displacement would make negative keeps this share of what it was.
_LEAST_VARIANCE = 0.1


@dataclass(frozen=True)
class Prepared:
    """A displacement in the coordinates of the other base."""

    method: PortMethod
    carrier: Carrier
    displacement: Weights  # a new tensor at every access

    def at(self, name: str, base: Tensor, *, strength: float) -> Tensor:
        """Return a tensor of the other base with its displacement, in its own dtype."""
        ported = self.displacement[name].to(base.device).mul_(strength).add_(base)
        if name.endswith("running_var"):
            ported = torch.maximum(ported, base * _LEAST_VARIANCE)
        return ported.to(base.dtype)

    def held(self) -> "Prepared":
        """Return the same with the displacement computed once and kept in memory."""
        kept = dict(self.displacement)
        return replace(self, displacement=LazyWeights(kept, lambda name: kept[name].clone()))


def prepare(method: PortMethod, bench: Workbench) -> Prepared:
    """Make a method's displacement.

    Args:
        method: Any but `auto`.
        bench: The problem, with what the method needs.

    Returns:
        What can be applied.

    Raises:
        ValueError: If the method needs a model, a loss or data that was not given.
    """
    coordinates, signs = parts_of(method)
    carrier = bench.carrier(coordinates)
    names = bench.problem.carried
    lay = _laid_over(bench.problem, carrier)
    if signs == "none":
        return Prepared(method, carrier, LazyWeights(names, lay))
    make = _masked(bench, lay) if signs == "mask" else _stepped(bench, carrier, lay)
    return Prepared(method, carrier, truncated(LazyWeights(names, make), bench.ranks))


def _laid_over(problem: Problem, carrier: Carrier) -> Callable[[str], Tensor]:
    return lambda name: carrier.apply_to(name, problem.displacement(name))


def _masked(bench: Workbench, lay: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """Only what goes down the other base's slope, as GradFix (Rinaldi et al., 2025) has it."""
    gradient = bench.gradient

    def masked(name: str) -> Tensor:
        moved = lay(name)
        if name in gradient:
            moved.mul_(dense(gradient[name]).to(moved.device).mul(moved) < 0)
        return moved

    return masked


def _stepped(
    bench: Workbench, carrier: Carrier, lay: Callable[[str], Tensor]
) -> Callable[[str], Tensor]:
    """Where signed steps lead; what is no parameter (statistics of BatchNorm) has no gradient."""
    steps = bench.signed(cast("Permutation", carrier))
    return lambda name: steps[name].clone() if name in steps else lay(name)
