"""What is fitted at the other base: to labels, or to the outputs that the port should have."""

import copy
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, eval_mode
from slipstream.porting.last_layers import NoLastLayerError, fit_last_layers
from slipstream.porting.method_inputs import MethodInputs
from slipstream.porting.outputs import TargetFunction, last_parameters, outputs_of
from slipstream.porting.plan import PortStep
from slipstream.porting.problem import wide_copy
from slipstream.training import Lion, Loop, TrainingPlan
from slipstream.transfer.distance import divergence
from slipstream.transfer.transfer_state import BatchStream, complete_weights
from slipstream.weights import load_weights_, unwrapped, weights_of

_PASSES = 20  # over the data, at most, to fit the output biases
_EVERY = 5  # of so many unlabelled batches, one is kept to choose the rate of distillation by
CannotFit = NoLastLayerError  # what `auto` continues without


class NoOutputBiasError(CannotFit):
    """The model has no bias behind its last weights."""


def few_shot(inputs: MethodInputs, rate: float) -> dict[str, Tensor]:
    """Fine-tune the other base by sign descent, with as many gradients as `fgmt-signed` takes.

    Args:
        inputs: The problem and its task.
        rate: The learning rate, which falls to 0 along a cosine.

    Returns:
        How far each tensor of the model moves.

    Raises:
        FloatingPointError: If the loss diverges.
    """
    task = _at_base(inputs, inputs.with_data)
    _descend(inputs, task, lambda batch: task.loss(task.model, batch), task.data, rate)
    return _moved(inputs, task.model)


def distil(inputs: MethodInputs, step: PortStep) -> tuple[dict[str, Tensor], float]:
    """Train the other base on outputs of the fine-tune, by sign descent, without labels.

    Args:
        inputs: The problem and its task.
        step: Says on which: `B(x) + A*(x) - A(x)`, or `A*(x)`.

    Returns:
        How far each tensor of the model moves, and the learning rate: the one of the plan with the
        least error on inputs that were left out.

    Raises:
        FloatingPointError: If the loss diverges at every rate.
    """
    target = inputs.target(step)
    numbered = list(enumerate(target.batches))
    held = numbered[_EVERY - 1 :: _EVERY] or numbered[-1:]
    fitted = [pair for pair in numbered if pair[0] not in dict(held)] or held
    best: tuple[float, float, nn.Module] | None = None
    for rate in inputs.plan.rates:
        task = _at_base(inputs, inputs.with_inputs)
        numbers = replace(task, batch_size=lambda pair: inputs.with_model.batch_size(pair[1]))
        loss = _distance(task, target, logits=inputs.has_logits)
        try:
            _descend(inputs, numbers, loss, fitted, rate)
        except FloatingPointError as error:
            inputs.note(str(error))
            continue
        with eval_mode(task.model), torch.no_grad():
            left = math.fsum(float(loss(task.to(pair))) * numbers.batch_size(pair) for pair in held)
        if best is None or left < best[0]:
            best = left, rate, task.model
    if best is None:
        raise FloatingPointError(f"distillation diverges at all rates {inputs.plan.rates}.")
    return _moved(inputs, best[2]), best[1]


def fit_function(inputs: MethodInputs, step: PortStep) -> dict[str, Tensor]:
    """Fit the last layers to outputs of the fine-tune, in closed form, without labels.

    Args:
        inputs: The problem and its task.
        step: Says to which: `B(x) + A*(x) - A(x)`, or `A*(x)`.

    Returns:
        How far each tensor of the model moves.
    """
    task = _at_base(inputs, inputs.with_inputs)
    names = _trained(inputs, task.model)
    moved = fit_last_layers(task, inputs.target(step), names)
    return {name: wide_copy(value) for name, value in moved.items()}


