"""Which weights matter least, and resetting them: the pieces of LURE."""

import math
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from slipstream.evaluation import Task, takes_task
from slipstream.recipes.lure.plan import check_share
from slipstream.weights import Weights, check_same_layout, first_nonfinite, weights_of

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@takes_task
def weight_saliency(task: Task, *, weights: Weights | None = None) -> dict[str, Tensor]:
    """Return how much the loss would change without a weight, to first order: |g w|.

    Source: "Learn, Unlearn and Relearn: An Online Learning Paradigm for Deep Neural Networks"
    (Ramkumar, Arani, Zonooz, 2023), section 3; the measure is that of SNIP.

    Args:
        task: Model, loss and data; g is the gradient of the mean over all examples, in eval mode.
        weights: Where, instead of at the model's own weights.

    Returns:
        Every parameter that requires a gradient, by name, in float32 or better.

    Raises:
        ValueError: If `data` is empty or a loss is not finite.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> weights = {"weight": Tensor([[3.0, -0.5]])}
        >>> loss = lambda model, batch: model(batch).mean()
        >>> weight_saliency(Task(model, [Tensor([[1.0, 4.0]])], loss), weights=weights)
        {'weight': tensor([[3., 2.]])}
    """
    at = {**weights_of(task.model), **(weights or {})}
    slopes = task.gradient(weights=weights)
    return {name: _wide(slope).mul(_wide(at[name])).abs_() for name, slope in slopes.items()}


def least_salient(saliency: Weights, *, share: float) -> dict[str, Tensor]:
    """Choose the weights of least saliency, over all tensors together.

    Args:
        saliency: Of every weight that may be chosen.
        share: rho, in [0, 1): floor(rho n) of the n weights are chosen, exactly. Of equal
            saliencies the first is chosen, in the order of the tensors and of their entries.

    Returns:
        A mask for each tensor, true where a weight is chosen.

    Raises:
        ValueError: If the share is outside [0, 1), there is no weight, or a saliency is not finite.

    Example:
        >>> least_salient({"a": Tensor([2.0, 0.0]), "b": Tensor([0.0, 1.0])}, share=0.5)
        {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    check_share(share)
    if not saliency:
        raise ValueError("There is no weight to choose from: saliency is empty.")
    if bad := first_nonfinite(saliency):
        raise ValueError(f"The saliency of {bad!r} holds a NaN or an infinity.")
    flat = torch.cat([_wide(value).flatten() for value in saliency.values()])
    # The share as it is written: 0.29 of 100 are 29, though the nearest float is below.
    count = math.floor(Fraction(repr(float(share))) * len(flat))
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    chosen[torch.sort(flat, stable=True).indices[:count]] = True
    pieces = torch.split(chosen, [value.numel() for value in saliency.values()])
    return {
        name: piece.view(value.shape)
        for (name, value), piece in zip(saliency.items(), pieces, strict=True)
    }


def reset_weights_(
    model: nn.Module, masks: Weights, *, fresh: Weights, optimizer: Optimizer | None = None
) -> None:
    """Put new values where a mask is true, in place; all other weights keep every bit.

    Args:
        model: Receives the values.
        masks: True where a weight is to be reset, for some of the model's parameters.
        fresh: New initial values of these parameters, such as those of `fresh_weights`.
        optimizer: If given, what it remembers of these weights, such as momentum, becomes 0.

    Raises:
        ValueError: If a name is unknown, or a shape differs.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> _ = model.load_state_dict({"weight": Tensor([[1.0], [2.0]])})
        >>> masks = {"weight": torch.tensor([[True], [False]])}
        >>> reset_weights_(model, masks, fresh={"weight": Tensor([[7.0], [8.0]])})
        >>> model.weight.flatten().tolist()
        [7.0, 2.0]
    """
    parameters = dict(model.named_parameters())
    own = {name: value for name, value in parameters.items() if name in masks}
    drawn = {name: value for name, value in fresh.items() if name in masks}
    check_same_layout(own, masks, names=("the model", "masks"))
    check_same_layout(own, drawn, names=("the model", "fresh"))
    with torch.no_grad():
        for name, parameter in own.items():
            where = masks[name].to(parameter.device)
            parameter.copy_(torch.where(where, drawn[name].to(parameter), parameter))
            remembered = optimizer.state.get(parameter, {}) if optimizer else {}
            for kind, value in remembered.items():
                if isinstance(value, Tensor) and kind != "step":
                    value.masked_fill_(where, 0.0)


def resettable(model: nn.Module) -> list[str]:
    """Return the parameters that LURE may reset: trained ones, without normalisation layers'.

    New gains would be ones and new shifts zeros: nothing is random there, and the scale of
    every neuron behind them would be lost.

    Args:
        model: Any module.

    Returns:
        Their names, each tied tensor once.

    Example:
        >>> resettable(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        ['0.weight', '0.bias']
    """
    norms = {
        f"{name}.{own}".lstrip(".")
        for name, module in model.named_modules()
        # Normalisation layers of other packages have no common class, but a common name.
        if isinstance(module, _NORMS) or "Norm" in type(module).__name__
        for own, _ in module.named_parameters(recurse=False)
    }
    return [n for n, p in model.named_parameters() if p.requires_grad and n not in norms]


def _wide(value: Tensor) -> Tensor:
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))
