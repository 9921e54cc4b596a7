"""Numerical proof: a permuted network computes the same function, in float64, group by group.

The weights are disturbed first, so that nothing hides an error: gains of one, biases of zero and
untrained running statistics become different for every neuron.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from slipstream.symmetry.capture import ExampleInput, call_with
from slipstream.symmetry.neuron_groups import NeuronGroups, Pin
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.replica import evaluation_copy
from slipstream.weights import weights_of

ATTEMPTS = 3  # other inputs and weights for groups that the output does not depend on
DRAWS = 2  # random permutations that a group has to pass; one if it has many neurons
MANY = 8  # so few of their permutations keep a wrong group right that one draw shows it
SENSITIVE = 100  # tested weights move the output by this many times the tolerance, at least
SIGNS = "its neurons keep their signs: with others, "
LOW_PRECISION = (torch.float32, torch.float16, torch.bfloat16)


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
        tolerance: Largest change that counts as rounding, relative to the largest output.
        seed: Of the permutations and of the disturbed weights.

    Returns:
        The groups that hold.

    Raises:
        ValueError: If the groups are of another model, or two evaluations of the model differ.

    Example:
        >>> from slipstream.symmetry.neuron_groups import Block, NeuronGroup
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        >>> rows = Block("0.weight", 0, 0, ("units",))
        >>> forgetful = NeuronGroups((NeuronGroup("units", 3),), (rows,), shapes)
        >>> check(model, forgetful, torch.ones(5, 4)).dropped[0].tensors
        ('0.weight:0',)
    """
    _check_shapes(model, groups)
    if not groups.groups:
        return groups
    untested = {group.name: "" for group in groups.groups}
    faults: dict[str, str] = {}
    with evaluation_copy(model) as replica:
        for attempt in range(ATTEMPTS):
            inputs = _with_noise(example_input, seed + attempt) if attempt else example_input
            trial = _prepare(replica, groups, inputs, seed + attempt)
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


