"""A start for the ascent: the best mixture of permutations, all groups moving at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slipstream.matching.assignment import assign
from slipstream.matching.gradients import parts, without_autocast
from slipstream.matching.objective import Similarity
from slipstream.symmetry.neuron_groups import Block, NeuronGroup, NeuronGroups
from slipstream.symmetry.permutation import Permutation


@dataclass(frozen=True)
class Mixture:
    """A weighted mean of permutations, group by group: row i says what position i receives."""

    plain: dict[str, Tensor]  # (n, n), rows and columns sum to one
    signed: dict[str, Tensor]  # (n, n), the same mean with the signs; of signed groups only

    def towards(self, other: "Mixture", step: float) -> "Mixture":
        """Return the mixture at a fraction of the line to another one."""
        return Mixture(
            *(
                {name: torch.lerp(value, theirs[name], step) for name, value in mine.items()}
                for mine, theirs in ((self.plain, other.plain), (self.signed, other.signed))
            )
        )


@without_autocast
def frank_wolfe(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    groups: NeuronGroups,
    max_steps: int = 50,
    tolerance: float = 1e-4,
) -> Permutation:
    """Return a permutation to start from: the relaxed matching problem, rounded.

    The objective is a polynomial in one doubly stochastic matrix a group. From the mean of all
    permutations, each step goes towards the permutations that are best to first order, all groups
    at once, as far as the objective rises most: the polynomial on that line is known exactly. No
    group has the first turn. In the end the nearest permutation is taken.

    Args:
        source: Tensors that are permuted.
        target: Tensors that stay; the same names and shapes.
        groups: What may be permuted. A group inside the neurons of another one keeps its order,
            for the ascent to find.
        max_steps: Where to stop at the latest.
        tolerance: Or when no permutation promises more than this share of the objective's scale.

    Returns:
        A permutation of all groups.

    Source: "An algorithm for quadratic programming" (Frank, Wolfe, 1956); relaxed to doubly
    stochastic matrices as in "Fast approximate quadratic programming for graph matching"
    (Vogelstein et al., 2015), Section 3.

    Example:
        >>> from slipstream.symmetry.neuron_groups import NeuronGroup
        >>> groups = NeuronGroups(
        ...     (NeuronGroup("w:0", 2),), (Block("w", 0, 0, ("w:0",)),), {"w": (2, 1)}
        ... )
        >>> there = {"w": torch.tensor([[1.0], [2.0]])}
        >>> frank_wolfe({"w": there["w"].flip(0)}, there, groups=groups).orders["w:0"]
        tensor([1, 0])
    """
    identity = Permutation.identity(groups)
    relaxed = Relaxation(
        source, target, groups.keep(g.name for g in groups.groups if not g.parents)
    )
    mixture = relaxed.middle()
    scale = math.sqrt(relaxed.norm(target) * relaxed.norm(source))
    for _ in range(max_steps):
        slope = relaxed.slope(mixture)
        vertex = relaxed.best(slope)
        if relaxed.promise(slope, mixture, vertex) <= tolerance * scale:
            break
        step = relaxed.line_search(mixture, vertex)
        if step <= 0:
            break
        mixture = mixture.towards(vertex, step)
    nearest = relaxed.best(mixture)
    return Permutation(
        groups,
        {**identity.orders, **{n: m.argmax(-1) for n, m in nearest.plain.items()}},
        {
            **identity.signs,
            **{n: m.sum(-1).round().to(torch.int8) for n, m in nearest.signed.items()},
        },
    )


class Relaxation:
    """The matching objective for mixtures of permutations of groups without parents."""

    def __init__(
        self, source: Mapping[str, Tensor], target: Mapping[str, Tensor], groups: NeuronGroups
    ) -> None:
        self.groups = groups
        self.names = [name for name in source if groups.blocks_on(name)]
        self._source = {name: _wide(source[name]) for name in self.names}
        self._target = {name: _wide(target[name]) for name in self.names}
        # Axes multiply, and so do the factors of a block; the blocks of one axis only add.
        self.degree = max(
            (
                sum(
                    max((len(b.groups) for b in groups.blocks_on(name, axis)), default=0)
                    for axis in range(value.dim())
                )
                for name, value in self._source.items()
            ),
            default=0,
        )

    def middle(self) -> Mixture:
        """Return the mean of all permutations: every entry alike, every sign undecided."""
        like = torch.promote_types(
            torch.float32, next(iter(self._source.values())).dtype if self.names else torch.float32
        )
        return Mixture(
            {g.name: torch.full((g.size, g.size), 1 / g.size, dtype=like) for g in self._groups()},
            {g.name: torch.zeros(g.size, g.size, dtype=like) for g in self._groups() if g.signed},
        )

    def norm(self, tensors: Mapping[str, Tensor]) -> float:
        """Return the squared length of the tensors that groups list."""
        return sum(float(_wide(tensors[name]).square().sum()) for name in self.names)

    def value(self, mixture: Mixture) -> float:
        """Return the objective, `sum over tensors of <target, mixture of source>`."""
        return sum(
            float((self._target[name] * self._mixed(name, mixture)).sum(dtype=torch.float64))
            for name in self.names
        )

    def slope(self, mixture: Mixture) -> Mixture:
        """Return the derivative of the objective by every entry of the mixture."""
        found = Mixture(
            {name: torch.zeros_like(value) for name, value in mixture.plain.items()},
            {name: torch.zeros_like(value) for name, value in mixture.signed.items()},
        )
        for block in self.groups.blocks:
            if block.tensor not in self._source:
                continue
            for position, factor in enumerate(block.factors):
                if isinstance(factor, str):
                    kind = found.signed if factor in block.signs else found.plain
                    kind[factor] += self._product(block, position, mixture).cpu()
        return found

    def best(self, slope: Mixture) -> Mixture:
        """Return the permutations that are worth most by a slope, as a mixture."""
        plain, signed = {}, {}
        for group in self._groups():
            similarity = Similarity(slope.plain[group.name], slope.signed.get(group.name))
            order = assign(similarity.best).order
            signs = similarity.signs(order)
            entries = torch.zeros_like(slope.plain[group.name])
            entries[torch.arange(group.size), order] = 1
            plain[group.name] = entries
            if signs is not None:
                signed[group.name] = entries * signs.to(entries)[:, None]
        return Mixture(plain, signed)

    def promise(self, slope: Mixture, here: Mixture, there: Mixture) -> float:
        """Return what the slope promises on the way to another mixture."""
        return sum(
            float((rises[name] * (there_[name] - here_[name])).sum(dtype=torch.float64))
            for rises, here_, there_ in (
                (slope.plain, here.plain, there.plain),
                (slope.signed, here.signed, there.signed),
            )
            for name in rises
        )

    def line_search(self, here: Mixture, there: Mixture) -> float:
        """Return where on the line the objective, a polynomial there, is highest."""
        at = np.linspace(0, 1, self.degree + 1)
        values = [self.value(here.towards(there, float(t))) for t in at]
        polynomial = np.polynomial.Polynomial.fit(at, values, self.degree, domain=[0, 1])
        turns = np.asarray(polynomial.deriv().roots(), dtype=np.complex128)
        real = turns.real[(abs(turns.imag) < 1e-9) & (turns.real > 0) & (turns.real < 1)]
        return max([0.0, 1.0, *map(float, real)], key=lambda t: float(polynomial(t)))

    def _groups(self) -> list[NeuronGroup]:
        return list(self.groups.groups)

    def _mixed(
        self, name: str, mixture: Mixture, *, but: tuple[Block, int] | None = None
    ) -> Tensor:
        """The source's tensor with every factor mixed, but for one factor of one block."""
        value = self._source[name]
        for axis in range(value.dim()):
            blocks = sorted(self.groups.blocks_on(name, axis), key=lambda block: block.offset)
            if not blocks:
                continue
            pieces, end = [], 0
            for block in blocks:
                pieces.append(value.narrow(axis, end, block.offset - end))
                end = block.offset + self.groups.length(block)
                part = value.narrow(axis, block.offset, end - block.offset)
                left = but[1] if but is not None and but[0] == block else None
                pieces.append(self._mixed_block(part, block, mixture, left))
            pieces.append(value.narrow(axis, end, value.shape[axis] - end))
            value = torch.cat(pieces, axis)
        return value

    def _mixed_block(
        self, part: Tensor, block: Block, mixture: Mixture, left: int | None
    ) -> Tensor:
        split = self._split(part, block)
        for position, factor in enumerate(block.factors):
            if isinstance(factor, str) and position != left:
                matrix = (mixture.signed if factor in block.signs else mixture.plain)[factor]
                axis = block.axis + position
                moved = torch.tensordot(matrix.to(split), split, dims=([1], [axis]))
                split = moved.movedim(0, axis)
        return split.flatten(block.axis, block.axis + len(block.factors) - 1)

    def _product(self, block: Block, position: int, mixture: Mixture) -> Tensor:
        """The derivative by the matrix of one factor of one block, (n, n)."""
        moved = self._mixed(block.tensor, mixture, but=(block, position))
        own = block.axis + position
        rows, others = (
            self._split(value.narrow(block.axis, block.offset, self.groups.length(block)), block)
            .movedim(own, 0)
            .reshape(mixture.plain[str(block.factors[position])].shape[0], -1)
            for value in (self._target[block.tensor], moved)
        )
        return rows @ others.T

    def _split(self, part: Tensor, block: Block) -> Tensor:
        """The positions of a block as an axis for each of its factors."""
        sizes = [f if isinstance(f, int) else self.groups[f].size for f in block.factors]
        return part.reshape(*part.shape[: block.axis], *sizes, *part.shape[block.axis + 1 :])


def _wide(value: Tensor) -> Tensor:
    value = parts(value.detach())
    return value.to(torch.promote_types(value.dtype, torch.float32))
