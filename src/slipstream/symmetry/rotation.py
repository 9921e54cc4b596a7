"""A rotation of neuron groups: an orthogonal change of the basis in which neurons are written."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from slipstream.symmetry.neuron_groups import Block, NeuronGroups, Pin
from slipstream.symmetry.norms import FoldableNorm, fold, unfold
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import Weights, check_shapes

_STILL = 1e-9  # a rotation moves a neuron by more
_LEAST_GAIN = 1e-6  # a smaller gain cannot be divided by in float32


@dataclass(frozen=True)
class RotatableGroup:
    """A neuron group that may be rotated, with the normalisations whose gains are folded first."""

    name: str
    norms: tuple[FoldableNorm, ...] = ()
    keeps_mean: bool = False  # only rotations that leave the mean over the neurons: a LayerNorm


@dataclass(frozen=True)
class RotatableGroups:
    """The neuron groups of a model, and which of them may be rotated, as was proven."""

    groups: NeuronGroups
    rotatable: tuple[RotatableGroup, ...]
    refused: tuple[Pin, ...] = ()  # groups that may be permuted only, and why

    def __getitem__(self, name: str) -> RotatableGroup:
        for group in self.rotatable:
            if group.name == name:
                return group
        raise KeyError(f"No rotatable group is named {name!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the groups that may be rotated."""
        return tuple(group.name for group in self.rotatable)

    @property
    def norms(self) -> tuple[FoldableNorm, ...]:
        """All normalisations whose gains are folded."""
        return tuple(norm for group in self.rotatable for norm in group.norms)

    def blocks_of(self, name: str) -> tuple[Block, ...]:
        """Return the blocks that a rotation of the group turns: all but gains and their biases."""
        folded = {tensor for norm in self[name].norms for tensor in (norm.gain, norm.bias)}
        return tuple(b for b in self.groups.blocks_of(name) if b.tensor not in folded)

    def matrix_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a group's matrices: (*sizes of the parents, size, size)."""
        group, sizes = self.groups[name], self.groups.sizes()
        return (*(sizes[parent] for parent in group.parents), group.size, group.size)

    def norm_values(self, weights: Weights) -> dict[str, Tensor]:
        """Return the gains and biases of the normalisations that are folded.

        Args:
            weights: All tensors of the model.

        Returns:
            What a `GroupRotation` gives the network that it moves.
        """
        names = (name for norm in self.norms for name in (norm.gain, norm.bias))
        return {name: weights[name] for name in names if name is not None}

    def to_json(self) -> dict[str, Any]:
        """Return what may be rotated, and why the rest may not, as plain data."""
        return {
            "rotatable": [asdict(group) for group in self.rotatable],
            "refused": [asdict(pin) for pin in self.refused],
        }

    def __str__(self) -> str:
        lines = []
        for group in self.rotatable:
            size = self.groups[group.name].size
            notes = ["its mean stays"] * group.keeps_mean
            if group.norms:
                notes.append(f"gains of {len(group.norms)} normalisations are folded")
            lines.append(
                f"rotatable: {group.name} ({size})" + (f": {', '.join(notes)}" if notes else "")
            )
        lines += [f"not rotatable: {pin.where}: {pin.reason}" for pin in self.refused]
        return "\n".join(lines)


@dataclass(frozen=True)
class GroupRotation:
    """A permutation of neurons, followed by a rotation of groups: the function stays the same.

    The network that `apply` returns has the architecture of the one that it takes: the gains of
    normalisations are moved into the linear layers behind them, neurons are rotated, and the gains
    and biases in `norms` (those of the network that is aligned to) are moved out again. As
    `Permutation`, it is named after its direction, `source_to_target`.
    """

    rotatable: RotatableGroups
    permutation: Permutation  # applied first; rotated groups usually keep their order in it
    matrices: Mapping[str, Tensor]  # float64, (*parents, n, n): neuron i receives sum_j M_ij x_j
    norms: Mapping[str, Tensor] = field(default_factory=dict)  # 1 and 0 where nothing is given

    def __post_init__(self) -> None:
        for name, matrix in self.matrices.items():
            expected = self.rotatable.matrix_shape(name)
            if tuple(matrix.shape) != expected:
                raise ValueError(
                    f"The rotation of {name!r} must have shape {expected}, got "
                    f"{tuple(matrix.shape)}."
                )
            rest = matrix @ matrix.mT - torch.eye(expected[-1], dtype=matrix.dtype)
            if not float(rest.abs().max()) < 1e-6:
                raise ValueError(f"The rotation of {name!r} is not orthogonal.")
        _check_gains(self.rotatable.norms, self.norms)

    @classmethod
    def identity(cls, rotatable: RotatableGroups, norms: Weights | None = None) -> "GroupRotation":
        """Return the rotation that turns nothing."""
        return cls(rotatable, Permutation.identity(rotatable.groups), {}, norms or {})

    @classmethod
    def random(
        cls, rotatable: RotatableGroups, *, seed: int, norms: Weights | None = None
    ) -> "GroupRotation":
        """Return a uniformly random rotation of every rotatable group; all others stay.

        Args:
            rotatable: What may be rotated.
            seed: Seed of the draw; the global generator is not touched.
            norms: Gains and biases of the network that `apply` returns.

        Returns:
            The rotation; the same for the same groups and seed.
        """
        generator = torch.Generator().manual_seed(seed)
        matrices = {}
        for group in rotatable.rotatable:
            shape = rotatable.matrix_shape(group.name)
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            matrices[group.name] = nearest_rotation(drawn, keeps_mean=group.keeps_mean)
        return cls(rotatable, Permutation.identity(rotatable.groups), matrices, norms or {})

    def apply(self, weights: Weights) -> dict[str, Tensor]:
        """Return the weights of the same function in the rotated basis.

        Args:
            weights: All tensors of the model: weights, no gradients or displacements, of which a
                gain cannot be folded.

        Returns:
            New tensors of the same shape, dtype and device.

        Raises:
            ValueError: If a tensor has another shape or a tensor that moves is missing.
        """
        check_shapes(weights, self.rotatable.groups.shapes)
        needed = {b.tensor for name in self.matrices for b in self.rotatable.blocks_of(name)}
        if missing := sorted(needed - set(weights)):
            raise ValueError(
                f"The tensor {missing[0]!r} is missing: a rotation mixes neurons of all tensors."
            )
        wide = {n: v.double() if v.is_floating_point() else v for n, v in weights.items()}
        norms = self.rotatable.norms
        values = {n: v.double() for n, v in self.norms.items()}
        moved = rotated(self.permutation.apply(fold(wide, norms)), self.rotatable, self.matrices)
        moved = unfold(moved, norms, values) if values else moved
        return {n: v.to(weights[n]).contiguous() for n, v in moved.items()}

    def moved(self) -> float:
        """Return the share of neurons that are rotated or change their position."""
        still = Permutation.identity(self.rotatable.groups).orders
        moving = []
        for name, order in self.permutation.orders.items():
            moves = order != still[name]
            if name in self.matrices:
                matrix = self.matrices[name]
                rest = matrix - torch.eye(matrix.shape[-1], dtype=matrix.dtype)
                moves = moves | (rest.abs().amax(-1) > _STILL)
            moving.append(moves.flatten())
        return float(torch.cat(moving).double().mean()) if moving else 0.0


