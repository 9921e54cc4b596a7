"""Small runs to transfer: a network with BatchNorm, unequal batches, a recorded trajectory."""

import torch
from torch import nn

from slipstream.evaluation import classification_loss
from slipstream.trajectory import Trajectory
from slipstream.weights import clone, weights_of


def batches(*, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [11, 8, 5, 9, 7, 10][:count]
    return [
        (
            torch.randn(n, 2, 6, 6, generator=generator, dtype=torch.float64),
            torch.randint(3, (n,), generator=generator),
        )
        for n in sizes
    ]


def network(seed, *, batchnorm=True, classes=3):
    """A convolution, BatchNorm and two linear layers, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norm = [nn.BatchNorm2d(6)] if batchnorm else []
        return nn.Sequential(
            nn.Conv2d(2, 6, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.Tanh(),
            nn.Linear(8, classes),
        ).double()  # fmt: skip


def trained(model, *, steps=6, lr=0.1):
    """The snapshots of a short training, the start included."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    data = batches()
    kept = [clone(weights_of(model))]
    for step in range(steps):
        optimizer.zero_grad()
        classification_loss(model, data[step % len(data)]).backward()
        optimizer.step()
        kept.append(clone(weights_of(model)))
    return Trajectory.from_weights(kept)
