"""Which neuron groups may be rotated: found in the graph, decided by a proof in float64."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from slipstream.symmetry.capture import Capture, ExampleInput, capture
from slipstream.symmetry.disturbance import with_noise
from slipstream.symmetry.eval_copy import evaluation_copy
from slipstream.symmetry.neuron_groups import NeuronGroups, Pin
from slipstream.symmetry.norms import CannotFoldError, foldable_norms
from slipstream.symmetry.perturbed_model import PerturbedModel
from slipstream.symmetry.proof import CHAOS, IDLE, ROUNDINGS, SENSITIVE, TOLERANCE
from slipstream.symmetry.rotation import GroupRotation, RotatableGroup, RotatableGroups
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.symmetry.untouched import left_as_it_was
from slipstream.weights import unwrapped

DRAWS = 2  # rotations, weights and inputs that a group has to pass


def find_rotatable_groups(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    groups: NeuronGroups | None = None,
    seed: int = 0,
) -> RotatableGroups:
    """Find which neuron groups may be rotated: any orthogonal matrix in place of a permutation.

    Neurons that only linear maps and normalisations see may be written in another basis: a residual
    stream, the features of a head that queries and keys multiply, those that values and outputs
    do. The gain of a normalisation takes each neuron by itself, so it is moved into the linear
    layers behind it first. A LayerNorm subtracts a mean, so that only rotations remain that
    leave the mean. Whether a group is one of these is not read off the model: it is rotated at
    random, with disturbed weights, in float64, and the outputs are compared. What is proven is the
    evaluation mode; dropout in the stream is not the same in another basis.

    Args:
        model: Any module; it is left as it is.
        example_input: A tensor, a tuple of arguments, or a dictionary of keyword arguments.
        groups: Its proven neuron groups, if they are known.
        seed: Of the rotations and of the disturbed weights.

    Returns:
        All neuron groups, those that may be rotated, and why the others may not.

    Raises:
        ValueError: As of `find_neuron_groups`, or if the model's weights hold no values.

    Example:
        >>> model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> find_rotatable_groups(model, torch.randn(6, 5)).names
        ('0.weight:0',)

    Source: "Generalized Linear Mode Connectivity for Transformers" (Theus, Cabodi, Anagnostidis,
    Orvieto, Singh, Boeva, 2025), section 3; the folded gain is that of "SliceGPT" (Ashkboos,
    Croci, do Nascimento, Hoefler, Hensman, 2024), section 3.
    """
    model = unwrapped(model)
    if any(value.is_meta for value in model.parameters()):
        raise ValueError(
            f"The weights of {type(model).__name__} are on the meta device and hold no values to "
            "prove rotations with: build the model with values."
        )
    if groups is None:
        groups = find_neuron_groups(model, example_input, seed=seed)
    with evaluation_copy(model) as replica:
        with left_as_it_was(replica):
            captured = capture(replica, example_input)
        found = _candidates(captured, groups)
        with left_as_it_was(replica) as memory:
            for draw in range(DRAWS):
                given = with_noise(example_input, seed=seed + draw) if draw else example_input
                perturbed = PerturbedModel.prepare(
                    replica, memory, groups, given, seed=seed + draw, training=False
                )
                found = _proven(perturbed, found, seed + draw)
    return found


def _candidates(captured: Capture, groups: NeuronGroups) -> RotatableGroups:
    """Every group that a matrix can be applied to, and whose gains can be folded."""
    candidates, refused = [], []
    for group in groups.groups:
        blocks = groups.blocks_of(group.name)
        if group.size < 2 or any(set(group.parents) - set(b.factors) for b in blocks):
            refused.append(_pin(groups, group.name, "its blocks list one neuron, or its parents "
                                "on another axis"))  # fmt: skip
            continue
        try:
            norms = foldable_norms(captured, groups, group.name)
        except CannotFoldError as error:
            refused.append(_pin(groups, group.name, str(error)))
            continue
        candidates.append(RotatableGroup(group.name, norms))
    return RotatableGroups(groups, tuple(candidates), tuple(refused))


def _proven(perturbed: PerturbedModel, found: RotatableGroups, seed: int) -> RotatableGroups:
    """The candidates whose rotation keeps the outputs, each alone and all together."""
    kept, refused = [], list(found.refused)
    for group in found.rotatable:
        change = _change(perturbed, found, [group], seed)
        # Of two neurons, what keeps their mean is a permutation.
        if not _is_rounding(perturbed, change) and found.groups[group.name].size > 2:
            group = replace(group, keeps_mean=True)
            change = min(change, _change(perturbed, found, [group], seed))
        if not _is_rounding(perturbed, change):
            refused.append(
                _pin(found.groups, group.name, f"a rotation moved the output by {change:.1e} of "
                     "its size: something takes each neuron by itself")
            )  # fmt: skip
        elif idle := _idle(perturbed, found, group):
            refused.append(
                _pin(found.groups, group.name, f"could not be tested on {idle[0]!r}: {IDLE}")
            )
        else:
            kept.append(group)
    change = _change(perturbed, found, kept, seed) if kept else 0.0
    if not _is_rounding(perturbed, change):
        refused += [
            _pin(found.groups, group.name, f"together, rotations moved the output by {change:.1e}")
            for group in kept
        ]
        kept = []
    return replace(found, rotatable=tuple(kept), refused=tuple(refused))


def _change(
    perturbed: PerturbedModel,
    found: RotatableGroups,
    chosen: Sequence[RotatableGroup],
    seed: int,
) -> float:
    """How far a random rotation moves the outputs, with other gains at the end of it."""
    own = {n: v for n, v in perturbed.tensors.items() if n in found.groups.shapes}
    alone = replace(found, rotatable=tuple(chosen))
    norms = _other(alone.norm_values(own), seed)
    return perturbed.change(GroupRotation.random(alone, seed=seed, norms=norms).apply(own))


def _other(values: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Gains and biases of another network: none is near zero."""
    generator = torch.Generator().manual_seed(seed)
    return {n: 0.5 + torch.rand(v.shape, generator=generator).to(v) for n, v in values.items()}


def _is_rounding(perturbed: PerturbedModel, change: float) -> bool:
    return change <= TOLERANCE or change <= ROUNDINGS * perturbed.rounding < CHAOS


def _idle(perturbed: PerturbedModel, found: RotatableGroups, group: RotatableGroup) -> list[str]:
    """The matrices of a group on which no output depends."""
    alone = replace(found, rotatable=(group,))
    return [
        block.tensor
        for block in alone.blocks_of(group.name)
        if len(found.groups.shapes[block.tensor]) > 1
        if perturbed.effects.get(block, 0.0) <= SENSITIVE * TOLERANCE
    ]


def _pin(groups: NeuronGroups, name: str, reason: str) -> Pin:
    places = tuple(f"{b.tensor}:{b.axis}" for b in groups.blocks_of(name))
    return Pin("rotation", name, reason, places)
