"""The change of the outputs that the last layers can follow: a ridge regression, in closed form."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slipstream.evaluation import Batch, Task, eval_mode, weights_in
from slipstream.porting.outputs import TargetFunction, last_parameters, outputs_of

_FOLDS = 4  # of the examples, to choose how strong the ridge is
_RIDGES = tuple(10.0**power for power in range(-7, 4))  # over the mean square of the features
_BIASES = 1e-9  # the same, of biases: enough to solve where none has an effect
_TOLERANCE = 1e-2  # of what a change of the last layers predicts, that the outputs may be off


class NoLastLayerError(ValueError):
    """The outputs are not linear in weights that may change."""


@dataclass(frozen=True)
class Head:
    """A last layer: linear, or a convolution of 1 x 1."""

    module: nn.Linear | _ConvNd
    weight: str
    bias: str | None  # None if there is none, or it stays

    @property
    def outputs(self) -> int:
        """How many outputs it has."""
        return len(self.module.weight)

    @property
    def axis(self) -> int:
        """The axis of its outputs."""
        return -1 if isinstance(self.module, nn.Linear) else 1


@dataclass(frozen=True)
class _Fitted:
    """A regression for one of the outputs of the model."""

    heads: list[Head]
    features: Tensor  # of the first batch, (examples, positions, columns)
    change: Tensor  # (columns, outputs)

    def moved(self) -> dict[str, Tensor]:
        """The change as tensors of the layers: first all weights, then all biases."""
        parameters = _parameters(self.heads)
        parts = torch.split(self.change, [value[0].numel() for value in parameters.values()])
        return {
            name: part.T.reshape(value.shape).to(value)
            for (name, value), part in zip(parameters.items(), parts, strict=True)
        }


def _parameters(heads: list[Head]) -> dict[str, Tensor]:
    """First all weights, then all biases."""
    weights: dict[str, Tensor] = {head.weight: head.module.weight for head in heads}
    biases = {h.bias: b for h in heads if h.bias and (b := h.module.bias) is not None}
    return weights | biases


def fit_last_layers(task: Task, target: TargetFunction, names: frozenset[str]) -> dict[str, Tensor]:
    """Fit the last layers to the target's outputs, with ridge regression.

    The outputs are linear in the last weights and biases. The change of these that brings the
    outputs nearest to the target has a closed form; the penalty on the weights is chosen by the
    squared error on examples that were left out. Biases are not penalised.

    Args:
        task: Its model has the weights to begin with.
        target: What the outputs should be, on batches of which nobody looks at the labels.
        names: Parameters that may change.

    Returns:
        How far each parameter of the last layers moves.

    Raises:
        NoLastLayerError: If the outputs are not linear in weights of linear or 1 x 1 convolutional
            layers that may change.

    Source: "Ridge Regression: Biased Estimation for Nonorthogonal Problems" (Hoerl, Kennard, 1970).
    """
    first = task.to(target.batches[0])
    fitted = []
    for place, heads in enumerate(_heads(task, first, names)):
        shown = None
        products = [torch.zeros(0)] * _FOLDS  # of features and what is missing, with themselves
        for number, batch in enumerate(target.batches):
            features, output, axis = _observed(task, task.to(batch), heads, place)
            shown = features if shown is None else shown
            missing = target.of(number)[place].to(output) - output
            rows = torch.cat([features, _by_example(missing, axis)], -1).double()
            for fold in range(_FOLDS):
                part = rows[fold::_FOLDS].flatten(0, 1)
                known = products[fold]
                products[fold] = part.T @ part + (known if len(known) else 0)
        assert shown is not None  # there is a batch
        biases = sum(head.bias is not None for head in heads)
        change = _solved(torch.stack(products), outputs=heads[0].outputs, biases=biases)
        fitted.append(_Fitted(heads, shown, change))
    _check_linear(task, first, fitted)
    return {name: value for one in fitted for name, value in one.moved().items()}


def _heads(task: Task, batch: Batch, names: frozenset[str]) -> list[list[Head]]:
    """The last layers, by the output that they make."""

    def last(choose: Callable[[tuple[Tensor, ...]], Tensor]) -> set[str]:
        run = lambda: choose(outputs_of(task.forward(task.model, batch)))  # ruff: ignore[lambda-assignment]
        return set(last_parameters(task.model, names, run))

    counts: list[int] = []

    def everything(found: tuple[Tensor, ...]) -> Tensor:
        counts.append(len(found))
        return torch.stack([t.float().sum() for t in found]).sum()

    free = last(everything)
    made = []
    for place in range(counts[0]):
        names_here = last(lambda found, place=place: found[place].sum())  # type: ignore[misc]
        made.append(_layers(task.model, names_here & free))
    used = [head.weight for heads in made for head in heads]
    if not all(made) or len(used) > len(set(used)):
        raise NoLastLayerError(
            "The method 'function' needs last weights for each output, of a linear layer or a "
            "1 x 1 convolution, which require a gradient, are not tied to others or excluded by "
            "the plan, and which an adapter can hold: there are none."
        )
    return made


def _layers(model: nn.Module, names: set[str]) -> list[Head]:
    found = []
    for path, module in model.named_modules():
        weight, bias = (f"{path}.{own}".lstrip(".") for own in ("weight", "bias"))
        if weight not in names:
            continue
        pointwise = isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)
        if isinstance(module, _ConvNd) and pointwise:
            pointwise = module.groups == 1 and math.prod(module.kernel_size) == 1
        if isinstance(module, nn.Linear | _ConvNd) and (pointwise or isinstance(module, nn.Linear)):
            found.append(Head(module, weight, bias if bias in names else None))
    return found


def _observed(
    task: Task, batch: Batch, heads: list[Head], place: int
) -> tuple[Tensor, Tensor, int | None]:
    """Features (examples, positions, columns), an output, and the axis of it that heads make."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = heads[0].module.register_forward_hook(
        lambda _, inputs, output: seen.append((inputs[0], output))
    )
    try:
        with eval_mode(task.model), torch.enable_grad():
            output = outputs_of(task.forward(task.model, batch))[place]
    finally:
        hook.remove()
    (inputs, made), head = seen[0], heads[0]
    plain = len(heads) == len(seen) == 1 and isinstance(inputs, Tensor)
    axis = _axis(output, head)
    if plain and made.shape == output.shape and torch.equal(made, output):
        features = _by_example(inputs.detach(), head.axis)
        if head.bias:
            features = torch.cat([features, features.new_ones(*features.shape[:2], 1)], -1)
    else:
        features = _sensitivities(_by_example(output, axis)[..., 0], heads)
    return features, output.detach(), axis


