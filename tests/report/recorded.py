"""Small runs, written without any training."""

import math

import torch

from slipstream.trajectory import create_run


def walk(folder, *, steps=8, seed=0, metrics=True, step=10, configuration=None):
    """A run whose two layers drift and tremble."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 3))
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    drift = {name: torch.randn_like(value) for name, value in weights.items()}
    with create_run(folder, model=model, configuration=configuration, seed=seed) as writer:
        for number in range(steps):
            here = {
                name: value + math.sqrt(number) * drift[name] + 0.1 * torch.randn_like(value)
                for name, value in weights.items()
            }
            writer.append(
                step=number * step,
                weights=here,
                epoch=number / 2,
                metrics={"train_loss": 2.0**-number, "validation_accuracy": number / steps}
                if metrics
                else {},
            )
    return folder
