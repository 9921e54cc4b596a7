"""The small networks that the tests of this folder record."""

import os

import pytest
import torch
from torch import nn

on_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no fork, SIGKILL or pipes")


class Tied(nn.Module):
    """Encoder and decoder share a weight; BatchNorm adds buffers, one of whole numbers."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs):
        return self.decoder(self.norm(self.encoder(inputs)))


def tied(seed=0):
    torch.manual_seed(seed)
    return Tied()


def train(model, optimizer, steps, after=lambda step: None):
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(torch.randn(6, 4, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()
        after(step)
    return loss
