"""New initial weights for a model, drawn as its own layers draw them."""

import torch
from torch import Tensor, nn

from slipstream.evaluation import weights_in
from slipstream.weights import copy, weights_of


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
        ValueError: If a layer cannot draw its parameters anew.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> first, again = fresh_weights(model, seed=1), fresh_weights(model, seed=1)
        >>> torch.equal(first["weight"], again["weight"])
        True
        >>> torch.equal(first["weight"], model.weight)
        False
    """
    own = copy(weights_of(model))
    with weights_in(model, copy(own)), torch.random.fork_rng(devices=_devices(model)):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            _reset(name, module)
        drawn = copy(weights_of(model))
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            drawn[name] = own[name]
        elif parameter.dim() > 1 and torch.equal(drawn[name], own[name]):
            raise ValueError(f"{name!r} is not drawn anew by its layer. {_REPAIR}")
    return drawn | {name: own[name] for name, _ in model.named_buffers() if name in own}


_REPAIR = "Give the weights to start from: initial=[weights_of(build()) for each corner]."


def _reset(name: str, module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
    if callable(reset):
        reset()
    elif any(p.requires_grad for p in module.parameters(recurse=False)):
        where = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
        raise ValueError(f"{where} has parameters, but no reset_parameters. {_REPAIR}")


def _devices(model: nn.Module) -> list[torch.device]:
    return list({p.device: None for p in model.parameters() if p.device.type == "cuda"})
