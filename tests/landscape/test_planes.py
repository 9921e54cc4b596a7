"""Planes: closed forms, and the principal components against a plain decomposition."""

from dataclasses import astuple

import pytest
import torch
from torch import nn

from cases import CASES
from slipstream.evaluation import Task, classification_loss, evaluate
from slipstream.landscape import (
    PlaneGrid,
    loss_plane,
    plane_through,
    random_plane,
    trajectory_plane,
)
from slipstream.trajectory import Trajectory
from slipstream.weights import clone, weights_of

DATA = [torch.zeros(2)]


def quadratic(size, *, seed=0):
    """A loss of the weights of a linear layer, and its closed form."""
    factor = torch.randn(size, size, generator=generator(seed), dtype=torch.float64)
    shift = torch.randn(size, generator=generator(seed + 1), dtype=torch.float64)

    def of(weight):
        return (factor @ (weight - shift)).square().sum()

    return lambda model, batch: of(model.weight[0]), of


def generator(seed):
    return torch.Generator().manual_seed(seed)


def places(count, size, *, seed=3):
    rows = torch.randn(count, 1, size, generator=generator(seed), dtype=torch.float64)
    return [{"weight": row} for row in rows]


def linear(size):
    return nn.Linear(size, 1, bias=False).double()


def moving(steps=7, *, seed=0):
    """A run of a network with BatchNorm in float64."""
    weights = weights_of(CASES["conv_flatten"].model().double())
    kept, source = [clone(weights)], generator(seed)
    for _ in range(steps - 1):
        weights = {
            name: (v + torch.randn(v.shape, generator=source, dtype=v.dtype)).abs()
            if v.is_floating_point()
            else v + 1
            for name, v in weights.items()
        }
        kept.append(weights)
    return kept


def test_a_quadratic_loss_on_a_plane_through_three_weights():
    loss, of = quadratic(5)
    corners = places(3, 5)
    plane = plane_through(dict(zip("abc", corners, strict=True)))
    found = loss_plane(plane, Task(linear(5), DATA, loss), grid=PlaneGrid(points=6))
    (ax, ay), (bx, by), (cx, cy) = ((p.x, p.y) for p in (plane.marks[name] for name in "abc"))
    a, b, c = (corner["weight"][0] for corner in corners)
    for i, x in enumerate(found.x):
        for j, y in enumerate(found.y):
            # Barycentric coordinates, which know nothing of the directions of the plane.
            system = torch.tensor([[ax, bx, cx], [ay, by, cy], [1, 1, 1]], dtype=torch.float64)
            shares = torch.linalg.solve(system, torch.stack([x, y, torch.ones_like(x)]))
            expected = of(shares[0] * a + shares[1] * b + shares[2] * c)
            assert float(found.losses[i, j]) == pytest.approx(float(expected), rel=1e-9)
    assert (ax, ay, by) == (0.0, 0.0, 0.0)
    assert bx == pytest.approx(float((b - a).norm()))
    assert float((c - a).norm()) == pytest.approx((cx**2 + cy**2) ** 0.5)
    assert found.x[0] == pytest.approx(min(ax, bx, cx) - 0.25 * (max(bx, cx) - min(ax, cx)))


def test_marks_are_where_the_weights_are_and_say_what_lies_outside():
    corners = places(4, 6)
    plane = plane_through(corners[:3]).marked({"other": corners[3], "corner": corners[1]})
    other = plane.marks["other"]
    nearest = plane.weights_at(other.x, other.y)
    rest = corners[3]["weight"] - nearest["weight"]
    assert other.outside == pytest.approx(float(rest.norm()))
    for side in plane.directions:
        assert float((side["weight"] * rest).sum()) == pytest.approx(0.0, abs=1e-12)
    for place in (plane.marks["corner"], plane.marks["weights[1]"]):
        assert astuple(place) == pytest.approx((place.x, 0.0, 0.0), abs=1e-9)
    assert plane.marks["corner"].x == pytest.approx(plane.marks["weights[1]"].x)
    third = plane.marks["weights[2]"]
    there = plane.weights_at(third.x, third.y)
    torch.testing.assert_close(there["weight"], corners[2]["weight"])


