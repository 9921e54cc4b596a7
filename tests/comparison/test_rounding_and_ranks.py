"""Casts, levels and the rank of a difference."""

import pytest
import torch

from slipstream.comparison.ranks import Rank, rank_of
from slipstream.comparison.rounding import cast_of, fits, is_quantised, same_before_rounding


def test_a_cast_is_told_from_a_change():
    weight = torch.randn(40, 40)
    assert cast_of(weight, weight.bfloat16()) is torch.bfloat16
    assert cast_of(weight, weight.half().float()) is torch.float16
    assert cast_of(weight.bfloat16(), weight) is None
    assert cast_of(weight, weight * 1.0001) is None
    assert fits(weight) is None
    assert fits(weight.half().float()) is torch.float16


def test_two_casts_of_one_tensor():
    weight = torch.randn(40, 40) * torch.logspace(-8, 0, 40)
    casts = weight.bfloat16(), weight.half()
    narrow = tuple(map(fits, casts))
    assert same_before_rounding(*casts, narrow)
    other = (weight + 1e-3).half()
    assert not same_before_rounding(casts[0], other, narrow)
    assert not same_before_rounding(weight, weight * 1.0001, (None, None))


def rounded(weight, levels, *, group=None):
    rows = weight.reshape(-1, group or weight[0].numel())
    step = rows.abs().amax(1, keepdim=True) / levels
    return ((rows / step).round() * step).view_as(weight)


@pytest.mark.parametrize("levels", [7, 127])
@pytest.mark.parametrize("group", [None, 32])
def test_levels_by_row_and_group(levels, group):
    weight = torch.randn(20, 64)
    assert is_quantised(weight, rounded(weight, levels, group=group))
    assert not is_quantised(weight, rounded(weight + 0.3 * torch.randn(20, 64), levels))
    assert not is_quantised(rounded(weight, levels), weight)


@pytest.mark.parametrize("levels", [1, 7, 127])
@pytest.mark.parametrize("size", [2, 3])
def test_levels_of_rows_too_short_to_show_them(levels, size):
    weight = torch.randn(24, 1, size, size)
    assert is_quantised(weight, rounded(weight, levels))
    assert not is_quantised(weight, rounded(weight + torch.randn_like(weight), levels))
    assert not is_quantised(weight, weight + 0.01 * torch.randn_like(weight))
    assert not is_quantised(weight[:2, :, :1], rounded(weight[:2, :, :1], levels))  # by chance


def test_levels_of_a_whole_tensor():
    weight = torch.randn(20, 12)
    step = weight.abs().max() / 127
    assert is_quantised(weight, (weight / step).round() * step)
    levels = torch.tensor([-2.0, -0.7, -0.1, 0.4, 1.1])  # of no grid
    nearest = levels[(weight[..., None] - levels).abs().argmin(-1)]
    assert is_quantised(weight, nearest)
    assert not is_quantised(weight, levels[torch.randint(5, weight.shape)])


def test_a_small_change_is_no_rounding():
    weight = torch.randn(20, 64)
    assert not is_quantised(weight, weight + 1e-6 * torch.randn(20, 64))


def test_rounding_adds_no_rank():
    weight = torch.randn(60, 50)
    changed = weight + torch.randn(60, 3) @ torch.randn(3, 50)
    assert rank_of(weight, changed) == Rank(3, 50)
    assert rank_of(weight.bfloat16(), (weight.bfloat16() + changed - weight).bfloat16()).rank <= 4
    assert rank_of(weight, weight + 1e-3 * torch.randn(60, 50)) == Rank(50, 50)
    assert rank_of(weight[0], changed[0]) is None


def test_of_large_matrices_some_directions_are_looked_at():
    weight = torch.randn(700, 600)
    changed = weight + torch.randn(700, 5) @ torch.randn(5, 600)
    assert rank_of(weight, changed) == Rank(5, 128)
    assert rank_of(weight, torch.randn(700, 600)) == Rank(128, 128)
    assert Rank(5, 128).is_low
