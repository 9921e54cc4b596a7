"""The parametrisation as a linear map, and which weights it takes in."""

import pytest
import torch

from slipstream.modes.embedding import FREE, HELD, Embedding
from slipstream.modes.growth import Growth

MODE = torch.tensor([FREE, 0, 1, HELD, 0, FREE, 1, 1], dtype=torch.int16)
SCALE = torch.tensor([0.0, 3, 1, 0, 4, 0, -2, 2], dtype=torch.float64)


def example():
    return Embedding(MODE, SCALE)


def matrix(embedding):
    """The map from coordinates to changes of the weights, column by column."""
    eye = torch.eye(embedding.coordinates, dtype=torch.float64)
    return torch.stack([embedding.lift(column) for column in eye], 1)


def test_the_columns_are_the_free_weights_then_the_scaled_members():
    expected = torch.zeros(8, 4, dtype=torch.float64)
    expected[0, 0] = expected[5, 1] = 1
    expected[[1, 4], 2] = torch.tensor([0.6, 0.8], dtype=torch.float64)
    expected[[2, 6, 7], 3] = torch.tensor([1, -2, 2], dtype=torch.float64) / 3
    assert torch.allclose(matrix(example()), expected, atol=1e-15)


def test_the_columns_are_orthonormal_and_project_is_the_transposition():
    columns = matrix(example())
    assert torch.allclose(columns.T @ columns, torch.eye(4, dtype=torch.float64), atol=1e-15)
    change = torch.randn(8, dtype=torch.float64)
    assert torch.allclose(example().project(change), columns.T @ change, atol=1e-15)


def test_a_reference_whose_members_have_no_slope_moves_nothing():
    embedding = Embedding.none(torch.zeros(3)).embed(
        torch.tensor([0, 2]), torch.zeros(2), torch.zeros(2)
    )
    assert embedding.coordinates == 2
    assert torch.equal(embedding.lift(torch.tensor([5.0, 7.0])), torch.tensor([0.0, 5.0, 0.0]))


def test_only_free_weights_can_be_embedded():
    with pytest.raises(ValueError, match="1 of these are not free"):
        example().embed(torch.tensor([0, 1]), torch.zeros(2), torch.ones(2))


def history(*, steps=12, dtype=torch.float64):
    """Eight weights of two modes, one of both, and two that never move."""
    time = torch.linspace(0, 1, steps, dtype=dtype)
    modes = torch.stack([time.sqrt(), torch.cos(9 * time)])
    slopes = torch.tensor([1.0, -2, 0.5, 3, 1, 1, -1, 2], dtype=dtype)
    following = modes[torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])] * slopes[:, None]
    rows = torch.cat([following, modes.sum(0)[None], torch.ones(2, steps, dtype=dtype)])
    return list(rows.T.contiguous())


def grown(points, **options):
    settings = {"modes": 2, "share": 10 / 11, "most": 1.0, "window": 12, **options}
    start = Embedding.none(points[-1])
    return Growth(**settings).grow(start, points, sizes={"a": 5, "b": 6})


@pytest.mark.parametrize("reference", ["member", "component"])
@pytest.mark.parametrize("criterion", ["residual", "stability"])
def test_weights_that_follow_a_mode_come_first(criterion, reference):
    found = grown(history(), criterion=criterion, reference=reference)
    embedded = (found.mode != FREE).nonzero().flatten().tolist()
    assert embedded == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    first, second = found.mode[:4], found.mode[4:8]
    assert first.unique().numel() == second.unique().numel() == 1
    assert first[0] != second[0]


def test_scales_are_the_slopes_of_the_members():
    found = grown(history())
    for members, slopes in ((slice(0, 4), [1.0, -2, 0.5, 3]), (slice(4, 8), [1.0, 1, -1, 2])):
        ratio = found.scale[members] / torch.tensor(slopes, dtype=torch.float64)
        assert torch.allclose(ratio, ratio[0].expand(4), rtol=1e-3)


def test_stability_knows_no_unit_and_the_papers_criterion_does():
    # Powers of two: products with them are exact, so nothing but the unit changes.
    units = 2.0 ** torch.arange(11, dtype=torch.float64)
    wandering = torch.randn(12, 11, dtype=torch.float64).cumsum(0)
    plain, scaled = list(wandering), list(wandering * units)

    def chosen(points, criterion):
        found = grown(points, criterion=criterion, share=0.5)
        return (found.mode != FREE).nonzero().flatten().tolist()

    assert chosen(plain, "stability") == chosen(scaled, "stability")
    assert chosen(plain, "coefficients") != chosen(scaled, "coefficients")


def test_random_groups_have_the_slopes_of_least_squares():
    found = grown(history(), groups="random", criterion="random", share=1.0, most=1.0)
    assert len(found.free) == 0
    assert found.mode.unique().numel() == 2
    again = grown(history(), groups="random", criterion="random", share=1.0, most=1.0)
    assert torch.equal(found.mode, again.mode)


def test_growth_goes_on_with_new_references_until_most_are_embedded():
    points = history()
    plan = Growth(modes=2, share=0.5, most=0.9, window=12)
    start = Embedding.none(points[-1])
    once = plan.grow(start, points, sizes={"a": 11})
    twice = plan.grow(once, points, sizes={"a": 11})
    assert [len(e.free) for e in (once, twice)] == [5, 1]
    assert torch.equal(twice.mode[once.mode >= 0], once.mode[once.mode >= 0])
    assert twice.mode[(once.mode == FREE) & (twice.mode >= 0)].min() >= once.modes
    assert plan.grow(twice, points, sizes={"a": 11}) is twice  # 0.9 of 11 is 10


def test_without_modes_weights_are_held():
    found = grown(history(), modes=0, share=0.5)
    assert found.modes == 0
    assert int((found.mode == HELD).sum()) == 6


def test_nothing_moves_and_still_something_can_be_embedded():
    points = [torch.ones(4)] * 5
    found = Growth(share=0.5, modes=3).grow(Embedding.none(points[0]), points, sizes={"w": 4})
    assert len(found.free) == 2


def test_it_is_time_after_the_warm_up_and_then_every_so_often():
    assert [n for n in range(20) if Growth(warm_up=4, every=6).due(n)] == [4, 10, 16]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warm_up": 1}, "warm_up must be at least 2, got 1"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"share": 0.0}, "share must be above 0 and at most 1, got 0.0"),
        ({"most": 1.5}, "most must be above 0 and at most 1, got 1.5"),
        ({"criterion": "best"}, "criterion must be one of .*'residual'.* got 'best'"),
        ({"groups": "none"}, "groups must be correlation or random, got 'none'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Growth(**options)


def test_a_history_with_a_nan_or_too_short_is_refused():
    points = history()
    start = Embedding.none(points[-1])
    with pytest.raises(ValueError, match="history has 2 observations, 3 are needed"):
        Growth().grow(start, points[:2], sizes={"a": 11})
    points[3] = points[3].clone()
    points[3][0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        Growth(modes=2).grow(start, points, sizes={"a": 11})