@dataclass(frozen=True)
class _Trial:
    """A model with disturbed weights, and what it computes from them."""

    model: nn.Module
    groups: NeuronGroups
    example_input: ExampleInput  # float64
    tensors: Mapping[str, Tensor]  # all tensors of the model, disturbed, float64
    outputs: Sequence[Tensor]

    def evaluate(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the output tensors for other values of some tensors."""
        with _double_precision():
            result = call_with(self.model, {**self.tensors, **tensors}, self.example_input)
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def change(self, tensors: Mapping[str, Tensor]) -> float:
        """Return how far the outputs move, relative to the largest number of each."""
        with torch.no_grad():
            outputs = self.evaluate(tensors)
        changes = [_relative(*pair) for pair in zip(outputs, self.outputs, strict=True)]
        return max(changes, default=0.0)

    def permuted(self, names: Sequence[str], seed: int) -> dict[str, Tensor]:
        """Return the tensors that move when every one of the named groups does."""
        drawn = Permutation.random(self.groups, seed=seed)
        orders = {
            name: _never_identity(order) if name in names else _identity(order)
            for name, order in drawn.orders.items()
        }
        signs = {name: _both(sign) for name, sign in drawn.signs.items() if name in names}
        moving = {b.tensor for name in names for b in self.groups.blocks_of(name)}
        own = {name: value for name, value in self.tensors.items() if name in moving}
        return Permutation(self.groups, orders, signs).apply(own)


def _prepare(
    model: nn.Module, groups: NeuronGroups, example_input: ExampleInput, seed: int
) -> _Trial:
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    tensors = {name: _to_double(tensor.detach(), copy=True) for name, tensor in own.items()}
    trial = _Trial(model, groups, tree_map(_to_double, example_input), tensors, ())
    with torch.no_grad():
        _measure_statistics_(trial)
        trial = replace(trial, tensors=_disturbed(tensors, weights_of(model), seed))
        trial = replace(trial, outputs=trial.evaluate({}))
    if (change := trial.change({})) > 0:
        raise ValueError(
            f"Two evaluations of {type(model).__name__} on example_input differ by {change:.1e} of "
            "the output, in evaluation mode: it draws random numbers or keeps a state, so no "
            "neuron group can be proven. Make it deterministic, or pass prove=False."
        )
    return trial


def _measure_statistics_(trial: _Trial) -> None:
    """Give untrained BatchNorm the statistics of the input; with 0 and 1 deep networks fade."""
    untrained = [
        module
        for module in trial.model.modules()
        if isinstance(module, _NormBase) and _is_constant(module.running_var)
    ]
    if not untrained:
        return
    momenta = [module.momentum for module in untrained]
    for module in untrained:
        module.train().momentum = 1.0
    # One value per channel has no variance: then the statistics stay 0 and 1.
    with suppress(ValueError):
        trial.evaluate({})
    for module, momentum in zip(untrained, momenta, strict=True):
        module.eval().momentum = momentum


def _is_constant(tensor: Tensor | None) -> bool:
    if tensor is None or tensor.numel() == 0:
        return False
    # A look at the beginning spares a pass over a large matrix.
    flat = tensor.flatten()
    return all(bool((part == flat[0]).all()) for part in (flat[:100], flat))


def _disturbed(tensors: Mapping[str, Tensor], names: Iterable[str], seed: int) -> dict[str, Tensor]:
    """Multiply vectors and constant tensors by U(.5, 1.5), or put that in the place of zeros."""
    generator = torch.Generator().manual_seed(seed)
    disturbed = dict(tensors)
    for name in names:
        value = tensors[name]
        if (
            value.numel()
            and value.is_floating_point()
            and (value.dim() == 1 or _is_constant(value))
        ):
            noise = torch.rand(value.shape, generator=generator).to(value) + 0.5
            disturbed[name] = value * noise if value.abs().max() > 1e-3 else noise
    return disturbed


def _with_noise(example_input: ExampleInput, seed: int) -> ExampleInput:
    """The input with other signs, and noise on it; the function must be the same there too."""
    generator = torch.Generator().manual_seed(seed)

    def disturb(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        factor, noise = torch.randn(2, *leaf.shape, generator=generator).to(leaf)
        return torch.where(leaf.isfinite(), leaf * factor + noise, leaf)

    return tree_map(disturb, example_input)


def _untested(trial: _Trial, names: Iterable[str], tolerance: float) -> dict[str, str]:
    """The groups of whose tensors not two (or the only one) move the output, and the fault."""
    if not all(bool(torch.isfinite(output).all()) for output in trial.outputs):
        fault = "could not be tested: the output of the model is not finite"
        return dict.fromkeys(names, fault)
    effects = _effects(trial)
    faults = {}
    for name in names:
        tensors = list(dict.fromkeys(b.tensor for b in trial.groups.blocks_of(name)))
        needed = min(2, len(tensors))
        alive = sum(effects.get(tensor, 0.0) > SENSITIVE * tolerance for tensor in tensors)
        if alive < needed and _moving_alone(trial, name, tensors, tolerance) < needed:
            faults[name] = "could not be tested: its weights hardly change the output"
    return faults


def _effects(trial: _Trial) -> dict[str, float]:
    """Per parameter, the root of the summed squares of weight times derivative of the output."""
    parameters = dict(trial.model.named_parameters())
    names = [n for n in dict.fromkeys(b.tensor for b in trial.groups.blocks) if n in parameters]
    own = {name: trial.tensors[name].detach().requires_grad_() for name in names}
    with torch.enable_grad():
        outputs = trial.evaluate(own)
        terms = [
            (output * torch.linspace(0.5, 1.5, output.numel()).view_as(output)).sum()
            / output.detach().abs().max().clamp_min(1e-300)
            for output in outputs
            if output.requires_grad
        ]
        if not terms:
            return {}
        total = torch.stack(terms).sum()
        try:
            derivatives = torch.autograd.grad(total, list(own.values()), allow_unused=True)
        except RuntimeError:  # the model overwrites what its derivative needs
            return {}
    return {
        name: 0.0 if derivative is None else derivative.mul_(own[name].detach()).norm().item()
        for name, derivative in zip(names, derivatives, strict=True)
    }


def _moving_alone(trial: _Trial, group: str, tensors: Sequence[str], tolerance: float) -> int:
    """How many tensors change the output when the group is permuted in them alone; stop at two."""
    permuted = trial.permuted([group], seed=0)
    count = 0
    for name in tensors:
        count += trial.change({name: permuted[name]}) > SENSITIVE * tolerance
        if count == 2:
            break
    return count


def _wrong_among(
    trial: _Trial, names: Sequence[str], tolerance: float, seed: int
) -> dict[str, str]:
    """The groups that change the output, with their faults, found by halving."""
    if not names:
        return {}
    change = trial.change(trial.permuted(names, seed))
    if change <= tolerance:
        return {}
    fault = f"a permutation moved the output by {change:.1e} of its size"
    if len(names) == 1:
        return {names[0]: fault}
    half = len(names) // 2
    parts = (_wrong_among(trial, part, tolerance, seed) for part in (names[:half], names[half:]))
    found = {name: reason for part in parts for name, reason in part.items()}
    return found or dict.fromkeys(names, f"together with others, {fault}")


def _check_shapes(model: nn.Module, groups: NeuronGroups) -> None:
    own = {name: tuple(value.shape) for name, value in weights_of(model).items()}
    for block in groups.blocks:
        shape = groups.shapes[block.tensor]
        if own.get(block.tensor) != shape:
            raise ValueError(
                f"The groups are of another model: they expect {block.tensor!r} of shape {shape}, "
                f"{type(model).__name__} has {own.get(block.tensor, 'no such tensor')}."
            )


def _relative(output: Tensor, reference: Tensor) -> float:
    if output.numel() == 0:
        return 0.0
    change = (output.double() - reference.double()).abs().max()
    return float(change / reference.double().abs().max().clamp_min(1e-300))


def _identity(order: Tensor) -> Tensor:
    return torch.arange(order.shape[-1]).expand(order.shape)


def _never_identity(order: Tensor) -> Tensor:
    """The order, but one place further where it would move nothing."""
    idle = (order == _identity(order)).all(-1, keepdim=True)
    return torch.where(idle, order.roll(1, -1), order)


def _both(signs: Tensor) -> Tensor:
    """The signs, the first one opposite to the last, so that not all are equal."""
    return torch.cat([-signs[..., -1:], signs[..., 1:]], -1)


def _to_double(value: Any, *, copy: bool = False) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(torch.float64 if value.is_floating_point() else value.dtype, copy=copy)


class _InDoublePrecision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets `x.float()` inside a model keep float64."""

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        wide = {
            key: torch.float64 if isinstance(v, torch.dtype) and v in LOW_PRECISION else v
            for key, v in (kwargs or {}).items()
        }
        return func(*args, **wide)


@contextmanager
def _double_precision() -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _InDoublePrecision():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)
