"""Matching of what the neurons compute on data: their activations."""

import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slipstream.evaluation import Task, eval_mode, takes_task, weights_in
from slipstream.evaluation.batches import sized_batches
from slipstream.matching.gradients import parts, wide, without_autocast
from slipstream.matching.objective import Objective
from slipstream.matching.solve import Matching, solve
from slipstream.symmetry.neuron_groups import Block, NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import Weights, check_same_layout, is_continuous


@takes_task
def match_activations(
    source: Weights,
    target: Weights,
    task: Task,
    *,
    groups: NeuronGroups,
    start: Permutation | None = None,
    restarts: int = 0,
    seed: int = 0,
) -> Matching:
    """Find the permutation that aligns the source's activations to the target's.

    Both networks see the same batches. The objective is the sum of the correlations of the units
    that meet, over all inputs and outputs of linear and convolutional layers that list the neurons
    of a group, over examples and positions. A correlation does not see the scale of a unit, nor its
    mean, so the running statistics of BatchNorm and the units' sizes do not matter. The
    covariances are streamed: one matrix for each layer is kept, whatever the number of batches.

    Args:
        source: Weights whose activations are permuted.
        target: Weights whose activations stay; the same layout.
        task: The model and data; a few hundred examples are enough for most layers.
        groups: What may be permuted.
        start: Where the search starts; the identity by default. A group whose neurons no layer
            takes in or gives out keeps it, and is named in a warning.
        restarts: How many times to start again, with the groups in a random order.
        seed: Of those orders.

    Returns:
        The permutation with its objective, a sum of correlations, and its cost.

    Raises:
        ValueError: If the data is empty, the weights differ in a name or a shape, or an
            activation is not finite.

    Source: "Git Re-Basin" (Ainsworth, Hayase, Srinivasa, 2023), Section 3.1; correlation instead of
    the inner product as in "Convergent Learning" (Li, Yosinski, Clune, Lipson, Hopcroft, 2016).
    """
    pair = activation_pair(source, target, task, groups=groups)
    objective = Objective(pair.groups)
    objective.add(target=pair.target, source=pair.source)
    first = Permutation.identity(groups) if start is None else start
    found = solve(
        objective,
        start=Permutation(objective.groups, first.orders, first.signs),
        restarts=restarts,
        seed=seed,
    )
    chosen = found.source_to_target
    return replace(found, source_to_target=Permutation(groups, chosen.orders, chosen.signs))


@dataclass(frozen=True)
class ActivationPair:
    """Correlations as a pair of tensors of an objective: their product is the sum of those met."""

    groups: NeuronGroups  # whose tensors are the sites
    target: dict[str, Tensor]  # identities, (units, units) of each site
    source: dict[str, Tensor]  # correlations, (source units, target units)


def activation_pair(
    source: Weights, target: Weights, task: Task, *, groups: NeuronGroups
) -> ActivationPair:
    """Observe both networks on the same batches, as `match_activations` does.

    Args:
        source: Weights whose activations are permuted.
        target: Weights whose activations stay; the same layout.
        task: The model and data.
        groups: What may be permuted.

    Returns:
        What is added to an objective over its groups.

    Raises:
        ValueError: As of `match_activations`.
    """
    observed = covariances_of(source, target, task, groups=groups)
    _warn_of_unseen(groups, observed)
    met = {site.name: c for site, c in observed.items() if c.count > 1}
    # As precise as gradients of these weights, beside which an objective may hold them.
    precision = torch.float32
    for value in source.values():
        if is_continuous(value):
            precision = torch.promote_types(precision, value.dtype.to_real())
    return ActivationPair(
        _groups_of_activations(groups, [site for site in observed if site.name in met]),
        # The inner product of a permuted matrix with the identity is its trace.
        target={name: torch.eye(len(c.total), dtype=precision) for name, c in met.items()},
        source={name: c.correlation().T.to(precision).contiguous() for name, c in met.items()},
    )


def covariances_of(
    source: Weights,
    target: Weights,
    task: Task,
    *,
    groups: NeuronGroups,
    outputs: Literal["activations", "gradients"] = "activations",
) -> "dict[Site, Covariance]":
    """Show both networks the same batches, and add up how their units go together.

    Args:
        source: Weights of one network.
        target: Weights of the other; the same layout.
        task: The model and data.
        groups: Only axes that list them are observed.
        outputs: What is observed at the outputs of layers: they, or the loss's gradients there.

    Returns:
        The covariances of the target's with the source's units, by site.

    Raises:
        ValueError: If the data is empty, the weights differ in a name or a shape, or an
            activation is not finite.
    """
    check_same_layout(source, target, names=("source", "target"))
    model = task.model
    sites = _find_sites(model, groups)
    covariances = {site: Covariance() for site in sites}
    backward = outputs == "gradients"
    with eval_mode(model), torch.set_grad_enabled(backward):
        for number, (batch, _) in enumerate(sized_batches(model, task.data)):
            seen = []
            for weights in (target, source):
                with weights_in(model, weights), _observing(sites, backward=backward) as observed:
                    if backward:
                        _backward(model, task.loss(model, batch))
                    else:
                        task.forward(model, batch)
                seen.append(observed)
            for site, covariance in covariances.items():
                for stays, moves in zip(seen[0][site], seen[1][site], strict=True):
                    covariance.add(stays, moves)
            _check_finite(covariances, number)
    return covariances


