"""Measuring how the first layer's bias moves: during training, or on a run kept at every step."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from slipstream.dynamics.complexity import TrainingComplexity
from slipstream.dynamics.first_layer import FirstLayer, broken_by_model, find_first_layer
from slipstream.evaluation import Task, takes_task, weights_in
from slipstream.evaluation.batches import sized_batches
from slipstream.evaluation.metrics import checked_loss
from slipstream.trajectory import Trajectory
from slipstream.trajectory.optimizer_steps import after_each_step

Progress = Callable[[int, int], object]  # steps done, and how many there are
_OFF = 1e-3  # how far a step may be from rate x gradient, relative


class ComplexityMeter:
    """Measures the complexity of what a network learns, while it learns it.

    One line before the loop, `meter = ComplexityMeter(model).attach(optimizer)`, and
    `meter.result()` after it. The loop is to take one example per step and plain SGD; what
    breaks the assumptions is named in the result. It costs a singular value decomposition of the
    first matrix per step, none if that is frozen, and the gradient by the input.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> _ = nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
        >>> optimizer = torch.optim.SGD([model.bias], lr=0.5)  # the slope stays 1
        >>> with ComplexityMeter(model).attach(optimizer) as meter:
        ...     for target in (4.0, 0.0):  # the bias goes from 0 to 1 and back
        ...         loss = (model(torch.zeros(1, 1)) - target).square().sum() / 4
        ...         optimizer.zero_grad()
        ...         loss.backward()  # type: ignore[no-untyped-call]
        ...         optimizer.step()
        >>> found = meter.result()
        >>> found.length, found.mean_lipschitz, found.outside
        (1.25, 1.0, 0)
    """

    def __init__(self, model: nn.Module, *, layer: str | None = None) -> None:
        """Watch the passes through `model`; no step is counted before `attach` or `update`.

        Args:
            model: The model that trains; its first argument is a floating tensor of examples.
            layer: Whose bias to watch, as in `named_modules`; by default the first linear layer,
                convolution or `InputBias`.

        Raises:
            ValueError: If there is no such layer, it has no bias, or its bias is frozen.
        """
        self._model = model
        self._layer = find_first_layer(model, layer)
        self._passes: list[_Pass] = []  # since the last step
        self._gradient: Tensor | None = None  # of the bias, summed over backward passes since then
        self._steps: list[_Step] = []
        self._broken: dict[str, int] = {}  # in words, with the number of steps; 0 is all
        self._examined = self._attached = False
        self._start()
        self._hooks: list[Callable[[], None]] = [
            model.register_forward_pre_hook(self._enter).remove,
            model.register_forward_hook(self._leave).remove,
            self._layer.bias.register_hook(self._add_gradient).remove,  # type: ignore[no-untyped-call]
        ]

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Measure every step of `optimizer` from now on.

        Args:
            optimizer: The one that moves the bias.

        Returns:
            The meter itself, for a `with` statement.

        Raises:
            ValueError: If the optimiser does not have the bias.
            RuntimeError: If the meter is attached already.
        """
        if self._attached:
            raise RuntimeError("This meter is attached to an optimizer already.")
        self._attached = True
        group = _group_of(optimizer, self._layer)
        self._broken |= dict.fromkeys(broken_by_optimizer(optimizer, group), 0)
        self._start()

        def after_step(*_: object) -> None:
            self.update(learning_rate=float(group["lr"]))

        self._hooks.append(after_each_step(optimizer, after_step))
        return self

    def update(self, *, learning_rate: float) -> None:
        """Measure a step that was just taken; `attach` does it for you.

        Args:
            learning_rate: What the gradient was multiplied with.
        """
        bias = self._layer.bias.detach()
        move = (bias - self._bias).double()
        rounding = float(bias.double().norm()) * torch.finfo(bias.dtype).eps
        seen = self._only_pass()
        self._check_step(move, learning_rate, rounding)
        self._steps.append(
            _Step(
                move=float(move.norm()),
                exposure=learning_rate * _number(seen.output_slope),
                slope=learning_rate * _number(seen.input_slope),
                largest=self._singular_values[0],
                smallest=self._singular_values[1],
                rounding=rounding,
            )
        )
        self._start()

    def result(self) -> TrainingComplexity:
        """Return what was measured by now.

        Returns:
            The length of the bias's path, the bounds, and the assumptions that did not hold.

        Raises:
            ValueError: If no step was taken.
        """
        if not self._steps:
            raise ValueError("No step was measured: attach the meter before the loop.")
        total = len(self._steps)
        columns = torch.tensor([astuple(step) for step in self._steps], dtype=torch.float64).T
        moves, exposures, slopes, largest, smallest, rounding = columns
        return TrainingComplexity(
            self._layer.name,
            moves,
            exposures,
            slopes,
            largest,
            smallest,
            rounding,
            precision=torch.finfo(self._layer.bias.dtype).eps,
            violations=tuple(
                f"{words} ({steps} of {total} steps)" if steps else words
                for words, steps in self._broken.items()
            ),
        )

    def close(self) -> None:
        """Stop watching; what was measured stays."""
        for remove in self._hooks:
            remove()
        self._hooks = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        """What a step starts from."""
        self._bias = self._layer.bias.detach().clone()
        weight = getattr(self._layer.module, "weight", None)
        if not self._steps or weight is None or weight.requires_grad:
            self._singular_values = self._layer.extreme_singular_values()
        self._passes = []
        self._gradient = None

    def _enter(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Let the gradient by the input be taken too."""
        if not torch.is_grad_enabled():
            return None
        inputs = given[0] if given else None
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise ValueError(
                "Complexity needs a model whose first argument is a floating-point tensor: "
                f"there is no gradient by {getattr(inputs, 'dtype', type(inputs).__name__)}."
            )
        if not self._examined:
            self._examined = True
            with torch.no_grad():
                broken = broken_by_model(self._model, self._layer, inputs)
            self._broken |= dict.fromkeys(broken, 0)
        if not inputs.requires_grad:
            inputs = inputs.detach().requires_grad_()
        seen = _Pass(len(inputs))
        self._passes.append(seen)
        inputs.register_hook(seen.set_input_slope)  # type: ignore[no-untyped-call]
        return inputs, *given[1:]

    def _leave(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if torch.is_grad_enabled() and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self._passes[-1].set_output_slope)  # type: ignore[no-untyped-call]

    def _add_gradient(self, gradient: Tensor) -> None:
        held = self._gradient
        self._gradient = gradient.detach().clone() if held is None else held + gradient.detach()

    def _only_pass(self) -> "_Pass":
        """The backward pass of this step, if there was one, of one example."""
        passes = [p for p in self._passes if p.input_slope is not None]
        examples = sum(p.examples for p in passes)
        if examples == 1:
            return passes[0]
        self._note(
            "a step took more than one example: use batches of one"
            if examples
            else "no backward pass was seen: watch the module that the loop calls"
        )
        return _Pass(examples)

    def _check_step(self, move: Tensor, learning_rate: float, rounding: float) -> None:
        if self._gradient is None:
            return
        expected = -learning_rate * self._gradient.double()
        off = float((move - expected).norm())
        if off > _OFF * max(float(move.norm()), float(expected.norm())) + 4 * rounding:
            self._note(
                "the bias did not move by the learning rate times its gradient: momentum, weight "
                "decay, clipping, another optimiser, another rate or other data"
            )

    def _note(self, words: str) -> None:
        self._broken[words] = self._broken.get(words, 0) + 1


@takes_task
def complexity_of_run(
    trajectory: Trajectory,
    task: Task,
    *,
    learning_rate: float | Sequence[float],
    layer: str | None = None,
    progress: Progress | None = None,
) -> TrainingComplexity:
    """Measure the complexity of what a recorded run learned; the run has a snapshot of every step.

    Each step's gradient is taken again at its snapshot. If the data are not those of the run, or
    the rate is another, the result names it: the recorded bias then moves otherwise.

    Args:
        trajectory: Snapshots of consecutive steps.
        task: The model of the run, left as it was, in the mode in which it was trained; its loss;
            and as data the batch of each step, in order: one example each.
        learning_rate: Of all steps, or one for each.
        layer: Whose bias to watch; by default the first linear layer, convolution or `InputBias`.
        progress: Called after each step.

    Returns:
        The length of the bias's path, the bounds, and the assumptions that did not hold.

    Raises:
        ValueError: If a step is missing from the run or a batch from the data.
    """
    steps = _consecutive(trajectory)
    rates = [learning_rate] * steps if isinstance(learning_rate, int | float) else learning_rate
    if len(rates) != steps:
        raise ValueError(f"learning_rate has {len(rates)} values, but the run has {steps} steps.")
    model = task.model
    batches = (batch for batch, _ in sized_batches(model, task.data, task.batch_size))
    with ComplexityMeter(model, layer=layer) as meter, _gradients_kept(model):
        with weights_in(model, trajectory[0].weights):
            meter._start()
        for number, (rate, (before, after)) in enumerate(
            zip(rates, pairwise(trajectory), strict=True), start=1
        ):
            batch = next(batches, None)
            if batch is None:
                raise ValueError(
                    f"data gave {number - 1} batches, but the run has {steps} steps: give the "
                    "batch of each step, in order."
                )
            with weights_in(model, before.weights), torch.enable_grad():
                checked_loss(task.loss(model, batch), number - 1).backward()  # type: ignore[no-untyped-call]
            with weights_in(model, after.weights):
                meter.update(learning_rate=rate)
            if progress is not None:
                progress(number, steps)
        return meter.result()


def broken_by_optimizer(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> list[str]:
    """Return in words how an optimiser differs from plain gradient descent.

    Args:
        optimizer: Any.
        group: Its settings for the bias.

    Returns:
        A sentence for each assumption that is broken; empty if all hold.
    """
    broken = []
    if type(optimizer) is not torch.optim.SGD:
        broken.append(f"the optimiser is {type(optimizer).__name__}, not plain SGD")
    for setting in ("momentum", "weight_decay", "nesterov"):
        if value := group.get(setting):
            broken.append(f"the optimiser has {setting} {value}, plain SGD has none")
    return broken


@dataclass
class _Pass:
    """A pass through the model, forward and backward."""

    examples: int
    input_slope: Tensor | None = None  # |d loss / d x|, 0-dim
    output_slope: Tensor | None = None  # |d loss / d f(x)|

    def set_input_slope(self, gradient: Tensor) -> None:
        self.input_slope = gradient.detach().double().norm()

    def set_output_slope(self, gradient: Tensor) -> None:
        self.output_slope = gradient.detach().double().norm()


@dataclass(frozen=True)
class _Step:
    """The values of a step, in the order of the result's fields."""

    move: float
    exposure: float
    slope: float
    largest: float
    smallest: float
    rounding: float


def _number(slope: Tensor | None) -> float:
    return math.nan if slope is None else float(slope)


def _group_of(optimizer: torch.optim.Optimizer, layer: FirstLayer) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(parameter is layer.bias for parameter in group["params"]):
            return group
    raise ValueError(f"The optimizer does not have the bias of {layer.name!r}: it moves nothing.")


def _consecutive(trajectory: Trajectory) -> int:
    """The number of steps of a run that has a snapshot of each, or raise."""
    for early, late in pairwise(trajectory.steps):
        if late != early + 1:
            raise ValueError(
                f"The run has no snapshot between the steps {early} and {late}, and complexity "
                "needs every step: record it with Schedule.every(1), or train --keep every:1."
            )
    if len(trajectory) < 2:
        raise ValueError(f"The run has {len(trajectory)} snapshots; complexity needs at least 2.")
    return len(trajectory) - 1


@contextmanager
def _gradients_kept(model: nn.Module) -> Generator[None]:
    """Give the parameters their `.grad` back in the end."""
    held = [(p, p.grad) for p in model.parameters()]
    try:
        for parameter, _ in held:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in held:
            parameter.grad = gradient
