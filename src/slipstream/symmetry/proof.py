"""Numerical proof: a permuted network computes the same function, in float64, group by group.

The weights are disturbed first, so that nothing hides an error: gains of one, biases of zero and
untrained running statistics become different for every neuron.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from slipstream.symmetry.capture import ExampleInput
from slipstream.symmetry.disturbance import with_noise
from slipstream.symmetry.eval_copy import evaluation_copy
from slipstream.symmetry.neuron_groups import Block, NeuronGroups, Pin
from slipstream.symmetry.perturbed_model import PerturbedModel
from slipstream.symmetry.untouched import left_as_it_was
from slipstream.weights import unwrapped, weights_of

ATTEMPTS = 3  # other inputs and weights for groups that the output does not depend on
DRAWS = 2  # random permutations that a group has to pass; one if it has many neurons
MANY = 8  # so few of their permutations keep a wrong group right that one draw shows it
SENSITIVE = 100  # tested weights move the output by this many times the tolerance, at least
ROUNDINGS = 100  # a permutation rounds differently, and so moves the output by this much at most
CHAOS = 1e-6  # a larger change by rounding alone hides whether a group is right
TOLERANCE = 1e-10
IDLE = "on the example no output depends on it (one token, one step, an expert nobody asks?)"
SIGNS = "its neurons keep their signs: with others, "


def check(
    model: nn.Module,
    groups: NeuronGroups,
    example_input: ExampleInput,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> NeuronGroups:
    """Keep the groups for which f(x; pi(theta)) = f(x; theta), and list the others in `dropped`.

    All groups are permuted at once; where the output changes, halves of them are tried until the
    wrong ones stand alone. A signed group that is right without its signs loses only them. A group
    whose weights do not reach the output (dead units) is tried again on disturbed inputs. A group
    that lists a matrix on which the output of the example does not depend is dropped too: with one
    token, nothing is known about queries and keys. Where the model computes something else in
    training mode, that is tested as well.

    Args:
        model: Any module; it is left as it is.
        groups: Groups found by `find_neuron_groups`, or written by hand.
        example_input: A tensor, a tuple of arguments, or a dictionary of keyword arguments.
        tolerance: Largest change that counts as rounding, relative to how far the outputs are
            apart. A model
            that magnifies rounding errors is granted 100 times what the last bits of its weights
            change.
        seed: Of the permutations and of the disturbed weights.

    Returns:
        The groups that hold.

    Raises:
        ValueError: If the groups are of another model, if two evaluations of the model differ, or
            if its weights hold no values.

    Example:
        >>> import torch
        >>> from slipstream.symmetry.neuron_groups import Block, NeuronGroup
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        >>> rows = Block("0.weight", 0, 0, ("units",))
        >>> forgetful = NeuronGroups((NeuronGroup("units", 3),), (rows,), shapes)
        >>> check(model, forgetful, torch.ones(5, 4)).dropped[0].tensors
        ('0.weight:0',)
    """
    asked = _Question(example_input, tolerance, seed, strict=True, training=True)
    return _checked(model, groups, asked)


def check_found(
    model: nn.Module,
    groups: NeuronGroups,
    example_input: ExampleInput,
    *,
    seed: int,
    training: bool = True,
) -> NeuronGroups:
    """Check groups that follow from the model's operators: what the example cannot test is kept.

    Args:
        model: Any module; it is left as it is.
        groups: As the rules found them.
        example_input: A tensor, a tuple of arguments, or a dictionary of keyword arguments.
        seed: Of the permutations and of the disturbed weights.
        training: Whether the model may compute something else in training mode.

    Returns:
        The groups that hold; `caveats` names the blocks that the example could not test.
    """
    asked = _Question(example_input, TOLERANCE, seed, strict=False, training=training)
    return _checked(model, groups, asked)


@dataclass(frozen=True)
class _Question:
    """What groups are held against."""

    example_input: ExampleInput
    tolerance: float
    seed: int
    strict: bool  # keep only groups of which the example tests every matrix
    training: bool  # look at training mode too


def _checked(model: nn.Module, groups: NeuronGroups, asked: _Question) -> NeuronGroups:
    """The groups that hold."""
    example_input, seed, tolerance = asked.example_input, asked.seed, asked.tolerance
    model = unwrapped(model)
    _check_model(model, groups)
    if not groups.groups:
        return groups
    untested = {group.name: "" for group in groups.groups}
    faults: dict[str, str] = {}
    idle = set(groups.blocks)
    with evaluation_copy(model) as replica, left_as_it_was(replica) as memory:
        for attempt in range(ATTEMPTS):
            inputs = with_noise(example_input, seed=seed + attempt) if attempt else example_input
            perturbed = PerturbedModel.prepare(
                replica, memory, groups, inputs, seed=seed + attempt, training=asked.training
            )
            idle &= set(_idle(perturbed, tolerance, strict=asked.strict))
            waiting, untested = untested, _untested(perturbed, untested, idle, asked)
            for draw in range(DRAWS):
                names = [name for name in waiting if name not in untested | faults]
                names = [name for name in names if draw == 0 or groups[name].size < MANY]
                faults |= _wrong_among(perturbed, names, tolerance, seed + draw)
            if not untested:
                break
    if doubtful := [name for name in faults if groups[name].signed]:
        unsigned = groups.without_signs(doubtful)
        checked = _checked(model, unsigned, asked)
        pins = _dropped(
            groups, {name: SIGNS + faults[name] for name in doubtful if name in checked.sizes()}
        )
        return replace(checked, dropped=checked.dropped + pins)
    faults |= untested
    kept = groups.keep(group.name for group in groups.groups if group.name not in faults)
    # Of the bias of keys, for one, no output depends on any example: only matrices are named.
    open_ = [
        _place(block)
        for block in groups.blocks
        if block in idle and len(groups.shapes[block.tensor]) > 1
        if set(block.groups) & set(kept.sizes())
    ]
    return replace(
        kept,
        dropped=groups.dropped + _dropped(groups, faults),
        caveats=(*groups.caveats, *([_not_tested(open_)] if open_ else [])),
    )


def _not_tested(places: Sequence[str]) -> str:
    rest = f" and {len(places) - 4} more" if len(places) > 4 else ""
    return f"not tested: {', '.join(places[:4])}{rest}; {IDLE}"


def _place(block: Block) -> str:
    return f"{block.tensor}:{block.axis}" + (f"[{block.offset}:]" if block.offset else "")


def _dropped(groups: NeuronGroups, faults: Mapping[str, str]) -> tuple[Pin, ...]:
    return tuple(
        Pin("proof", "", fault, tuple(f"{b.tensor}:{b.axis}" for b in groups.blocks_of(name)))
        for name, fault in faults.items()
    )


def _idle(perturbed: PerturbedModel, tolerance: float, *, strict: bool) -> list[Block]:
    """The blocks that are known not to change the output; if `strict`, matrices are tried."""
    idle = []
    for block in perturbed.groups.blocks:
        effect = perturbed.effects.get(block)
        if effect is None and strict and len(perturbed.groups.shapes[block.tensor]) > 1:
            effect = perturbed.change(perturbed.permuted(block.groups, seed=0, only=block))
        if effect is not None and effect <= SENSITIVE * tolerance:
            idle.append(block)
    return idle


def _untested(
    perturbed: PerturbedModel,
    names: Iterable[str],
    idle: Container[Block],
    asked: _Question,
) -> dict[str, str]:
    """The groups that the example cannot test, and why."""
    # Of a group that follows from the operators, two tensors (or the only one) must change the
    # output; of another one every matrix, for nothing but the example speaks for it.
    if any(not bool(output.isfinite().any()) for output in perturbed.outputs if output.numel()):
        fault = "could not be tested: the output of the model is not finite"
        return dict.fromkeys(names, fault)
    shapes = perturbed.groups.shapes
    faults = {}
    for name in names:
        blocks = perturbed.groups.blocks_of(name)
        silent = [_place(b) for b in blocks if b in idle and len(shapes[b.tensor]) > 1]
        tensors = list(dict.fromkeys(block.tensor for block in blocks))
        needed = min(2, len(tensors))
        alive = sum(perturbed.effects.get(t, 0.0) > SENSITIVE * asked.tolerance for t in tensors)
        if alive < needed and _moving_alone(perturbed, name, blocks, asked.tolerance) < needed:
            faults[name] = "could not be tested: its weights hardly change the output"
        elif asked.strict and silent:
            faults[name] = f"could not be tested on {', '.join(silent[:4])}: {IDLE}"
    return faults


def _moving_alone(
    perturbed: PerturbedModel, group: str, blocks: Sequence[Block], tolerance: float
) -> int:
    """In how many tensors alone a permutation of the group changes the output; stop at two."""
    moving: set[str] = set()
    for block in blocks:
        permuted = perturbed.permuted([group], seed=0, only=block)
        if perturbed.change(permuted) > SENSITIVE * tolerance:
            moving.add(block.tensor)
        if len(moving) == 2:
            break
    return len(moving)


def _wrong_among(
    perturbed: PerturbedModel, names: Sequence[str], tolerance: float, seed: int
) -> dict[str, str]:
    """The groups that change the output, with their faults, found by halving."""
    if not names:
        return {}
    change = perturbed.change(perturbed.permuted(names, seed=seed))
    if change <= tolerance:
        return {}
    _check_deterministic(perturbed, tolerance)
    rounding = ROUNDINGS * perturbed.rounding
    if change <= rounding < CHAOS:
        return {}
    fault = f"a permutation moved the output by {change:.1e} of its size"
    if change <= rounding:
        fault = f"could not be tested: {fault}, but so does rounding alone"
    if len(names) == 1:
        return {names[0]: fault}
    half = len(names) // 2
    parts = (
        _wrong_among(perturbed, part, tolerance, seed) for part in (names[:half], names[half:])
    )
    found = {name: reason for part in parts for name, reason in part.items()}
    return found or dict.fromkeys(names, f"together with others, {fault}")


def _check_deterministic(perturbed: PerturbedModel, tolerance: float) -> None:
    if perturbed.repeated > tolerance:
        raise ValueError(
            f"Two evaluations of {type(perturbed.model).__name__} on example_input differ by "
            f"{perturbed.repeated:.1e} of the output, in evaluation mode: it draws random numbers "
            "or keeps a state, so no neuron group can be proven. Make it deterministic, or pass "
            "prove=False."
        )


def _check_model(model: nn.Module, groups: NeuronGroups) -> None:
    if any(value.is_meta for value in model.parameters()):
        raise ValueError(
            f"The weights of {type(model).__name__} are on the meta device and hold no values to "
            "prove neuron groups with: pass prove=False, or build the model with values."
        )
    own = {name: tuple(value.shape) for name, value in weights_of(model).items()}
    for block in groups.blocks:
        shape = groups.shapes[block.tensor]
        if own.get(block.tensor) != shape:
            raise ValueError(
                f"The groups are of another model: they expect {block.tensor!r} of shape {shape}, "
                f"{type(model).__name__} has {own.get(block.tensor, 'no such tensor')}."
            )
