"""Rotations of what a layer computes: for displacements, which need no symmetry of the network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slipstream.evaluation import Task, takes_task
from slipstream.matching.activations import Covariance, Site, covariances_of
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import Weights

# The share of a permutation in each covariance: it decides where the data says nothing.
_RIDGE = 1e-6


@dataclass(frozen=True)
class Rotation:
    """Aligns a displacement of the source to the target: by a rotation of every observed axis."""

    axes: Mapping[tuple[str, int], Tensor]  # (n, n): row i says what position i receives
    source_to_target: Permutation  # moves the tensors that no layer multiplies by

    def apply_to(self, name: str, value: Tensor) -> Tensor:
        """Return `value`, with the layout of the model's tensor `name`, on the target's axes."""
        turned = [axis for axis in range(value.dim()) if (name, axis) in self.axes]
        if not turned:
            return self.source_to_target.apply_to(name, value)
        for axis in turned:
            turn = self.axes[name, axis].to(value)
            value = torch.tensordot(turn, value, dims=([1], [axis])).movedim(0, axis)
        return value.contiguous()


@takes_task
def match_rotations(
    source: Weights,
    target: Weights,
    task: Task,
    *,
    groups: NeuronGroups,
    start: Permutation,
    outputs: Literal["activations", "gradients"] = "activations",
) -> Rotation:
    """Find the rotations that align the source's activations to the target's.

    For the inputs and outputs of each linear and convolutional layer, the orthogonal Q that
    minimises `||X_target - X_source Q^T||` over centred activations: with the singular value
    decomposition U S V^T of their covariance it is `U V^T`. A rotation is not a symmetry of a
    network with activation functions, so weights must not be moved by it; a displacement may: it is
    added to the target's own weights. Only axes that list neurons are turned: inputs and outputs of
    the network stay.

    With `outputs="gradients"`, the outputs of layers are rotated as the loss's gradients there are
    aligned, not the activations: a step of training is a sum of products of output gradients with
    inputs, so each side of it has a map of its own.

    Args:
        source: Weights of one network.
        target: Weights of the other; the same layout.
        task: The model and data.
        groups: Which axes list neurons.
        start: For the tensors that no layer multiplies by, such as gains and statistics of a
            normalisation, and where too few examples leave a rotation open.
        outputs: What the outputs of layers are aligned by; the gradients need labels.

    Returns:
        What aligns a displacement to the target.

    Raises:
        ValueError: If the data is empty, the weights differ in a name or a shape, or an
            activation is not finite.

    Source: "A generalized solution of the orthogonal Procrustes problem" (Schoenemann, 1966); the
    two maps are those of BiCo (arXiv 2605.28444, 2026).
    """
    observed = covariances_of(source, target, task, groups=groups, outputs=outputs)
    axes: dict[tuple[str, int], Tensor] = {}
    for site, covariance in observed.items():
        if covariance.count > 1:
            turn = _turn(site, covariance, start)
            axes[site.weight, site.weight_axis] = turn
            bias = site.weight.removesuffix("weight") + "bias"
            if site.output and bias in groups.shapes:
                axes[bias, 0] = turn
    return Rotation(_whole(axes, groups), start)


def _turn(site: Site, covariance: Covariance, start: Permutation) -> Tensor:
    """The best rotation of the positions that list neurons; all others stay."""
    cross = covariance.covariance()  # (target units, source units)
    likely = _matrix(site, start)
    turn = torch.eye(site.size, dtype=torch.float64)
    for block in site.blocks:
        part = slice(block.offset, block.offset + start.groups.length(block))
        scale = float(cross[part, part].norm()) or 1.0
        left, _, right = torch.linalg.svd(cross[part, part] + _RIDGE * scale * likely[part, part])
        turn[part, part] = left @ right
    return turn


def _matrix(site: Site, permutation: Permutation) -> Tensor:
    """What a permutation does to one axis; nothing where that depends on another axis."""
    matrix = torch.eye(site.size, dtype=torch.float64)
    positions = permutation.indices(site.weight).get(site.weight_axis)
    signs = permutation.factors(site.weight).get(site.weight_axis)
    if positions is not None and positions.dim() == 1:
        matrix = matrix[positions]
    if signs is not None and signs.dim() == 1:
        matrix = matrix * signs[:, None]
    return matrix


def _whole(
    axes: dict[tuple[str, int], Tensor], groups: NeuronGroups
) -> dict[tuple[str, int], Tensor]:
    """Without the tensors of which another axis lists neurons that no layer was observed with."""
    listed = {(block.tensor, block.axis) for block in groups.blocks}
    torn = {name for name, axis in listed if (name, axis) not in axes}
    return {place: turn for place, turn in axes.items() if place[0] not in torn}
