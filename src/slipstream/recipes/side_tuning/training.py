"""Side-tuning: a network that is never touched, and a small one beside it for each task."""

import copy as copying
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, Metric, device_of, eval_mode, forward_inputs
from slipstream.training import Descent
from slipstream.training.loop import Descending, Progress
from slipstream.training.recorded_training import kept, validated
from slipstream.training.reinitialise import model_at
from slipstream.weights import Weights, copy, weights_of


@dataclass(frozen=True)
class SidePlan:
    """How a side network, its blend and its head are trained, as plain data."""

    descent: Descent = field(default_factory=lambda: Descent(epochs=100, lr=0.02))


class Frozen(nn.Module):
    """A module that is called in eval mode and without gradients, whatever its own mode."""

    def __init__(self, module: nn.Module) -> None:
        """Wrap a module; it is not copied."""
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Call the module."""
        with torch.no_grad(), eval_mode(self.module):
            return self.module(*inputs, **named)


class SideTask(nn.Module):
    """What side-tuning trains for one task: the side network S, the blend alpha, the head."""

    def __init__(self, side: nn.Module, head: nn.Module) -> None:
        """Begin with as much of the base as of the side: alpha = 0.

        Args:
            side: Maps inputs to features of the base's shape.
            head: Maps features to outputs.
        """
        super().__init__()
        self.side, self.head = side, head
        like = next(iter([*side.parameters(), *head.parameters()]), torch.zeros(()))
        self.alpha = nn.Parameter(torch.zeros((), dtype=like.dtype, device=like.device))

    def forward(self, features: Tensor, *inputs: Any, **named: Any) -> Any:
        """Map features of the base, and its inputs, to outputs."""
        beside = self.side(*inputs, **named)
        if beside.shape != features.shape:
            raise ValueError(
                f"side must give features of the base's shape, {tuple(features.shape)}; its own "
                f"have shape {tuple(beside.shape)}."
            )
        blend = torch.sigmoid(self.alpha)
        return self.head(blend * features + (1 - blend) * beside)

    @property
    def blend(self) -> float:
        """How much the base counts: a = sigmoid(alpha)."""
        return float(torch.sigmoid(self.alpha.detach()))


class SideNetwork(nn.Module):
    """A frozen base B with the parts of one task: head(a B(x) + (1 - a) S(x)).

    The base runs in eval mode and without gradients, whatever the mode of this module: neither
    its weights nor its buffers ever change, and several tasks can share it.

    Example:
        >>> network = SideNetwork(nn.Identity(), SideTask(nn.Flatten(), nn.Identity()))
        >>> network(torch.ones(1, 2))
        tensor([[1., 1.]], grad_fn=<AddBackward0>)
    """

    def __init__(self, base: nn.Module, task: SideTask) -> None:
        """Put the two together; neither is copied.

        Args:
            base: Maps inputs to features.
            task: What is trained.
        """
        super().__init__()
        self.base, self.task = base, task

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Map inputs to outputs of the task."""
        return self.task(Frozen(self.base)(*inputs, **named), *inputs, **named)


@dataclass(frozen=True)
class DistilledSide:
    """Result of `distil_side`."""

    side: nn.Module  # its weights are the distilled ones
    losses: tuple[float, ...]  # mean squared distance of the features, of each epoch
    steps: int
    seconds: float


@dataclass(frozen=True)
class SideTuned:
    """Result of `side_tune`."""

    plan: SidePlan
    network: SideNetwork  # shares the base
    blend: float  # a: how much the base counts in the end
    losses: tuple[float, ...]  # mean training loss of each epoch
    steps: int
    seconds: float  # of the training

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights of the task: `side.`, `head.` and `alpha`, without the base."""
        return copy(weights_of(self.network.task))


def features_of(model: nn.Module, *, weights: Weights | None = None, head: str) -> nn.Module:
    """Return a frozen copy of a model without its head: what side-tuning calls the base.

    Args:
        model: Any module; left as it was.
        weights: Of the model, such as a transferred run's last snapshot, instead of its own.
        head: Name of the layer that is passed over, such as `head`: its inputs go on as they are.

    Returns:
        A module that maps inputs to features, in eval mode; nothing in it requires a gradient.

    Raises:
        ValueError: If there is no such layer, or the weights have another layout.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 5))
        >>> features_of(model, head="2")(torch.ones(1, 2)).shape
        torch.Size([1, 3])
    """
    base = model_at(model, weights, name="weights")
    layers = dict(base.named_modules())
    if not head or head not in layers:
        named = ", ".join([name for name in layers if name][-6:])
        raise ValueError(f"The model has no layer {head!r}; its last ones are {named}.")
    base.set_submodule(head, nn.Identity())
    return base.eval().requires_grad_(False)


def small_side(base: nn.Module, inputs: Tensor, *, width: int = 32, seed: int = 0) -> nn.Module:
    """Return a small network with features of the base's shape: one hidden layer, dense.

    Args:
        base: Maps inputs to features.
        inputs: Of a batch: (examples, ...).
        width: Units of the hidden layer.
        seed: Of its weights.

    Returns:
        The network, on the device of the base.

    Raises:
        ValueError: If `width` is below 1.

    Example:
        >>> small_side(nn.Linear(4, 6), torch.zeros(2, 4), width=3)(torch.zeros(2, 4)).shape
        torch.Size([2, 6])
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}.")
    inputs = inputs.to(device_of(base))
    features = Frozen(base)(inputs).shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Linear(inputs[0].numel(), width), nn.Linear(width, features.numel())
    side = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.Unflatten(1, features))
    return side.to(inputs)


