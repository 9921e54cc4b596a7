"""What a decomposition finds: closed forms, invariances, and the paper's plain algorithm."""

import numpy as np
import pytest
import torch
from moving_runs import curves, moving_run

from oracles import plain_modes
from slipstream.modes import OnlineModes, fit_modes
from slipstream.modes.embedded import EmbeddedModes
from slipstream.modes.grouping import combinations, group_rows, standardised
from slipstream.modes.sampling import draw, rows_of
from slipstream.trajectory import Layout, Trajectory, create_run

GROUPINGS = ("complete", "average", "k-means")
REFERENCES = ("member", "component")


def flat(trajectory):
    """(weights, steps), float64."""
    return torch.cat([trajectory[name].flatten(1) for name in trajectory.names], 1).double().T


def modelled(modes):
    return flat(modes.trajectory())


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_run_of_three_modes_is_explained_by_three(grouping, reference):
    run, truth = moving_run()
    found = fit_modes(run, modes=3, reference=reference, grouping=grouping)
    assert found.share == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(modelled(found), flat(run), rtol=1e-5, atol=1e-5)
    pairs = {
        pair
        for name, (mode, _, _) in truth.items()
        for pair in zip(
            mode.flatten().tolist(), found.assignment[name].flatten().tolist(), strict=True
        )
    }
    assert len(pairs) == 3, "weights are in one mode if and only if they were made so"
    assert fit_modes(run, modes=2, reference=reference, grouping=grouping).share < 0.99


def test_slopes_and_offsets_are_those_of_the_curves():
    run, truth = moving_run(dtype=torch.float64)
    found = fit_modes(run, modes=3)
    curve = curves(20)
    for name, (mode, a, b) in truth.items():
        mean, deviation = curve.mean(1)[mode], curve.std(1, correction=0)[mode]
        torch.testing.assert_close(found.a[name].abs(), (a * deviation).abs())
        torch.testing.assert_close(found.b[name], a * mean + b)


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_it_is_the_papers_algorithm(noise):
    run, _ = moving_run(noise=noise, dtype=torch.float64, steps=15)
    rows = flat(run)
    positions = draw({name: run[name][0].numel() for name in run.names}, 30, seed=5)
    starts = np.cumsum([0] + [run[name][0].numel() for name in run.names])
    sampled = np.concatenate(
        [at.numpy() + start for at, start in zip(positions.values(), starts, strict=False)]
    )
    assert torch.equal(rows_of(run, positions), rows[sampled])
    references, mode, slope, offset = plain_modes.decompose(rows.numpy(), 4, sampled)
    found = fit_modes(run, modes=4, samples=30, seed=5)
    expected = slope[:, None] * np.array(references)[mode] + offset[:, None]
    np.testing.assert_allclose(modelled(found).numpy(), expected, rtol=0, atol=1e-12)
    own = torch.cat([found.assignment[name].flatten() for name in found.names]).numpy()
    assert len(set(zip(own.tolist(), mode.tolist(), strict=True))) == 4


