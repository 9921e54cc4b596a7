import math

import pytest
import torch

from slipstream.dynamics import measure_motion, principal_path
from slipstream.trajectory import Layout, Trajectory, create_run


def run_of(rows, **options):
    """A run of one tensor from its rows."""
    weights = torch.as_tensor(rows, dtype=torch.float64)
    return Trajectory.from_weights([{"w": row} for row in weights], **options)


def random_run(*, snapshots=7, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"body.0.weight": (6, 5), "body.0.bias": (6,), "head.weight": (3, 6), "scale": ()}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    rows = [weights]
    for _ in range(snapshots - 1):
        rows.append({n: v + torch.randn(v.shape, generator=generator) for n, v in rows[-1].items()})
    steps = [0, 1, 3, 7, 8, 20, 21][:snapshots]
    return Trajectory.from_weights(
        [{n: v.to(dtype) for n, v in row.items()} for row in rows], steps=steps
    )


def flat(run):
    """(snapshots, weights), float64."""
    return torch.stack([torch.cat([v.flatten() for v in s.weights.values()]) for s in run]).double()


def test_a_finely_cut_circle_has_its_curvature_and_closes():
    angles = torch.linspace(0, 2 * math.pi, 181, dtype=torch.float64)
    motion = measure_motion(run_of(4 * torch.stack([angles.cos(), angles.sin()], 1)))
    torch.testing.assert_close(motion.angles, torch.full((1, 179), math.pi / 90).double())
    torch.testing.assert_close(
        motion.curvatures, torch.full((1, 179), 0.25).double(), rtol=1e-4, atol=0
    )
    assert float(motion.path_lengths) == pytest.approx(8 * math.pi, rel=1e-4)
    assert float(motion.straightness) == pytest.approx(0, abs=1e-12)
    assert float(motion.distances.max()) == pytest.approx(8)


def test_a_straight_line_at_changing_speed():
    motion = measure_motion(run_of([[0.0], [2.0], [3.0], [9.0]], steps=[0, 4, 5, 17]))
    assert motion.speeds.tolist() == [[0.5, 1.0, 0.5]]
    assert motion.cosines.tolist() == [[1.0, 1.0]]
    assert motion.curvatures.tolist() == [[0.0, 0.0]]
    assert motion.straightness.tolist() == [1.0]
    relative = motion.relative_speeds
    assert relative[0, 0].isnan()  # it started at 0
    assert relative[0, 1:].tolist() == [0.5, 0.5 / 3]