def fit_output_biases(inputs: MethodInputs) -> dict[str, Tensor]:
    """Fit the biases behind the last weights, with L-BFGS on the batches that all stages take.

    Args:
        inputs: The problem and its task.

    Returns:
        How far each tensor of the model moves; nothing if it has no such biases.
    """
    task, plan = _at_base(inputs, inputs.with_data), inputs.plan
    count = plan.stages * plan.batches_per_gradient
    data = [task.to(batch) for batch in islice(task.data, count)]
    names = output_biases(task, data[0], _trained(inputs, task.model))
    if not names:
        return {}
    biases = [p for name, p in task.model.named_parameters() if name in names]
    sizes = [task.batch_size(batch) for batch in data]
    optimizer = torch.optim.LBFGS(
        biases, max_iter=_PASSES, max_eval=_PASSES, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        total = 0.0
        for batch, size in zip(data, sizes, strict=True):
            value = task.loss(task.model, batch) * (size / sum(sizes))
            torch.autograd.backward(value, inputs=biases)
            total += float(value.detach())
        return total

    with eval_mode(task.model), torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return _moved(inputs, task.model)


def output_biases(task: Task, batch: Batch, names: Collection[str]) -> list[str]:
    """Return the biases of layers that no other layer's input depends on, and the loss does.

    Args:
        task: The model with its loss.
        batch: One of its batches.
        names: Parameters among which they are.

    Returns:
        Their names.
    """
    parameters = dict(task.model.named_parameters())
    biases = [n for n in parameters if n in names and n.endswith("bias")]
    matrices = {n: parameters.get(n[: -len("bias")] + "weight") for n in biases}
    # A norm has gains beside its biases, and no matrix.
    behind = {n for n in biases if (m := matrices[n]) is not None and m.dim() > 1}
    return last_parameters(task.model, behind, lambda: task.loss(task.model, batch))


def _distance(
    task: Task, target: TargetFunction, *, logits: bool
) -> Callable[[tuple[int, Batch]], Tensor]:
    """How far outputs are from the target's: squared, or of logits the divergence."""
    # The scale of outputs decides nothing: neither how rates fit, nor which output counts.
    sizes = [float(change.square().mean()) or 1.0 for change in target.change(0)]

    def loss(numbered: tuple[int, Batch]) -> Tensor:
        number, batch = numbered
        found = outputs_of(task.forward(task.model, batch))
        if logits:
            pairs = zip(found, target.of(number), strict=True)
            return torch.stack([divergence(own, there) for own, there in pairs]).mean()
        apart = [
            (own - there.to(own)).square().mean() / size
            for own, there, size in zip(found, target.of(number), sizes, strict=True)
        ]
        return torch.stack(apart).mean()

    return loss


def _descend(
    inputs: MethodInputs,
    task: Task,
    loss: Callable[[Batch], Tensor],
    data: Iterable[Batch],
    rate: float,
) -> None:
    """Train the task's model in place."""
    steps = inputs.plan.descent

    def checked(batch: Batch) -> Tensor:
        value = loss(batch)
        if not value.isfinite().all():
            raise FloatingPointError(f"training diverges at rate {rate:g}.")
        return value

    inputs.spend(steps)
    names = _trained(inputs, task.model)
    trained = [p for name, p in task.model.named_parameters() if name in names]
    plan = TrainingPlan(epochs=1, lr=rate, schedule="cosine")
    signs = Lion(trained, rate, betas=(0.0, 0.0))
    loop = Loop(task.model, plan, trained=trained, batch_size=task.batch_size, optimizer=signs)
    loop.run(checked, data=BatchStream(data).take(steps))


def _at_base(inputs: MethodInputs, task: Task) -> Task:
    """The task with a copy of its model that has the other base's weights."""
    model = copy.deepcopy(unwrapped(task.model))
    load_weights_(model, complete_weights(model, inputs.problem.to_base, "to_base"))
    return replace(task, model=model)


def _trained(inputs: MethodInputs, model: nn.Module) -> frozenset[str]:
    """The parameters that may move; of an adapter only what it can hold."""
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    return frozenset(trained & set(inputs.problem.carried) & set(inputs.ranks or trained))


def _moved(inputs: MethodInputs, model: nn.Module) -> dict[str, Tensor]:
    problem, moved = inputs.problem, weights_of(model)
    return {
        name: wide_copy(moved[name]).to(problem.to_base[name].device).sub_(problem.to_base[name])
        for name in problem.carried
        if name in moved
    }
