import numpy as np
import pytest
import torch
from scipy.special import ive

from slipstream.testbed.deeponet import DeepONet
from slipstream.testbed.equations import (
    FlowEquation,
    UnresolvedError,
    random_functions,
    solution_batches,
    solve,
)

X = torch.arange(64, dtype=torch.float64) / 64


def burgers(time, nu, *, amplitude=0.2):
    """Cole-Hopf: u = -2 nu phi_x / phi, where phi starts as a product of Bessel series."""
    z = amplitude / (4 * np.pi * nu)
    k = np.arange(1, 60)
    parts = 2 * ive(k, z) * np.exp(-nu * (2 * np.pi * k) ** 2 * time)
    angles = 2 * np.pi * k[:, None] * X.numpy()
    phi = ive(0, z) + parts @ np.cos(angles)
    phi_x = -(parts * 2 * np.pi * k) @ np.sin(angles)
    return torch.from_numpy(-2 * nu * phi_x / phi)


def test_burgers_is_that_of_cole_and_hopf():
    start = 0.2 * torch.sin(2 * torch.pi * X)[None]
    found = solve(FlowEquation(1.0, 0.01), start, [0.0, 0.5, 1.0])
    torch.testing.assert_close(found[:, 0], start)
    for at, time in ((1, 0.5), (2, 1.0)):
        torch.testing.assert_close(found[0, at], burgers(time, 0.01), rtol=0, atol=1e-8)


def test_waves_are_carried_along_and_damped():
    start = torch.sin(4 * torch.pi * X)[None] + torch.cos(2 * torch.pi * X)[None]
    found = solve(FlowEquation(0.0, 0.01, speed=0.3), start, [0.7])[0, 0]
    moved = X - 0.3 * 0.7
    damped = [np.exp(-0.01 * (2 * np.pi * k) ** 2 * 0.7) for k in (1, 2)]
    closed = damped[1] * torch.sin(4 * torch.pi * moved) + damped[0] * torch.cos(
        2 * torch.pi * moved
    )
    torch.testing.assert_close(found, closed)
    # With steepening the mean flow alone does the same: u = 0.3 + a small wave.
    small = 0.3 + 1e-6 * start
    both = solve(FlowEquation(1.0, 0.01), small, [0.7])[0, 0]
    torch.testing.assert_close((both - 0.3) / 1e-6, closed, rtol=0, atol=1e-4)


def test_the_residual_of_a_solution_is_zero():
    equation, step = FlowEquation(0.8, 0.02, speed=0.4), 1e-4
    start = random_functions(2, seed=1).double()
    before, now, after = solve(equation, start, [0.3 - step, 0.3, 0.3 + step]).unbind(1)
    waves = 2j * np.pi * np.arange(33)
    modes = np.fft.rfft(now.numpy())
    u_x, u_xx = (torch.from_numpy(np.fft.irfft(modes * waves**n, 64)) for n in (1, 2))
    residual = equation.residual(now, (after - before) / (2 * step), u_x, u_xx)
    assert residual.abs().max() < 1e-5 < 0.1 < u_xx.abs().max()


def test_what_the_grid_cannot_tell_apart_is_refused():
    start = 2 * torch.sin(2 * torch.pi * X)[None]
    with pytest.raises(UnresolvedError, match=r"not resolved by 64 points.*aliased"):
        solve(FlowEquation(1.0, 1e-4), start, [1.0], grid=64)
    assert solve(FlowEquation(1.0, 0.02), start, [1.0], grid=256).abs().max() < 2
    with pytest.raises(UnresolvedError, match=r"blew up.*aliased.*larger grid"):
        solve(FlowEquation(1.0, 0.02), 1e200 * start, [1.0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": torch.full((1, 8), torch.nan)}, "start must be finite.*NaN"),
        ({"start": torch.ones(8)}, "start must be finite, .functions, positions."),
        ({"grid": 12}, "grid must be a multiple of 8 positions, got 12"),
        ({"times": [1.0, 0.5]}, "times must ascend"),
        ({"times": []}, "times must ascend"),
    ],
)
def test_what_cannot_be_solved(given, message):
    usual = {"start": torch.ones(1, 8), "times": [1.0], "grid": 16}
    with pytest.raises(ValueError, match=message):
        solve(FlowEquation(), **{**usual, **given})


def test_equations_and_functions_that_are_none():
    with pytest.raises(ValueError, match="viscosity of at least 0"):
        FlowEquation(1.0, -0.1)
    with pytest.raises(ValueError, match="cannot hold 4 waves"):
        random_functions(3, positions=8)


def test_batches_hold_the_functions_and_their_solutions():
    functions = random_functions(5, positions=16, waves=3, seed=2)
    made = solution_batches(
        FlowEquation(), functions, duration=0.5, instants=3, batch_size=3, grid=64
    )
    assert [len(values) for _, values in made] == [3, 2]
    (own, points), values = made[0]
    assert points.shape == (48, 2)
    torch.testing.assert_close(points[20], torch.tensor([4 / 16, 0.25]))
    torch.testing.assert_close(values[:, :16], own)
    assert 0.3 < random_functions(500, seed=3).std() < 0.7


def test_the_network_is_periodic_and_a_product():
    network = DeepONet(sensors=8, width=6, terms=5, waves=2)
    functions, points = torch.randn(3, 8), torch.rand(4, 2)
    found = network(functions, points)
    torch.testing.assert_close(found, network(functions, points + torch.tensor([1.0, 0.0])))
    product = torch.einsum("fk,pk->fp", network.branch(functions), network.trunk(points))
    torch.testing.assert_close(found, product)


def test_the_highest_wave_of_the_positions_is_kept_on_a_finer_grid():
    start = torch.tensor([[1.0, -1.0] * 4], dtype=torch.float64)
    found = solve(FlowEquation(0.0, 0.01), start, [0.0], grid=16)
    torch.testing.assert_close(found[:, 0], start)
