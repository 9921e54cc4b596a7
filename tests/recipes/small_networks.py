"""A small network, its data, and comparisons, for the tests of recipes."""

import torch
from torch import nn

from slipstream.trajectory import Trajectory


class Interrupt:
    """A progress that stands in for Ctrl-C at some step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, step, total):
        if step == self.step:
            raise KeyboardInterrupt


def network(seed=0, *, outputs=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, outputs)
        )


def batches(count=20, seed=3, *, along=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, generator=generator)
    return list(zip(inputs.split(8), (inputs[:, along] > 0).long().split(8), strict=True))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def same_runs(first, second):
    first, second = Trajectory.open(first), Trajectory.open(second)
    return first.steps == second.steps and all(
        same(a.weights, b.weights) and a.metrics == b.metrics
        for a, b in zip(first, second, strict=True)
    )
