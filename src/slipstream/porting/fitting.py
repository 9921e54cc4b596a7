"""What labels alone give the other base: few-shot fine-tuning, and a fit of its output biases."""

import copy
from collections.abc import Collection
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, eval_mode
from slipstream.porting.method_inputs import MethodInputs
from slipstream.porting.problem import wide_copy
from slipstream.storage.fingerprints import tensors_in
from slipstream.training import Loop, TrainingPlan
from slipstream.transfer.transfer_state import BatchStream, complete_weights
from slipstream.weights import load_weights_, unwrapped, weights_of

_PASSES = 20  # over the data, at most, to fit the output biases


class NoOutputBiasError(ValueError):
    """The model has no bias behind its last weights."""


def few_shot(inputs: MethodInputs, rate: float) -> dict[str, Tensor]:
    """Fine-tune the other base with Adam, as many steps as `fgmt-signed` takes gradients.

    Args:
        inputs: The problem and its task.
        rate: The learning rate.

    Returns:
        How far each tensor of the model moves.

    Raises:
        FloatingPointError: If the loss diverges.
    """
    task = _at_base(inputs)
    names = _trained(inputs, task.model)
    data = BatchStream(task.data).take(3 * inputs.plan.stages)

    def loss(batch: Batch) -> Tensor:
        value = task.loss(task.model, batch)
        if not value.isfinite().all():
            raise FloatingPointError(f"few-shot fine-tuning diverges at rate {rate:g}.")
        return value

    plan = TrainingPlan(epochs=1, optimizer="adam", lr=rate)
    trained = [p for name, p in task.model.named_parameters() if name in names]
    Loop(task.model, plan, trained=trained, batch_size=task.batch_size).run(loss, data=data)
    return _moved(inputs, task.model)


def fit_output_biases(inputs: MethodInputs) -> dict[str, Tensor]:
    """Fit the biases behind the last weights, with L-BFGS on the batches that all stages take.

    Args:
        inputs: The problem and its task.

    Returns:
        How far each tensor of the model moves; nothing if it has no such biases.
    """
    task, plan = _at_base(inputs), inputs.plan
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
    layers = [
        m for m in task.model.modules() if next(m.parameters(recurse=False), None) is not None
    ]
    found = _biases(task.model, names)
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs = [t for t in tensors_in((args, kwargs)) if t.is_floating_point()]
        seen.extend(t.sum() for t in inputs if t.requires_grad)

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    try:
        with eval_mode(task.model), torch.enable_grad():
            loss = task.loss(task.model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not found or not loss.requires_grad:
        return []
    values = list(found.values())
    used = torch.autograd.grad(loss, values, allow_unused=True, retain_graph=True)
    inner: tuple[Tensor | None, ...] = (None,) * len(values)
    if seen:
        inner = torch.autograd.grad(seen, values, allow_unused=True)
    return [n for n, u, i in zip(found, used, inner, strict=True) if u is not None and i is None]


def _biases(model: nn.Module, names: Collection[str]) -> dict[str, nn.Parameter]:
    """The biases of layers with a matrix; a norm has gains beside its own."""
    parameters = dict(model.named_parameters())
    found = {n: p for n, p in parameters.items() if n in names and n.endswith("bias")}
    matrices = {n: parameters.get(n[: -len("bias")] + "weight") for n in found}
    return {n: p for n, p in found.items() if (m := matrices[n]) is not None and m.dim() > 1}


def _at_base(inputs: MethodInputs) -> Task:
    """The task with a copy of its model that has the other base's weights."""
    task = inputs.with_data
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