def distil_side(
    base: nn.Module,
    side: nn.Module,
    *,
    data: Iterable[Batch],
    descent: Descent | None = None,
    run_folder: str | Path | None = None,
    configuration: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> DistilledSide:
    """Train a small network to give the features of a base: the mean of (S(x) - B(x))^2.

    It is done once, on any inputs; every task then starts from the same side network.

    Source: "Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks" (Zhang et
    al., 2020), section 3.1: the side network is initialised by distilling the base.

    Args:
        base: Maps inputs to features, such as `features_of` a model; left as it was.
        side: Maps inputs to features of the same shape; a copy of it is trained.
        data: Batches; the first item of a tuple is the inputs, labels are not looked at.
        descent: How.
        run_folder: Records the side network after every epoch as a run.
        configuration: What makes the run, as plain data; kept in it.
        overwrite: Whether to delete the snapshots of a run that is already there.
        resume: Whether to go on with a training that was interrupted; begins if there is none.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The distilled network.

    Raises:
        ValueError: If the features differ in shape, `data` is empty, or the loss is not finite.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> base, side = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> descent = Descent(epochs=200, weight_decay=0.0)
        >>> found = distil_side(base, side, data=[torch.eye(2)], descent=descent)
        >>> found.losses[-1] < 1e-6
        True
    """
    descent = descent or Descent(epochs=100, lr=0.02)
    student = copying.deepcopy(side).to(device_of(base))
    training = Descending(student, descent)

    def distance(batch: Batch) -> Tensor:
        aim, found = forward_inputs(Frozen(base), batch), forward_inputs(student, batch)
        if not isinstance(aim, Tensor) or not isinstance(found, Tensor) or aim.shape != found.shape:
            raise ValueError(
                f"side must give features of the base's shape, {_shape(aim)}; its own have shape "
                f"{_shape(found)}."
            )
        return nn.functional.mse_loss(found, aim)

    with kept(
        training,
        recorded=student,
        run_folder=run_folder,
        recipe={"distillation": asdict(descent)},
        start=[weights_of(student), weights_of(base)],
        configuration=configuration,
        measure=dict,
        overwrite=overwrite,
        resume=resume,
    ) as keep:
        if not training.finished:
            training.run(distance, data=data, on_epoch=keep, progress=progress)
    return DistilledSide(student, tuple(training.losses), training.step, training.seconds)


def side_tune(
    base: nn.Module,
    loss: Loss,
    *,
    side: nn.Module,
    head: nn.Module,
    data: Iterable[Batch],
    plan: SidePlan | None = None,
    validation: Iterable[Batch] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    run_folder: str | Path | None = None,
    configuration: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> SideTuned:
    """Learn a task beside a frozen network: head(a B(x) + (1 - a) S(x)), a = sigmoid(alpha).

    Alpha starts at 0 and has no weight decay. Each task has a side network, an alpha and a head of
    its own; the base stays as it is to the bit, so what was learned before is not forgotten.

    Source: "Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks" (Zhang et
    al., 2020), section 3.

    Args:
        base: Maps inputs to features, such as `features_of` a model; shared, never changed.
        loss: Maps the network and a batch to the batch's mean loss, a 0-dim tensor.
        side: The side network at its start: `distil_side(...).side`; copied.
        head: Maps features to outputs of the task; copied.
        data: Batches; if it has a method `epoch(number)`, that gives those of an epoch.
        plan: How side, alpha and head are trained.
        validation: Batches on which `metrics` are taken after every epoch.
        metrics: Name to a function of the network and a batch.
        run_folder: Records side, alpha and head after every epoch as a run, without the base.
        configuration: What makes the run, as plain data; kept in it.
        overwrite: Whether to delete the snapshots of a run that is already there.
        resume: Whether to go on with a training that was interrupted; begins if there is none.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The network of the task.

    Raises:
        ValueError: If the features differ in shape, `data` is empty, the loss is not finite, or
            what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> base, side = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> from slipstream import classification_loss
        >>> plan = SidePlan(Descent(epochs=1))
        >>> head = nn.Linear(3, 2)
        >>> found = side_tune(base, classification_loss, side=side, head=head, data=data, plan=plan)
        >>> list(found.weights)
        ['alpha', 'side.weight', 'side.bias', 'head.weight', 'head.bias']
    """
    plan = plan or SidePlan()
    task = SideTask(copying.deepcopy(side), copying.deepcopy(head)).to(device_of(base))
    network = SideNetwork(base, task)
    training = Descending(task, plan.descent, undecayed=[task.alpha])

    def measure() -> dict[str, float]:
        return {"blend": task.blend} | validated(network, metrics, validation)

    with kept(
        training,
        recorded=task,
        run_folder=run_folder,
        recipe={"side_tuning": asdict(plan)},
        start=[weights_of(task), weights_of(base)],
        configuration=configuration,
        measure=measure,
        overwrite=overwrite,
        resume=resume,
    ) as keep:
        if not training.finished:
            training.run(
                lambda batch: loss(network, batch), data=data, on_epoch=keep, progress=progress
            )
    losses = tuple(training.losses)
    return SideTuned(plan, network, task.blend, losses, training.step, training.seconds)


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