@dataclass(frozen=True)
class Site:
    """Where neurons can be observed: one axis of the inputs or of the outputs of a layer."""

    name: str
    module: nn.Module
    weight: str  # the tensor of the layer that lists them
    weight_axis: int
    output: bool  # or input
    axis: int  # of the activations
    blocks: tuple[Block, ...]  # what their positions list
    size: int

    def rows(self, activations: Tensor) -> Tensor:
        """The activations as (neurons, examples and positions)."""
        return parts(activations.detach().movedim(self.axis, 0)).flatten(1)


class Covariance:
    """Sums of products of two sets of units, as their means on the first batch have them."""

    def __init__(self) -> None:
        self.count = 0
        self._centre: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []  # (units,) of each side
        self._squares: list[Tensor] = []
        self.total = torch.zeros(0, 0)  # (target units, source units)

    @without_autocast
    def add(self, target: Tensor, source: Tensor) -> None:
        """Add two (units, samples)."""
        sides = [wide(target), wide(source)]
        if self._centre is None:
            # Near the mean the squares of float32 do not cancel.
            self._centre = (sides[0].mean(1, keepdim=True), sides[1].mean(1, keepdim=True))
            self._sums = [torch.zeros(len(s), dtype=torch.float64) for s in sides]
            self._squares = [torch.zeros(len(s), dtype=torch.float64) for s in sides]
            self.total = torch.zeros(len(sides[0]), len(sides[1]), dtype=torch.float64)
        sides = [side - centre for side, centre in zip(sides, self._centre, strict=True)]
        for number, side in enumerate(sides):
            self._sums[number] += side.sum(1, dtype=torch.float64).cpu()
            self._squares[number] += side.square().sum(1, dtype=torch.float64).cpu()
        self.total += (sides[0] @ sides[1].T).cpu()
        self.count += sides[0].shape[1]

    def covariance(self) -> Tensor:
        """Return the covariances, (target units, source units)."""
        return self.total / self.count - torch.outer(*(sums / self.count for sums in self._sums))

    def correlation(self) -> Tensor:
        """Return the correlations, (target units, source units); 0 for a unit that is constant."""
        means = [sums / self.count for sums in self._sums]
        variances = [
            squares / self.count - mean.square()
            for squares, mean in zip(self._squares, means, strict=True)
        ]
        scale = [
            torch.where(v > 1e-12 * (s / self.count + 1e-300), v.clamp_min(0).rsqrt(), 0.0)
            for v, s in zip(variances, self._squares, strict=True)
        ]
        return self.covariance() * scale[0][:, None] * scale[1]


def _find_sites(model: nn.Module, groups: NeuronGroups) -> list[Site]:
    """All inputs and outputs of layers that list neurons of a group."""
    sites = []
    for path, module in model.named_modules():
        weight = f"{path}.weight".lstrip(".")
        for output, axis, place in _axes_of(module):
            blocks = groups.blocks_on(weight, axis)
            if blocks:
                name = f"{path} {'output' if output else 'input'}"
                size = groups.shapes[weight][axis]
                sites.append(Site(name, module, weight, axis, output, place, blocks, size))
    return sites


def _axes_of(module: nn.Module) -> list[tuple[bool, int, int]]:
    """For a layer: whether output or input, the axis of the weight, the axis of the activations."""
    if isinstance(module, nn.Linear):
        return [(True, 0, -1), (False, 1, -1)]
    if isinstance(module, nn.Embedding):
        return [(True, 1, -1)]
    if isinstance(module, _ConvNd):
        channels = -1 - len(module.kernel_size)  # also without a batch
        if isinstance(module, _ConvTransposeNd):
            return [(True, 1, channels), (False, 0, channels)] if module.groups == 1 else []
        outputs = [(True, 0, channels)]
        return [*outputs, (False, 1, channels)] if module.groups == 1 else outputs
    return []


def _backward(model: nn.Module, loss: Tensor) -> None:
    """Go backward through the model, and leave no gradient in it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(loss, trained, allow_unused=True)


@contextmanager
def _observing(sites: list[Site], *, backward: bool = False) -> Generator[dict[Site, list[Tensor]]]:
    """Collect the activations of every site, call by call; of outputs the gradients, if wanted."""
    observed: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def hook_of(site: Site) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if site.output and backward:
                output.register_hook(lambda gradient: observed[site].append(site.rows(gradient)))
            else:
                observed[site].append(site.rows(output if site.output else inputs[0]))

        return hook

    handles = [site.module.register_forward_hook(hook_of(site)) for site in sites]
    try:
        yield observed
    finally:
        for handle in handles:
            handle.remove()


def _groups_of_activations(groups: NeuronGroups, sites: list[Site]) -> NeuronGroups:
    """The same groups, listed by matrices of correlations."""
    blocks = [replace(b, tensor=site.name, axis=0) for site in sites for b in site.blocks]
    shapes = {site.name: (site.size, site.size) for site in sites}
    return NeuronGroups(groups.groups, tuple(blocks), shapes)


def _warn_of_unseen(groups: NeuronGroups, sites: Iterable[Site]) -> None:
    observed = {name for site in sites for block in site.blocks for name in block.groups}
    if unseen := [group.name for group in groups.groups if group.name not in observed]:
        warnings.warn(
            f"No linear or convolutional layer takes in or gives out the neurons of {unseen[0]!r}"
            + (f" and {len(unseen) - 1} other groups" if len(unseen) > 1 else "")
            + "; they keep the order of `start`. match_weights finds one for them.",
            stacklevel=3,
        )


def _check_finite(covariances: dict[Site, Covariance], batch: int) -> None:
    for site, covariance in covariances.items():
        if not torch.isfinite(covariance.total).all():
            raise ValueError(f"The {site.name} of the model is not finite on batch {batch}.")
