"""Runs with known modes, for the tests of this room."""

import torch

from slipstream.trajectory import Trajectory


def curves(steps, *, dtype=torch.float64):
    """Three references that do not follow each other: (3, steps)."""
    time = torch.linspace(0, 1, steps, dtype=dtype)
    return torch.stack([time.sqrt(), torch.cos(9 * time), torch.exp(-6 * time)])


def moving_run(*, steps=20, shapes=None, noise=0.0, offset=1.0, dtype=torch.float32, seed=0):
    """A run of weights that follow the curves; the modes, slopes and offsets that made it."""
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or {"first.weight": (6, 5), "first.bias": (6,), "second.weight": (3, 6)}

    def draw(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    references = curves(steps)
    truth = {}
    for name, shape in shapes.items():
        mode = torch.randint(3, shape, generator=generator)
        slope = draw(shape)
        truth[name] = (mode, slope + slope.sign() * 0.2, offset * draw(shape))
    rows = [
        {
            name: (a * references[mode, t] + b + noise * draw(mode.shape)).to(dtype)
            for name, (mode, a, b) in truth.items()
        }
        for t in range(steps)
    ]
    return Trajectory.from_weights(rows), truth
