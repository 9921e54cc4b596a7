"""What networks have in common on data: their predictions, and what their layers compute."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, eval_mode, forward_inputs, takes_task, weights_in
from slipstream.evaluation.batches import sized_batches
from slipstream.landscape.points import check_corners
from slipstream.weights import Weights

Predict = Callable[[nn.Module, Batch], Tensor]
_FEWEST = 4  # examples of a batch: below, the unbiased estimate does not exist


def predicted_classes(
    model: nn.Module, batch: Batch, forward: Callable[[nn.Module, Batch], object] = forward_inputs
) -> Tensor:
    """Return the class with the largest output for each example, (examples,)."""
    output = forward(model, batch)
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise ValueError(
            "The model does not return a tensor of (examples, classes): give as predict a function "
            "of a model and a batch that returns its predictions, or predict=None for none."
        )
    return output.argmax(1)


@takes_task
def prediction_agreement(
    weights: Mapping[str, Weights], task: Task, *, predict: Predict = predicted_classes
) -> Tensor:
    """Return for each two networks the share of examples on which they predict the same.

    Args:
        weights: Two or more, by name. BatchNorm uses the running statistics that they hold.
        task: The architecture of all, left as it was, and the data.
        predict: Maps the model and a batch to predictions, one row for each example.

    Returns:
        (networks, networks), float64.

    Raises:
        ValueError: If layouts differ, weights hold a NaN, there is no data, or the model does not
            return classes.

    Example:
        >>> weights = {"a": {"weight": torch.eye(2)}, "b": {"weight": torch.eye(2).flip(0)}}
        >>> data = [torch.tensor([[1.0, 0.0], [1.0, 1.0]])]
        >>> prediction_agreement(weights, Task(nn.Linear(2, 2, bias=False), data))
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]], dtype=torch.float64)
    """
    check_corners(weights)
    model = task.model
    if predict is predicted_classes:
        predict = partial(predicted_classes, forward=task.forward)
    same = torch.zeros(len(weights), len(weights), dtype=torch.float64)
    count = 0
    with eval_mode(model), torch.no_grad():
        for batch, size in sized_batches(model, task.data, task.batch_size):
            rows = []
            for value in weights.values():
                with weights_in(model, value):
                    rows.append(predict(model, batch))
            each = torch.stack(rows).flatten(1)  # (networks, predictions)
            same += size * (each[:, None] == each).double().mean(2).cpu()
            count += size
    return same / count


@takes_task
def representation_similarity(
    weights: Mapping[str, Weights], task: Task, *, layers: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Return for each layer and each two networks how similar the layer's outputs are: linear CKA.

    `CKA = HSIC(X X', Y Y') / sqrt(HSIC(X X', X X') HSIC(Y Y', Y Y'))`, where X and Y are what the
    layer returns for a batch in two networks, a row for each example. Each HSIC is the unbiased
    estimate, averaged over batches; so the result does not depend on the batch size, and may leave
    [0, 1] by the noise of few examples. No rotation of the features, no permutation of neurons and
    no scale changes it.

    Args:
        weights: Two or more, by name. BatchNorm uses the running statistics that they hold.
        task: The architecture of all, left as it was, and the data, whose batches of fewer than 4
            examples are left out.
        layers: Names of modules; by default all that hold a weight with several axes.

    Returns:
        Name of the layer to (networks, networks), float64; NaN where a layer's outputs are the same
        for all examples.

    Raises:
        ValueError: If layouts differ, weights hold a NaN, there is no such layer, or no batch has 4
            examples.

    Source: "Similarity of Neural Network Representations Revisited" (Kornblith, Norouzi, Lee,
    Hinton, 2019), Section 3; the estimate over batches is that of "Do Wide and Deep Networks Learn
    the Same Things?" (Nguyen, Raghu, Kornblith, 2021), Equations 2 and 3.
    """
    check_corners(weights)
    modules = _modules(task.model, layers)
    count = len(weights)
    sums = {name: torch.zeros(count, count, dtype=torch.float64) for name in modules}
    used = 0
    with eval_mode(task.model), torch.no_grad():
        for batch, size in sized_batches(task.model, task.data, task.batch_size):
            if size < _FEWEST:
                continue
            used += size
            outputs = [_outputs(task, value, modules, batch) for value in weights.values()]
            for name in modules:
                grams = torch.stack([_centred_gram(one[name]).flatten() for one in outputs])
                sums[name] += (grams @ grams.T).cpu() / (size - 3)  # HSIC times the size
    if not used:
        raise ValueError(f"data must hold a batch of {_FEWEST} examples or more, for CKA.")
    return {name: _normalised(total) for name, total in sums.items()}


def _modules(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    known = dict(model.named_modules())
    if layers is None:
        return {
            name: module
            for name, module in known.items()
            if any(p.dim() > 1 for p in module.parameters(recurse=False))
        }
    for name in layers:
        if name not in known:
            raise ValueError(f"The model has no layer {name!r}; it has {', '.join(known)}.")
    return {name: known[name] for name in layers}


def _outputs(
    task: Task, weights: Weights, modules: Mapping[str, nn.Module], batch: Batch
) -> dict[str, Tensor]:
    """The outputs of layers, (examples, features); those of several calls beside each other."""
    with weights_in(task.model, weights), _recorded_outputs(modules) as recorded:
        task.forward(task.model, batch)
    for name, outputs in recorded.items():
        if not outputs:
            raise ValueError(f"The layer {name!r} does not run, or does not return a tensor.")
    return {name: torch.cat(outputs, 1) for name, outputs in recorded.items()}


@contextmanager
def _recorded_outputs(modules: Mapping[str, nn.Module]) -> Generator[dict[str, list[Tensor]]]:
    recorded: dict[str, list[Tensor]] = {name: [] for name in modules}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                recorded[name].append(output.flatten(1).clone())  # what follows may work in place

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _centred_gram(rows: Tensor) -> Tensor:
    """The inner products of examples, centred so that products of two are unbiased: (n, n)."""
    rows = rows.double()
    rows = rows - rows.mean(0)  # changes nothing but rounding
    gram = (rows @ rows.T).fill_diagonal_(0)
    size = len(gram)
    means = gram.sum(1) / (size - 2)
    gram = gram - means[:, None] - means + gram.sum() / ((size - 1) * (size - 2))
    return gram.fill_diagonal_(0)


def _normalised(products: Tensor) -> Tensor:
    """Products of networks, divided by the root of what each has with itself."""
    own = products.diag()
    scale = torch.where(own > 0, own.clamp(min=0).rsqrt(), torch.nan)
    return products * scale[:, None] * scale
