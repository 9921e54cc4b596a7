import pytest
import torch
from moving_runs import moving_run
from torch import nn

from slipstream.evaluation import Task
from slipstream.modes import fit_modes, mode_plane


def model_of(run):
    """A module with the tensors of a run."""
    model = nn.Module()
    for name, value in run[0].weights.items():
        layer, _, tensor = name.rpartition(".")
        if layer and not hasattr(model, layer):
            model.add_module(layer, nn.Module())
        model.get_submodule(layer).register_parameter(tensor, nn.Parameter(value.clone()))
    return model


def squares_of(model):
    return model.get_parameter("first.weight").square().sum()


def test_the_loss_over_two_references_by_its_formula():
    run, _ = moving_run(dtype=torch.float64)
    modes = fit_modes(run, modes=3)
    seen = []
    plane = mode_plane(
        modes,
        Task(model_of(run), [torch.ones(1)], lambda model, _: squares_of(model)),
        pair=(2, 0),
        points=4,
        margin=0.5,
        progress=lambda done, total: seen.append((done, total)),
    )
    a, b, at = (kind["first.weight"] for kind in (modes.a, modes.b, modes.assignment))
    for i, first in enumerate(plane.first):
        for j, second in enumerate(plane.second):
            values = torch.stack([second, modes.references[1, -1], first])
            expected = (a * values[at.long()] + b).square().sum()
            assert float(plane.losses[i, j]) == pytest.approx(float(expected))
    assert torch.equal(plane.path, modes.references[[2, 0]])
    spread = plane.path[0].max() - plane.path[0].min()
    assert float(plane.first[-1] - plane.first[0]) == pytest.approx(2 * float(spread))
    assert seen == [(n, 16) for n in range(1, 17)]


def test_bad_input_is_told():
    modes = fit_modes(moving_run()[0], modes=3)
    for pair in ((1, 1), (0, 3), (-1, 0)):
        with pytest.raises(ValueError, match="pair must be two of the modes 0 to 2, got"):
            mode_plane(modes, Task(nn.Identity()), pair=pair)
    with pytest.raises(ValueError, match="points must be at least 2, got 1"):
        mode_plane(modes, Task(nn.Identity()), points=1)