def rotated(
    weights: Weights, rotatable: RotatableGroups, matrices: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return folded weights with every group turned by its matrices."""
    moved = dict(weights)
    for name, matrix in matrices.items():
        for block in rotatable.blocks_of(name):
            value = moved[block.tensor]
            moved[block.tensor] = _turned(value, rotatable.groups, block, name, matrix)
    return moved


def rows_of(value: Tensor, groups: NeuronGroups, block: Block, name: str) -> Tensor:
    """Return a block of a tensor as (*parents, n, everything else), for a group that it lists."""
    parts, order, _ = _parts(value, groups, block, name)
    outer = len(groups[name].parents)
    front = parts.permute(order)
    return front.reshape(*front.shape[: outer + 1], -1)


def nearest_rotation(matrix: Tensor, *, keeps_mean: bool = False) -> Tensor:
    """Return the orthogonal Q with the largest inner product with a matrix, or with each of many.

    Args:
        matrix: (..., n, n)
        keeps_mean: Among those only that leave the vector of ones.

    Returns:
        (..., n, n)

    Source: "A generalized solution of the orthogonal Procrustes problem" (Schoenemann, 1966).

    Example:
        >>> nearest_rotation(torch.tensor([[0.0, 2.0], [-1.0, 0.0]]))
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    if keeps_mean:
        size = matrix.shape[-1]
        ones = torch.ones(size, size, dtype=matrix.dtype) / size
        rest = off_mean(size).to(matrix)
        return rest @ nearest_rotation(rest.mT @ matrix @ rest) @ rest.mT + ones
    left, _, right = torch.linalg.svd(matrix)
    nearest: Tensor = left @ right
    return nearest


def off_mean(size: int) -> Tensor:
    """Return an orthonormal basis of the vectors whose mean is 0: float64, (size, size - 1)."""
    # Helmert's basis: column k has k + 1 equal entries, and one that makes up for them.
    basis = torch.ones(size, size - 1, dtype=torch.float64).triu()
    numbers = torch.arange(1, size, dtype=torch.float64)
    basis[torch.arange(1, size), torch.arange(size - 1)] = -numbers
    basis /= (numbers * (numbers + 1)).sqrt()
    return basis


def _turned(value: Tensor, groups: NeuronGroups, block: Block, name: str, matrix: Tensor) -> Tensor:
    parts, order, shape = _parts(value, groups, block, name)
    front = parts.permute(order)
    rows = front.reshape(*matrix.shape[:-1], -1)
    turned = (matrix.to(value) @ rows).view(front.shape)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    result = value.clone()
    where = result.narrow(block.axis, block.offset, groups.length(block))
    where.copy_(turned.permute(inverse).reshape(shape))
    return result


def _parts(
    value: Tensor, groups: NeuronGroups, block: Block, name: str
) -> tuple[Tensor, list[int], Sequence[int]]:
    """A block with an axis for each factor, the order that brings a group in front, its shape."""
    part = value.narrow(block.axis, block.offset, groups.length(block))
    sizes = [groups[f].size if isinstance(f, str) else f for f in block.factors]
    axes = [*part.shape[: block.axis], *sizes, *part.shape[block.axis + 1 :]]
    front = [block.axis + block.factors.index(f) for f in (*groups[name].parents, name)]
    rest = [axis for axis in range(len(axes)) if axis not in front]
    return part.reshape(axes), [*front, *rest], part.shape


def _check_gains(norms: Sequence[FoldableNorm], values: Weights) -> None:
    for norm in norms if values else ():
        smallest = float(values[norm.gain].abs().min())
        if not smallest > _LEAST_GAIN:
            raise ValueError(
                f"The gain {norm.gain!r} of the network that is aligned to has an entry of "
                f"{smallest:.1e}: what was folded into linear layers cannot be divided by it."
            )
