"""Networks and what was made of them."""

import copy

import torch
from torch import nn

from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.testbed import load_data
from slipstream.weights import clone, weights_of

WIDTH = 24


def network(seed=0, *, norm=False):
    torch.manual_seed(seed)
    between = [nn.BatchNorm1d(WIDTH)] if norm else []
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, WIDTH),
        *between,
        nn.Tanh(),
        nn.Linear(WIDTH, WIDTH),
        nn.Tanh(),
        nn.Linear(WIDTH, 10),
    )


def trained(model, steps=60, *, seed=0, flipped=False):
    """Return a copy after some steps of Adam on digits."""
    model = copy.deepcopy(model).train()
    examples = load_data("digits").train
    images = examples.inputs.flip(-1) if flipped else examples.inputs
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), examples.labels[chosen]).backward()
        optimizer.step()
    return model


def weights(model):
    return clone(weights_of(model))


def groups():
    return find_neuron_groups(network(), torch.zeros(2, 64))