def _axis(output: Tensor, head: Head) -> int | None:
    """The axis of the model's output along which the layer's outputs are; None if it has one."""
    for axis in (head.axis, -1, 1):
        if output.dim() > 1 and output.shape[axis] == head.outputs:
            return axis
    if head.outputs == 1:
        return None
    raise NoLastLayerError(
        f"The method 'function' cannot find the {head.outputs} outputs of {head.weight} in what "
        f"the model returns, of shape {tuple(output.shape)}."
    )


def _by_example(value: Tensor, axis: int | None) -> Tensor:
    """(examples, positions, columns), the columns along an axis of `value`."""
    value = value.unsqueeze(-1) if axis is None else value.movedim(axis, -1)
    return value.reshape(len(value) if value.dim() > 1 else 1, -1, value.shape[-1])


def _sensitivities(scores: Tensor, heads: list[Head]) -> Tensor:
    """The derivatives of (examples, positions), the first output, by the parameters of it."""
    parameters = list(_parameters(heads).values())
    rows = []
    for score in scores.flatten():
        found = torch.autograd.grad(score, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([gradient[0].flatten() for gradient in found]))
    return torch.stack(rows).view(*scores.shape, -1)


def _solved(products: Tensor, *, outputs: int, biases: int) -> Tensor:
    """The change, (columns, outputs), with the ridge that predicts best what was left out."""
    # (parts of the examples, columns + outputs, columns + outputs)
    total = products.sum(0)
    errors = torch.zeros(len(_RIDGES), dtype=torch.float64)
    for part in products:
        changes = [_solution(total - part, ridge, outputs, biases) for ridge in _RIDGES]
        for number, change in enumerate(changes):
            left = torch.cat([change, -torch.eye(outputs, dtype=change.dtype).to(change)])
            errors[number] += float((part @ left).mul_(left).sum())
    before = float(total.diagonal()[-outputs:].sum())
    if not float(errors.min()) < before:  # to change nothing predicts as well
        return torch.zeros_like(total[:-outputs, -outputs:])
    return _solution(total, _RIDGES[int(errors.argmin())], outputs, biases)


def _solution(products: Tensor, ridge: float, outputs: int, biases: int) -> Tensor:
    square, cross = products[:-outputs, :-outputs], products[:-outputs, -outputs:]
    sizes = square.diagonal()
    scale = float(sizes[: len(sizes) - biases].mean()) or 1.0
    penalty = torch.full_like(sizes, ridge * scale)
    if biases:
        penalty[-biases:] = _BIASES * (float(sizes[-biases:].max()) or 1.0)
    change: Tensor = torch.linalg.solve(square + penalty.diag(), cross)
    return change


def _check_linear(task: Task, batch: Batch, fitted: list[_Fitted]) -> None:
    """Raise unless the outputs change as the regressions predict."""
    parameters = {name: p.detach() for name, p in task.model.named_parameters()}
    moved = {name: value for one in fitted for name, value in one.moved().items()}
    changed = {name: parameters[name] + value for name, value in moved.items()}
    with eval_mode(task.model), torch.no_grad():
        before = outputs_of(task.forward(task.model, batch))
        with weights_in(task.model, changed):
            after = outputs_of(task.forward(task.model, batch))
    for one, first, last in zip(fitted, before, after, strict=True):
        actual = _by_example(last - first, _axis(first, one.heads[0])).double()
        predicted = one.features.double() @ one.change
        if float((actual - predicted).norm()) > _TOLERANCE * float(predicted.norm()) + 1e-6:
            raise NoLastLayerError(
                f"The method 'function' changes {one.heads[0].weight} in closed form, but the "
                "model's outputs are not linear in it: let the task's forward return what that "
                "layer makes, such as logits instead of probabilities."
            )
