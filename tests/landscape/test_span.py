import itertools

import numpy as np
import pytest
import torch
from torch import nn

from slipstream.evaluation import (
    Task,
    accuracy,
    evaluate,
    recalibrate_batchnorm,
)
from slipstream.landscape import Shape, Span, evaluate_span, weight_cosine
from slipstream.landscape.angles import squared_cosine_gradient
from slipstream.weights import weights_of

SHAPES = [
    Shape("simplex", 2),
    Shape("simplex", 4),
    Shape("bezier", 3),
    Shape("bezier", 5),
    Shape("polyline", 4),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_coefficients_sum_to_one_and_the_ends_are_corners(shape):
    generator = np.random.default_rng(0)
    drawn = [shape.draw(generator) for _ in range(20)]
    everywhere = [shape.coefficients(position) for position in shape.positions(5)] + drawn
    for row in everywhere:
        assert len(row) == shape.corners
        assert sum(row) == pytest.approx(1)
        assert min(row) >= 0
    ends = [row for row in map(shape.coefficients, shape.positions(2)) if max(row) == 1]
    assert tuple(float(i == 0) for i in range(shape.corners)) in ends
    assert tuple(float(i == shape.corners - 1) for i in range(shape.corners)) in ends


def test_closed_forms():
    t = 0.3
    assert Shape("bezier", 3).coefficients(t) == pytest.approx((0.49, 0.42, 0.09))
    assert Shape("polyline", 3).coefficients(t) == pytest.approx((0.4, 0.6, 0.0))
    assert Shape("polyline", 4).coefficients(1 / 3) == pytest.approx((0, 1, 0, 0))
    assert Shape("simplex", 2).coefficients(t) == pytest.approx(Shape("bezier", 2).coefficients(t))
    assert Shape("simplex", 3).coefficients((0.2, 0.3, 0.5)) == (0.2, 0.3, 0.5)
    assert Shape("simplex", 3).coefficients(torch.tensor([0.5, 0.25, 0.25])) == (0.5, 0.25, 0.25)
    assert Shape("simplex", 2).coefficients(torch.linspace(0, 1, 5)[1]) == (0.75, 0.25)


def test_the_lattice_of_a_simplex_holds_every_multiple_once():
    found = Shape("simplex", 3).positions(5)
    steps = [tuple(round(4 * x) for x in position) for position in found]
    every = [s for s in itertools.product(range(5), repeat=3) if sum(s) == 4]
    assert sorted(steps) == sorted(every)


def test_points_are_drawn_uniformly():
    generator = np.random.default_rng(1)
    rows = np.array([Shape("simplex", 3).draw(generator) for _ in range(4000)])
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18
    assert rows.mean(0) == pytest.approx(np.full(3, 1 / 3), abs=0.015)
    assert rows.var(0) == pytest.approx(np.full(3, 1 / 18), abs=0.004)


@pytest.mark.parametrize(
    ("shape", "position", "message"),
    [
        (Shape("simplex", 2), 1.5, "from 0 to 1, got 1.5"),
        (Shape("simplex", 3), 0.5, "is 3 values, got 0.5"),
        (Shape("simplex", 3), (0.5, 0.5), "is 3 values"),
        (Shape("simplex", 3), (0.5, 0.6, -0.1), "not be negative and sum to 1"),
        (Shape("bezier", 3), (0.5, 0.5, 0.0), "is one number"),
    ],
)
def test_positions_that_are_none(shape, position, message):
    with pytest.raises(ValueError, match=message):
        shape.coefficients(position)


def test_shapes_that_are_none():
    with pytest.raises(ValueError, match="shape must be one of simplex, bezier, polyline"):
        Shape("circle", 3)
    with pytest.raises(ValueError, match="at least 2 corners, got 1"):
        Shape("simplex", 1)
    with pytest.raises(ValueError, match="points must be at least 2"):
        Shape("simplex", 2).positions(1)


def test_the_gradient_of_the_squared_cosine_is_that_of_autograd():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (2, 2, 3)]
    both = [
        [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in "ab"
    ]
    ours = squared_cosine_gradient(*both)
    leaves = [[value.clone().requires_grad_() for value in side] for side in both]
    flat = [torch.cat([value.flatten() for value in side]) for side in leaves]
    (torch.cosine_similarity(*flat, dim=0) ** 2).backward()
    for mine, side in zip(ours, leaves, strict=True):
        for slope, leaf in zip(mine, side, strict=True):
            torch.testing.assert_close(slope, leaf.grad, rtol=1e-12, atol=1e-12)


def test_the_cosine_leaves_out_biases_and_gains():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    weights = weights_of(model)
    other = {n: v if v.dim() > 1 else v + 1 for n, v in weights.items()}
    assert weight_cosine(weights, other) == pytest.approx(1)


def batchnorm_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def batches():
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(size, 3, generator=generator),
            torch.randint(2, (size,), generator=generator),
        )
        for size in (6, 6, 3)
    ]


def test_every_point_has_statistics_of_its_own():
    model, data = batchnorm_network(), batches()
    corners = tuple(weights_of(batchnorm_network()) for _ in range(2))
    corners = (
        corners[0],
        {n: v * 2 if v.is_floating_point() else v for n, v in corners[1].items()},
    )
    span = Span(Shape("simplex", 2), corners, Task(model, data))
    middle = span.midpoint
    expected = recalibrate_batchnorm(model, weights=middle, data=data)
    assert torch.equal(middle["1.running_mean"], expected["1.running_mean"])
    assert torch.equal(middle["0.weight"], 1.5 * corners[0]["0.weight"])
    found = evaluate_span(span, Task(model, data), metrics={"accuracy": accuracy}, points=3)
    by_hand = evaluate(model, {"accuracy": accuracy}, weights=middle, data=data)
    assert found.values["accuracy"][1] == by_hand["accuracy"]
    assert found.worst("accuracy", highest=True) in found.values["accuracy"]
    with pytest.raises(ValueError, match="must be recalibrated at every point"):
        _ = Span(Shape("simplex", 2), corners).midpoint


def test_corners_of_different_layouts():
    with pytest.raises(ValueError, match=r"corner 0 and corner 1 differ in the shape of 'w'"):
        Span(Shape("simplex", 2), ({"w": torch.ones(2)}, {"w": torch.ones(3)}))
    with pytest.raises(ValueError, match="The shape has 3 corners, but 1 are given"):
        Span(Shape("simplex", 3), ({"w": torch.ones(2)},))