def test_random_directions_are_as_long_as_the_filters():
    weights = weights_of(CASES["conv_flatten"].model())
    plane = random_plane(weights, seed=5)
    for side in (plane.first, plane.second):
        assert set(side) == {"0.weight", "4.weight", "8.weight"}
        for name, value in side.items():
            torch.testing.assert_close(
                value.flatten(1).norm(dim=1), weights[name].flatten(1).norm(dim=1)
            )
    assert not torch.allclose(plane.first["0.weight"], plane.second["0.weight"])
    again = random_plane(dict(reversed(weights.items())), seed=5)
    other = random_plane(weights, seed=6)
    assert torch.equal(plane.first["4.weight"], again.first["4.weight"])
    assert not torch.equal(plane.first["4.weight"], other.first["4.weight"])
    moved = plane.weights_at(0.5, -1.0)
    expected = weights["4.weight"] + 0.5 * plane.first["4.weight"] - plane.second["4.weight"]
    torch.testing.assert_close(moved["4.weight"], expected)
    assert torch.equal(moved["1.running_var"], weights["1.running_var"])
    assert astuple(plane.project(moved)) == pytest.approx((0.5, -1.0, 0.0), abs=1e-5)


def test_a_random_plane_looks_as_far_as_the_weights_are_long():
    loss, _ = quadratic(4)
    found = loss_plane(
        random_plane(places(1, 4)[0]),
        Task(linear(4), DATA, loss),
        grid=PlaneGrid(points=3, margin=0),
    )
    assert found.x.tolist() == [-1, 0, 1] == found.y.tolist()


def test_components_and_path_are_those_of_a_plain_decomposition():
    kept = moving()
    plane = trajectory_plane(Trajectory.from_weights(kept))
    names = [n for n, v in kept[0].items() if v.is_floating_point() and "running" not in n]
    rows = torch.stack([torch.cat([w[n].flatten() for n in names]) for w in kept])
    _, singular, directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    shares = singular.square() / singular.square().sum()
    assert plane.shares == pytest.approx(shares[:2].tolist())
    for number, side in enumerate((plane.first, plane.second)):
        flat = torch.cat([side[n].flatten() for n in names])
        sign = torch.sign(flat @ directions[number])
        torch.testing.assert_close(flat, sign * directions[number])
        torch.testing.assert_close(plane.path[:, number], (rows - rows[-1]) @ flat)
    inside = plane.path @ torch.stack([torch.cat([s[n].flatten() for n in names])
                                       for s in (plane.first, plane.second)])  # fmt: skip
    expected = (rows - rows[-1] - inside).norm(dim=1)
    torch.testing.assert_close(plane.path_outside, expected, rtol=1e-6, atol=1e-6)
    assert astuple(plane.marks["start"])[:2] == pytest.approx(plane.path[0].tolist())
    assert astuple(plane.project(kept[3])) == pytest.approx(
        (*plane.path[3].tolist(), float(plane.path_outside[3])), rel=1e-6
    )


def test_blocks_of_a_run_give_the_same_components(monkeypatch):
    run = Trajectory.from_weights(moving())
    whole = trajectory_plane(run)
    # A run of usual blocks would have to be large to have several.
    monkeypatch.setattr("slipstream.trajectory.trajectory._BLOCK", 60)
    parts = trajectory_plane(run)
    torch.testing.assert_close(parts.path, whole.path)
    torch.testing.assert_close(parts.first["4.weight"], whole.first["4.weight"])


