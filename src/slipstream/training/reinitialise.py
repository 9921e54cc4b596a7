"""Where a training starts: at given weights, or at new ones as the model's layers make them."""

import copy as copying

import torch
from torch import Tensor, nn

from slipstream.evaluation import weights_in
from slipstream.weights import (
    Weights,
    check_same_layout,
    clone,
    first_nonfinite,
    load_weights_,
    weights_of,
)


def fresh_weights(model: nn.Module, *, seed: int) -> dict[str, Tensor]:
    """Return weights as the model's layers initialise them, by their `reset_parameters`.

    What a model does to its layers after they are made, in its own `__init__`, is not repeated.
    Parameters that require no gradient keep their values, and so do buffers.

    Args:
        model: Left as it was.
        seed: Of what is drawn; the global generators are not touched.

    Returns:
        Weights for every tensor of the model.

    Raises:
        ValueError: If a layer cannot re-initialise its parameters.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> first, again = fresh_weights(model, seed=1), fresh_weights(model, seed=1)
        >>> torch.equal(first["weight"], again["weight"])
        True
        >>> torch.equal(first["weight"], model.weight)
        False
    """
    own, drawn = clone(weights_of(model)), _drawn(model, seed)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    same = [n for n, p in trained.items() if p.dim() > 1 and torch.equal(drawn[n], own[n])]
    if same:  # perhaps the model was made with this very seed
        other = _drawn(model, seed + 1)
        for name in same:
            if torch.equal(other[name], own[name]):
                raise ValueError(f"{name!r} is not re-initialised by its layer. {_REPAIR}")
    return {name: drawn[name] if name in trained else value for name, value in own.items()}


def model_at(model: nn.Module, weights: Weights | None, *, name: str = "initial") -> nn.Module:
    """Return a copy of the model, at other weights if they are given.

    Args:
        model: Left as it was.
        weights: Of every tensor of the model.
        name: What to call them in a message.

    Returns:
        The copy.

    Raises:
        ValueError: If the weights have another layout, or are not finite, or the model cannot be
            copied.
    """
    try:
        network = copying.deepcopy(model)
    except RuntimeError as error:  # of a tensor that is not a leaf of the graph
        raise ValueError(
            "The model cannot be copied: a layer keeps a weight that it computes from others, as "
            "under torch.nn.utils.prune. Make it permanent first (torch.nn.utils.prune.remove)."
        ) from error
    if weights is not None:
        check_same_layout(weights_of(model), weights, names=("the model", name))
        if bad := first_nonfinite(weights):
            raise ValueError(f"{name} holds a NaN or an infinity in {bad!r}.")
        load_weights_(network, weights)
    return network


_REPAIR = (
    "Give the weights yourself: initial=[weights_of(build()) for each network], or to LURE "
    "fresh=a function from a seed to weights."
)


def _drawn(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """The weights that the layers draw after a seed."""
    own = clone(weights_of(model))
    with weights_in(model, own), torch.random.fork_rng(devices=_devices(model)):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            _reset(name, module)
        return clone(weights_of(model))


def _reset(name: str, module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
    if callable(reset):
        reset()
    elif any(p.requires_grad for p in module.parameters(recurse=False)):
        where = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
        raise ValueError(f"{where} has parameters, but no reset_parameters. {_REPAIR}")


def _devices(model: nn.Module) -> list[torch.device]:
    return list({p.device: None for p in model.parameters() if p.device.type == "cuda"})