def test_there_and_back_is_half_a_turn():
    motion = measure_motion(run_of([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))
    assert float(motion.angles[0, 0]) == pytest.approx(math.pi)
    assert motion.cosines[0, 1].isnan()  # a pause has no direction
    assert motion.straightness.tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_parts_add_up_to_the_network(dtype):
    run = random_run(dtype=dtype)
    motion = measure_motion(run)
    whole = motion.combined()
    expected = measure_motion(run_of(flat(run), steps=run.steps))
    for field in ("speeds", "relative_speeds", "distances", "cosines", "angles", "curvatures"):
        torch.testing.assert_close(getattr(whole, field), getattr(expected, field))
    torch.testing.assert_close(motion.shares.sum(0), torch.ones(6).double())
    assert motion.by_layer().names == ("body.0", "head", "scale")
    torch.testing.assert_close(motion.by_layer().squared_moves[0], motion.squared_moves[:2].sum(0))
    torch.testing.assert_close(
        motion.by_layer().share, torch.stack([motion.share[:2].sum(), *motion.share[2:]])
    )


def test_a_rotation_of_all_weights_changes_nothing():
    rows = flat(random_run(dtype=torch.float64))
    turn = torch.linalg.qr(torch.randn(rows.shape[1], rows.shape[1], dtype=torch.float64)).Q
    first, second = (measure_motion(run_of(r)) for r in (rows, rows @ turn))
    torch.testing.assert_close(first.speeds, second.speeds)
    torch.testing.assert_close(first.angles, second.angles)
    paths = [principal_path(run_of(r), components=3) for r in (rows, rows @ turn)]
    torch.testing.assert_close(paths[0].coordinates, paths[1].coordinates)


def test_blocks_do_not_matter(monkeypatch):
    run = random_run()
    whole = measure_motion(run), principal_path(run)
    # A run of usual blocks would have to be large to have several.
    monkeypatch.setattr("slipstream.trajectory.trajectory._BLOCK", 100)
    cut = measure_motion(run), principal_path(run)
    torch.testing.assert_close(cut[0].squared_moves, whole[0].squared_moves)
    torch.testing.assert_close(cut[0].products, whole[0].products)
    torch.testing.assert_close(cut[1].coordinates, whole[1].coordinates)


def test_what_training_does_not_move_is_left_out_and_a_run_folder_is_read(tmp_path):
    weights = {"norm.weight": torch.ones(2), "norm.running_mean": torch.ones(2),
               "norm.num_batches_tracked": torch.tensor(0), "none": torch.ones(0)}  # fmt: skip
    with create_run(tmp_path / "run", model=Layout.of_weights(weights)) as writer:
        for step in range(3):
            moved = {n: v + step if v.is_floating_point() else v for n, v in weights.items()}
            writer.append(step=10 * step, weights=moved)
    seen = []
    motion = measure_motion(
        Trajectory.open(tmp_path / "run"), progress=lambda *piece: seen.append(piece)
    )
    assert motion.names == ("norm.weight",)
    assert motion.speeds.tolist() == [pytest.approx([math.sqrt(2) / 10] * 2)]
    assert seen == [("norm.weight", 0, 1)]


def test_the_principal_path_is_that_of_the_singular_values():
    run = random_run(dtype=torch.float64)
    rows = flat(run)
    left, values, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    path = principal_path(run, components=4)
    expected = (left * values).T[:4]
    expected = expected * expected[:, -1:].sign()
    torch.testing.assert_close(path.coordinates, expected)
    torch.testing.assert_close(path.shares, values.square()[:4] / values.square().sum())


def test_a_large_offset_does_not_drown_the_path():
    rows = torch.tensor([[0.0, 0.0], [1e-3, 0.0], [2e-3, 1e-4]], dtype=torch.float64)
    paths = [principal_path(run_of(rows + offset)) for offset in (0.0, 1e6)]
    torch.testing.assert_close(paths[0].shares, paths[1].shares, rtol=1e-5, atol=1e-7)


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="The run has 1 snapshots; motion needs at least 2"):
        measure_motion(run_of([[1.0]]))
    with pytest.raises(ValueError, match="infinity in 'w' at step 20"):
        measure_motion(run_of([[1.0], [2.0], [math.inf]], steps=[0, 10, 20]))
    with pytest.raises(ValueError, match="infinity in 'w' at step 1"):
        principal_path(run_of([[1.0], [math.nan]]), components=1)
    with pytest.raises(ValueError, match="no floating-point tensor"):
        measure_motion(Trajectory.from_weights([{"n": torch.tensor(1)}] * 2))
    with pytest.raises(ValueError, match=r"components must be from 1 to 2.*got 3"):
        principal_path(run_of([[1.0], [2.0], [4.0]]), components=3)
    with pytest.raises(ValueError, match="its path is a point"):
        principal_path(run_of([[1.0], [1.0]]), components=1)
    with pytest.raises(ValueError, match=r"parts\['a'\] names 'v', which has no motion"):
        measure_motion(run_of([[1.0], [2.0]])).merged({"a": ["v"]})


def test_a_long_random_walk_has_the_shares_that_theory_gives():
    """Of N steps in many dimensions the k-th component takes 6 / (pi k)^2 of the variance."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(150, 4000, generator=generator, dtype=torch.float64)
    path = principal_path(run_of(steps.cumsum(0)), components=3)
    expected = torch.tensor([6 / (math.pi * k) ** 2 for k in (1, 2, 3)], dtype=torch.float64)
    torch.testing.assert_close(path.shares, expected, rtol=0.05, atol=0)


def test_complex_weights_move_as_their_real_and_imaginary_parts():
    torch.manual_seed(0)
    points = torch.randn(5, 3, 2, dtype=torch.complex64)
    run, parts = (
        Trajectory.from_weights([{"w": value} for value in values])
        for values in (points, torch.view_as_real(points))
    )
    for found, expected in zip(
        vars(measure_motion(run)).values(), vars(measure_motion(parts)).values(), strict=True
    ):
        assert_same(found, expected)
    found, expected = (principal_path(one, components=3) for one in (run, parts))
    assert_same(found.coordinates, expected.coordinates)
    assert_same(found.shares, expected.shares)


def assert_same(found, expected):
    if isinstance(found, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    else:
        assert found == expected
