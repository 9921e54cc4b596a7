"""A small training that the tests of this folder run in one process and in two."""

import torch
from torch import nn

from slipstream.averaging import EMA, LAWA, SWA

RULES = (SWA(start=4), EMA(0.8), LAWA(3))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, generator=generator) for _ in range(12)]


def train(model, optimizer, data):
    for batch in data:
        optimizer.zero_grad()
        (model(batch) - batch[:, :2]).square().mean().backward()
        optimizer.step()
