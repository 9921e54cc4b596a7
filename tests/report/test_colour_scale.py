"""Ends and ticks of colours that mean a value."""

import math
from itertools import pairwise

import pytest
import torch

from slipstream.report.colour_scale import colour_scale, position


@pytest.mark.parametrize("scale", ["linear", "log", "root"])
@pytest.mark.parametrize("decades", [0.01, 0.3, 1, 2.5, 4, 9])
@pytest.mark.parametrize("start", [1.0, 0.37, 8e-5])
def test_ticks_are_on_the_scale_and_apart(scale, decades, start):
    values = torch.logspace(math.log10(start), math.log10(start) + decades, 20).double()
    found = colour_scale("loss", values, scale=scale)
    places = [position(found, tick) for tick in found.ticks]
    assert 1 <= len(found.ticks) <= 9
    assert all(found.low <= tick * (1 + 1e-9) for tick in found.ticks)
    assert all(tick <= found.high * (1 + 1e-9) for tick in found.ticks)
    assert all(b - a >= 0.12 for a, b in pairwise(places))
    assert (found.low, position(found, found.low)) == (pytest.approx(float(values[0])), 0)
    assert position(found, found.high) == pytest.approx(1)


@pytest.mark.parametrize("scale", ["linear", "log", "root"])
@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf], [2.0], [0.0], [-1.0]])
def test_nothing_to_see_has_a_scale_too(scale, values):
    found = colour_scale("loss", torch.tensor(values), scale=scale)
    assert found.low < found.high
    assert all(math.isfinite(tick) for tick in found.ticks)


def test_a_loss_far_away_does_not_take_the_colours_of_the_rest():
    losses = torch.tensor([0.1, 0.2, 0.3, 1e30, math.inf])
    found = colour_scale("loss", losses, scale="root")
    assert found.high == pytest.approx(0.1 + 1e4 * 0.1, rel=1e-3)
    assert position(found, 1e30) == 1


def test_a_share_begins_at_zero():
    assert colour_scale("share", torch.tensor([0.4, 0.9]), low=0.0).ticks == (0, 0.2, 0.4, 0.6, 0.8)
