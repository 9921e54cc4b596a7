"""Numerical proof: a permuted network computes the same function, in float64, group by group.

The weights are disturbed first, so that nothing hides an error: gains of one, biases of zero and
untrained running statistics become different for every neuron.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from slipstream.symmetry.capture import ExampleInput
from slipstream.symmetry.eval_copy import evaluation_copy
from slipstream.symmetry.neuron_groups import NeuronGroups, Pin
from slipstream.symmetry.perturbed_model import Trial, with_noise
from slipstream.weights import weights_of

ATTEMPTS = 3  # other inputs and weights for groups that the output does not depend on
DRAWS = 2  # random permutations that a group has to pass; one if it has many neurons
MANY = 8  # so few of their permutations keep a wrong group right that one draw shows it
SENSITIVE = 100  # tested weights move the output by this many times the tolerance, at least
ROUNDINGS = 100  # a permutation rounds differently, and so moves the output by this much at most
CHAOS = 1e-6  # a larger change by rounding alone hides whether a group is right
SIGNS = "its neurons keep their signs: with others, "


def check(
    model: nn.Module,
    groups: NeuronGroups,
    example_input: ExampleInput,
    *,
    tolerance: float = 1e-10,
    seed: int = 0,
) -> NeuronGroups:
    """Keep the groups for which f(x; pi(theta)) = f(x; theta), and list the others in `dropped`.

    All groups are permuted at once; where the output changes, halves of them are tried until the
    wrong ones stand alone. A signed group that is right without its signs loses only them. A group
    whose weights do not reach the output (dead units) is tried again on disturbed inputs; what
    cannot be tested is dropped too.

    Args:
        model: Any module; it is left as it is.
        groups: Groups found by `find_neuron_groups`, or written by hand.
        example_input: A tensor, a tuple of arguments, or a dictionary of keyword arguments.
        tolerance: Largest change that counts as rounding, relative to the largest output. A model
            that magnifies rounding errors is granted 100 times what the last bits of its weights
            change.
        seed: Of the permutations and of the disturbed weights.

    Returns:
        The groups that hold.

    Raises:
        ValueError: If the groups are of another model, if two evaluations of the model differ, or
            if its weights hold no numbers.

    Example:
        >>> from slipstream.symmetry.neuron_groups import Block, NeuronGroup
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        >>> rows = Block("0.weight", 0, 0, ("units",))
        >>> forgetful = NeuronGroups((NeuronGroup("units", 3),), (rows,), shapes)
        >>> check(model, forgetful, torch.ones(5, 4)).dropped[0].tensors
        ('0.weight:0',)
    """
    _check_model(model, groups)
    if not groups.groups:
        return groups
    untested = {group.name: "" for group in groups.groups}
    faults: dict[str, str] = {}
    with evaluation_copy(model) as replica:
        for attempt in range(ATTEMPTS):
            inputs = with_noise(example_input, seed=seed + attempt) if attempt else example_input
            trial = Trial.prepare(replica, groups, inputs, seed=seed + attempt)
            waiting, untested = untested, _untested(trial, untested, tolerance)
            for draw in range(DRAWS):
                names = [name for name in waiting if name not in untested | faults]
                names = [name for name in names if draw == 0 or groups[name].size < MANY]
                faults |= _wrong_among(trial, names, tolerance, seed + draw)
            if not untested:
                break
    if doubtful := [name for name in faults if groups[name].signed]:
        unsigned = groups.without_signs(doubtful)
        checked = check(model, unsigned, example_input, tolerance=tolerance, seed=seed)
        pins = _dropped(
            groups, {name: SIGNS + faults[name] for name in doubtful if name in checked.sizes()}
        )
        return replace(checked, dropped=checked.dropped + pins)
    faults |= untested
    kept = groups.keep(group.name for group in groups.groups if group.name not in faults)
    return replace(kept, dropped=groups.dropped + _dropped(groups, faults))


def _dropped(groups: NeuronGroups, faults: Mapping[str, str]) -> tuple[Pin, ...]:
    return tuple(
        Pin("proof", "", fault, tuple(f"{b.tensor}:{b.axis}" for b in groups.blocks_of(name)))
        for name, fault in faults.items()
    )


def _untested(trial: Trial, names: Iterable[str], tolerance: float) -> dict[str, str]:
    """The groups of whose tensors not two (or the only one) move the output, and the fault."""
    if not all(bool(torch.isfinite(output).all()) for output in trial.outputs):
        fault = "could not be tested: the output of the model is not finite"
        return dict.fromkeys(names, fault)
    faults = {}
    for name in names:
        tensors = list(dict.fromkeys(b.tensor for b in trial.groups.blocks_of(name)))
        needed = min(2, len(tensors))
        alive = sum(trial.effects.get(tensor, 0.0) > SENSITIVE * tolerance for tensor in tensors)
        if alive < needed and _moving_alone(trial, name, tensors, tolerance) < needed:
            faults[name] = "could not be tested: its weights hardly change the output"
    return faults


def _moving_alone(trial: Trial, group: str, tensors: Sequence[str], tolerance: float) -> int:
    """How many tensors change the output when the group is permuted in them alone; stop at two."""
    permuted = trial.permuted([group], seed=0)
    count = 0
    for name in tensors:
        count += trial.change({name: permuted[name]}) > SENSITIVE * tolerance
        if count == 2:
            break
    return count


def _wrong_among(trial: Trial, names: Sequence[str], tolerance: float, seed: int) -> dict[str, str]:
    """The groups that change the output, with their faults, found by halving."""
    if not names:
        return {}
    change = trial.change(trial.permuted(names, seed=seed))
    if change <= tolerance:
        return {}
    _check_deterministic(trial, tolerance)
    rounding = ROUNDINGS * trial.rounding
    if change <= rounding < CHAOS:
        return {}
    fault = f"a permutation moved the output by {change:.1e} of its size"
    if change <= rounding:
        fault = f"could not be tested: {fault}, but so does rounding alone"
    if len(names) == 1:
        return {names[0]: fault}
    half = len(names) // 2
    parts = (_wrong_among(trial, part, tolerance, seed) for part in (names[:half], names[half:]))
    found = {name: reason for part in parts for name, reason in part.items()}
    return found or dict.fromkeys(names, f"together with others, {fault}")


def _check_deterministic(trial: Trial, tolerance: float) -> None:
    if trial.repeated > tolerance:
        raise ValueError(
            f"Two evaluations of {type(trial.model).__name__} on example_input differ by "
            f"{trial.repeated:.1e} of the output, in evaluation mode: it draws random numbers or "
            "keeps a state, so no neuron group can be proven. Make it deterministic, or pass "
            "prove=False."
        )


def _check_model(model: nn.Module, groups: NeuronGroups) -> None:
    if any(value.is_meta for value in model.parameters()):
        raise ValueError(
            f"The weights of {type(model).__name__} are on the meta device and hold no numbers to "
            "prove neuron groups with: pass prove=False, or build the model with numbers."
        )
    own = {name: tuple(value.shape) for name, value in weights_of(model).items()}
    for block in groups.blocks:
        shape = groups.shapes[block.tensor]
        if own.get(block.tensor) != shape:
            raise ValueError(
                f"The groups are of another model: they expect {block.tensor!r} of shape {shape}, "
                f"{type(model).__name__} has {own.get(block.tensor, 'no such tensor')}."
            )