def test_the_loss_on_the_plane_of_a_run_at_its_end_is_that_of_the_run():
    case, kept = CASES["conv_flatten"], moving(4)
    model = case.model().double()
    data = [(x.double(), y) for x, y in case.batches()]
    plane = trajectory_plane(Trajectory.from_weights(kept))
    found = loss_plane(
        plane,
        Task(model, data, classification_loss, calibration=()),
        grid=PlaneGrid(points=2, extent=((0.0, 1.0), (0.0, 1.0))),
    )
    there = evaluate(model, {"loss": classification_loss}, weights=kept[-1], data=data)
    assert float(found.losses[0, 0]) == pytest.approx(there["loss"], rel=1e-12)
    told = found.to_json()
    assert told["path"] == plane.path.tolist()
    assert told["values"]["loss"] == found.losses.tolist()


def test_weights_in_bfloat16_make_a_plane_in_single_precision():
    corners = [{n: v.bfloat16() for n, v in w.items()} for w in places(3, 8)]
    plane = plane_through(corners)
    assert plane.first["weight"].dtype == torch.float32
    third = plane.marks["weights[2]"]
    assert astuple(plane.project(corners[2])) == pytest.approx(astuple(third), abs=1e-5)
    assert plane.weights_at(third.x, third.y)["weight"].dtype == torch.bfloat16


def test_bad_input_is_told():
    a, b, c = places(3, 4)
    halfway = {"weight": (a["weight"] + b["weight"]) / 2}
    with pytest.raises(ValueError, match=r"weights\[0\], weights\[1\] and weights\[2\] lie on a"):
        plane_through([a, b, halfway])
    with pytest.raises(ValueError, match="start, start again and end lie on a line"):
        plane_through({"start": a, "start again": a, "end": b})
    with pytest.raises(ValueError, match="A plane goes through three weights, got 2"):
        plane_through([a, b])
    with pytest.raises(ValueError, match="c lacks the tensor 'weight' that a has"):
        plane_through({"a": a, "b": b, "c": {}})
    with pytest.raises(ValueError, match="b holds a NaN or an infinity in 'weight'"):
        plane_through({"a": a, "b": {"weight": b["weight"] * torch.nan}, "c": c})
    with pytest.raises(ValueError, match="No tensor of the weights has several axes"):
        random_plane({"bias": torch.ones(3)})
    loss, _ = quadratic(4)
    plane = plane_through([a, b, c])
    with pytest.raises(ValueError, match="points must be at least 2, got 1"):
        loss_plane(plane, Task(linear(4), DATA, loss), grid=PlaneGrid(points=1))
    with pytest.raises(ValueError, match="extent must be"):
        loss_plane(
            plane, Task(linear(4), DATA, loss), grid=PlaneGrid(extent=((1.0, 0.0), (0.0, 1.0)))
        )


def test_a_run_that_spans_no_plane_is_told():
    a, b, _ = places(3, 4)
    with pytest.raises(ValueError, match="needs three snapshots or more, got 2"):
        trajectory_plane(Trajectory.from_weights([a, b]))
    line = Trajectory.line(a, b, stages=4)
    with pytest.raises(ValueError, match="moves on a straight line: measure the loss along"):
        trajectory_plane(line)
    with pytest.raises(ValueError, match="No weight ever moves"):
        trajectory_plane(Trajectory.from_weights([a, a, a]))
    broken = {"weight": b["weight"] * torch.nan}
    with pytest.raises(ValueError, match="NaN or an infinity in 'weight' at step 1"):
        trajectory_plane(Trajectory.from_weights([a, broken, b]))


def test_planes_of_complex_weights_have_complex_directions():
    torch.manual_seed(0)
    points = torch.randn(5, 3, 2, dtype=torch.complex64)
    run, parts = (
        Trajectory.from_weights([{"w": value} for value in values])
        for values in (points, torch.view_as_real(points))
    )
    found, expected = trajectory_plane(run), trajectory_plane(parts)
    torch.testing.assert_close(found.path, expected.path)
    for one, other in zip(found.directions, expected.directions, strict=True):
        torch.testing.assert_close(torch.view_as_real(one["w"]), other["w"])
    drawn = random_plane({"w": points[0]}).first["w"]
    assert drawn.imag.abs().min() > 0
    torch.testing.assert_close(drawn.norm(dim=1), points[0].norm(dim=1))