def test_float32_is_as_good_as_float64_under_large_offsets(monkeypatch):
    run, _ = moving_run(offset=1000.0, noise=0.3, steps=50)
    double = Trajectory.from_weights(
        [{name: value.double() for name, value in snapshot.weights.items()} for snapshot in run]
    )
    # A run of usual strips would have to be large to have several.
    monkeypatch.setattr("slipstream.modes.statistics._STRIP", 50 * 4 * 7)
    single, exact = (fit_modes(r, modes=3, reference="component") for r in (run, double))
    for name in single.names:
        assert torch.equal(single.assignment[name], exact.assignment[name])
        torch.testing.assert_close(single.a[name].double(), exact.a[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(single.b[name].double(), exact.b[name], rtol=1e-7, atol=0)
    torch.testing.assert_close(single.motion, exact.motion, rtol=1e-5, atol=0)
    assert single.share == pytest.approx(exact.share, abs=1e-6)


@pytest.mark.parametrize("reference", REFERENCES)
def test_it_is_an_average_of_snapshots_with_one_kernel_for_each_mode(reference):
    run, _ = moving_run(noise=0.5, dtype=torch.float64)
    found = fit_modes(run, modes=4, reference=reference)
    r = found.references
    kernels = 1 / len(run) + r[:, :, None] * r[:, None, :] / r.square().sum(1)[:, None, None]
    torch.testing.assert_close(kernels.sum(2), torch.ones_like(r), rtol=0, atol=1e-12)
    for name in found.names:
        own = kernels[found.assignment[name].long()]  # (*shape, t, s)
        averaged = torch.einsum("...ts,s...->t...", own, run[name])
        torch.testing.assert_close(found.trajectory()[name], averaged, rtol=0, atol=1e-10)


def test_shares_are_of_the_squared_moves():
    run, _ = moving_run(noise=0.5, dtype=torch.float64)
    found = fit_modes(run, modes=3)
    rows = flat(run)
    residuals = rows - modelled(found)
    total = (rows - rows.mean(1, keepdim=True)).square().sum()
    assert float(found.motion.sum()) == pytest.approx(float(total))
    assert found.share == pytest.approx(1 - float(residuals.square().sum() / total))
    assert found.relative_error == pytest.approx((1 - found.share) ** 0.5)
    assert float(found.share_by_mode().sum()) == pytest.approx(found.share)
    for name, share in found.share_by_tensor().items():
        own, left = run[name], run[name] - found.trajectory()[name]
        assert share == pytest.approx(
            1 - float(left.square().sum() / (own - own.mean(0)).square().sum())
        )


def test_blocks_and_strips_do_not_change_it(monkeypatch, tmp_path):
    run, _ = moving_run(noise=0.5)
    with create_run(tmp_path / "run", model=run.layout) as writer:
        for snapshot in run:
            writer.append(step=snapshot.step, weights=snapshot.weights)
    whole = fit_modes(run, modes=3)
    # A run of usual blocks and strips would have to be large to have several.
    monkeypatch.setattr("slipstream.trajectory.trajectory._BLOCK", 20 * 4 * 7)
    # And strips that end inside of a block.
    monkeypatch.setattr("slipstream.modes.statistics._STRIP", 20 * 4 * 3)
    parts = fit_modes(Trajectory.open(tmp_path / "run"), modes=3)
    for name in whole.names:
        torch.testing.assert_close(parts.a[name], whole.a[name])
        torch.testing.assert_close(parts.b[name], whole.b[name])
        assert torch.equal(parts.assignment[name], whole.assignment[name])


def test_what_follows_no_mode_is_kept_exactly():
    run, _ = moving_run(shapes={"w": (8,)})
    rows = [
        snapshot.weights
        | {
            "frozen": torch.full((3,), 0.1),
            "half": torch.full((3,), 0.1).index_fill(0, torch.tensor([1]), 0.1 * t),
            "norm.running_var": torch.full((2,), 1.0 + t),
            "count": torch.tensor(t),
        }
        for t, snapshot in enumerate(run)
    ]
    found = fit_modes(Trajectory.from_weights(rows), modes=3)
    assert found.names == ("w", "half")
    for t, row in enumerate(rows):
        weights = found.weights_at(t)
        assert list(weights) == list(row)
        for name in ("frozen", "norm.running_var", "count"):
            assert torch.equal(weights[name], row[name])
        assert torch.equal(weights["half"][::2], row["half"][::2])
    assert [len(found.kept[name]) for name in found.kept] == [1, 20, 20]


def test_half_precision_is_modelled_in_single():
    run, _ = moving_run(dtype=torch.bfloat16)
    found = fit_modes(run, modes=3)
    assert found.a["first.bias"].dtype == torch.float32
    assert found.weights_at(3)["first.bias"].dtype == torch.bfloat16


def test_more_modes_than_a_byte_can_count():
    run, _ = moving_run(shapes={"w": (400,)}, noise=1.0, steps=12)
    found = fit_modes(run, modes=300, grouping="k-means")
    assert found.assignment["w"].dtype == torch.int16
    assert int(found.assignment["w"].max()) > 256
    torch.testing.assert_close(found.trajectory()["w"].mean(0), run["w"].mean(0))


def test_frozen_tensors_do_not_take_the_sample():
    run, _ = moving_run(shapes={"w": (30,)})
    rows = [s.weights | {f"frozen{i}": torch.ones(100) for i in range(9)} for s in run]
    assert len(fit_modes(Trajectory.from_weights(rows), modes=3, samples=20).samples) == 20


def test_half_of_the_sample_is_spread_evenly_and_half_by_size():
    sizes = {"tiny": 3, "small": 100, "large": 10_000}
    drawn = draw(sizes, 1000, seed=0)
    counts = {name: len(positions) for name, positions in drawn.items()}
    assert sum(counts.values()) == 1000
    assert counts["tiny"] == 3
    assert 90 <= counts["small"] <= 100
    for name, positions in drawn.items():
        assert torch.equal(positions, positions.unique())
        assert int(positions.max()) < sizes[name]
    even = {name: len(p) for name, p in draw({"a": 10**6, "b": 10**5}, 1100, seed=0).items()}
    assert even == {"a": 275 + 500, "b": 275 + 50}
    assert {n: len(p) for n, p in draw(sizes, 10**6, seed=0).items()} == sizes
    again, other = draw(sizes, 1000, seed=0), draw(sizes, 1000, seed=1)
    assert all(torch.equal(again[name], drawn[name]) for name in sizes)
    assert not torch.equal(other["large"], drawn["large"][: len(other["large"])])


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_groups_ignore_sign_scale_and_offset(grouping):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    scale = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    moved = standardised(rows * scale + 5 * scale)
    first = group_rows(standardised(rows), 5, grouping=grouping)
    assert torch.equal(first, group_rows(moved, 5, grouping=grouping))
    counts = torch.bincount(first)
    assert len(counts) == 5
    assert torch.equal(counts, counts.sort(descending=True).values)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_as_many_groups_as_asked_for_even_of_equal_rows(grouping):
    rows = standardised(torch.arange(6.0).double().expand(9, 6))
    assert len(torch.bincount(group_rows(rows, 4, grouping=grouping))) == 4


def test_a_component_explains_its_group_best():
    generator = torch.Generator().manual_seed(0)
    rows = standardised(torch.randn(30, 8, generator=generator, dtype=torch.float64))
    labels = torch.arange(30) % 2
    found = combinations(rows, labels, reference="component") @ rows
    torch.testing.assert_close(found.square().mean(1), torch.ones(2, dtype=torch.float64))
    for mode in range(2):
        own = rows[labels == mode]
        best = torch.linalg.eigvalsh(own.T @ own / 8)[-1]
        assert float((own @ found[mode] / 8).square().sum()) == pytest.approx(float(best))
    member = combinations(rows, labels, reference="member")
    assert torch.equal(member.sum(1), torch.ones(2, dtype=torch.float64))


# bad input


def spoilt(value, step, name="first.weight"):
    run, _ = moving_run()
    rows = [snapshot.weights for snapshot in run]
    rows[step] = rows[step] | {name: rows[step][name].clone()}
    rows[step][name].view(-1)[2] = value
    return Trajectory.from_weights(rows, steps=range(0, 200, 10))


@pytest.mark.parametrize("samples", [5, 1000])
@pytest.mark.parametrize("step", [0, 7, 10, 19])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_nan_is_told_with_tensor_and_step(value, step, samples):
    with pytest.raises(ValueError, match=f"'first.weight' at step {10 * step}: "):
        fit_modes(spoilt(value, step), modes=2, samples=samples)


def test_bad_input_is_told():
    run, _ = moving_run()
    still = Trajectory.from_weights([{"w": torch.ones(5)}] * 4)
    for arguments, message in [
        ((run[:2], {}), "The run has 2 snapshots; modes need at least 3"),
        ((still, {}), "No sampled weight ever moves"),
        ((Trajectory.from_weights([{"n": torch.tensor(1)}] * 3), {}), "No sampled weight ever"),
        ((run, {"modes": 9, "samples": 8}), "modes=9, but 8 of the sampled weights move"),
        ((run, {"modes": 0}), "modes=0, but"),
        ((run, {"samples": 0}), "samples must be at least 1, got 0"),
        ((run, {"reference": "mean"}), r"reference must be one of .*, got 'mean'"),
        ((run, {"grouping": "ward"}), r"grouping must be one of .*, got 'ward'"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit_modes(arguments[0], **arguments[1])


def test_a_snapshot_of_other_tensors_is_told(tmp_path):
    run, _ = moving_run(shapes={"w": (4,)}, steps=4)
    with create_run(tmp_path / "run", model=Layout.of_weights(run[0].weights)) as writer:
        for snapshot in run:
            writer.append(step=snapshot.step, weights=snapshot.weights)
    with create_run(tmp_path / "other", model=Layout.of_weights({"v": torch.ones(3)})) as writer:
        writer.append(step=2, weights={"v": torch.ones(3)})
    name = "snapshots/00000002.safetensors"
    (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises((OSError, ValueError), match=r"step 2.*('[vw]'|checksum)"):
        fit_modes(Trajectory.open(tmp_path / "run"), modes=1)


def test_complex_weights_are_refused_in_words():
    values = torch.randn(12, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    run = Trajectory.from_weights([{"w": value} for value in values])
    with pytest.raises(ValueError, match=r"'w' is complex.*view_as_real"):
        fit_modes(run)
    layer = torch.nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"'weight' is complex"):
        OnlineModes(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'weight' is complex"):
        EmbeddedModes(layer, optimizer)
