"""The result itself: reading, permuting, saving, and what the file holds."""

import json

import pytest
import torch
from moving_runs import moving_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cases import CASES
from slipstream.evaluation import weights_in
from slipstream.modes import Modes, fit_modes
from slipstream.report.figures import plot_correlations, plot_references
from slipstream.symmetry.neuron_groups import Block, NeuronGroup, NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.weights import clone, displace, weights_of


@pytest.fixture
def modes():
    run, _ = moving_run(noise=0.3)
    rows = [s.weights | {"count": torch.tensor(t)} for t, s in enumerate(run)]
    return fit_modes(Trajectory.from_weights(rows, steps=range(0, 200, 10)), modes=3)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_reading_by_step_by_references_and_as_a_trajectory(modes):
    run = modes.trajectory()
    assert run.steps == list(range(0, 200, 10))
    assert run.names == tuple(modes.layout.tensors)
    weights = modes.weights_at(40)
    for name in modes.names:
        a, b, at = modes.a[name], modes.b[name], modes.assignment[name].long()
        torch.testing.assert_close(weights[name], (a * modes.references[at, 4] + b).float())
    assert weights["count"] == 4
    assert same(run.at(40).weights, weights)
    assert torch.equal(run["count"], torch.arange(20))
    assert torch.equal(run["first.weight"][4], weights["first.weight"])
    assert torch.equal(
        run.part("first.weight", start=3, stop=9)[4], weights["first.weight"].flatten()[3:9]
    )
    between = modes.weights_from(modes.references[:, 4:6].mean(1))
    expected = (weights["first.bias"] + modes.weights_at(50)["first.bias"]) / 2
    torch.testing.assert_close(between["first.bias"], expected)
    assert between["count"] == 19
    with pytest.raises(KeyError, match="Step 44 was not decomposed; the nearest is 40"):
        modes.weights_at(44)
    with pytest.raises(ValueError, match=r"references must be 3 values, .* got shape \(2,\)"):
        modes.weights_from(torch.zeros(2))


def test_saved_and_loaded_is_the_same(modes, tmp_path):
    modes.save(tmp_path / "modes.safetensors")
    again = Modes.load(tmp_path / "modes.safetensors")
    assert again.layout == modes.layout
    assert again.steps == modes.steps
    for kind in ("assignment", "a", "b", "kept"):
        assert same(getattr(again, kind), getattr(modes, kind))
    for name in ("references", "motion", "explained", "samples", "sample_modes"):
        assert torch.equal(getattr(again, name), getattr(modes, name))
    assert repr(again) == repr(modes)
    assert [file.name for file in tmp_path.iterdir()] == ["modes.safetensors"]
    assert modes.nbytes < (tmp_path / "modes.safetensors").stat().st_size < modes.nbytes + 4000


def test_without_samples_it_is_smaller_and_reconstructs_the_same(modes, tmp_path):
    modes.save(tmp_path / "whole.safetensors")
    modes.save(tmp_path / "small.safetensors", samples=False)
    whole, small = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("whole", "small"))
    assert whole - small >= modes.samples.nbytes
    again = Modes.load(tmp_path / "small.safetensors")
    assert same(again.weights_at(30), modes.weights_at(30))
    assert again.samples.shape == (0, 20)
    with pytest.raises(ValueError, match="saved without samples"):
        plot_correlations(again)
    assert len(plot_references(again).axes) == 3


def test_the_file_is_pinned(modes, tmp_path):
    path = tmp_path / "modes.safetensors"
    modes.save(path)
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["slipstream.modes"])
        names = sorted(file.keys())
    assert described == {
        "format": 1, "steps": list(modes.steps), "layout": modes.layout.to_json(),
    }  # fmt: skip
    tensors = ["first.bias", "first.weight", "second.weight"]
    single = ["references", "motion", "explained", "samples", "sample_modes"]
    by_name = [f"{kind}:{name}" for kind in ("assignment", "a", "b") for name in tensors]
    assert names == sorted([*single, *by_name, "kept:count"])


def test_a_file_that_holds_no_modes_is_told(modes, tmp_path):
    path = tmp_path / "modes.safetensors"
    with pytest.raises(FileNotFoundError, match=r"modes\.safetensors"):
        Modes.load(path)
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"modes\.safetensors holds no modes"):
        Modes.load(path)
    modes.save(path)
    whole, text = load_file(path), path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    newer = json.loads(metadata["slipstream.modes"]) | {"format": 2}
    save_file(whole, path, metadata={"slipstream.modes": json.dumps(newer)})
    with pytest.raises(ValueError, match="is of format 2, newer than 1"):
        Modes.load(path)
    for lost, message in (("b:first.bias", "'first.bias'"), ("motion", "'motion'")):
        save_file({n: v for n, v in whole.items() if n != lost}, path, metadata=metadata)
        with pytest.raises(ValueError, match=f"is damaged: .*{message}"):
            Modes.load(path)
    path.write_bytes(text[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        Modes.load(path)


@pytest.mark.parametrize("case", ["residual", "grouped_conv"])
def test_permuted_modes_are_the_modes_of_the_permuted_run(case):
    case = CASES[case]
    model = case.model()
    start, generator = clone(weights_of(model)), torch.Generator().manual_seed(0)
    moves = [
        {
            n: torch.randn(v.shape, generator=generator)
            for n, v in start.items()
            if v.is_floating_point()
        }
        for _ in range(2)
    ]
    rows = [
        displace(displace(start, moves[0], scale=t / 5), moves[1], scale=t * t / 60)
        for t in range(6)
    ]  # fmt: skip
    modes = fit_modes(Trajectory.from_weights(rows), modes=4)
    groups = find_neuron_groups(model, case.inputs())
    source_to_target = Permutation.random(groups, seed=3)
    moved = modes.permuted(source_to_target)
    for step in modes.steps:
        expected = source_to_target.apply(modes.weights_at(step))
        assert same(moved.weights_at(step), expected)
    assert not same(moved.weights_at(2), modes.weights_at(2))
    with weights_in(model.eval(), modes.weights_at(2)):
        before = model(case.inputs())
    with weights_in(model, moved.weights_at(2)):
        torch.testing.assert_close(model(case.inputs()), before)


def test_where_a_neuron_changes_its_sign_so_do_a_and_b():
    run, _ = moving_run(shapes={"w": (5, 3), "bias": (5,)}, noise=0.3)
    modes = fit_modes(run, modes=3)
    blocks = [Block(name, 0, 0, ("units",), signs=("units",)) for name in run.names]
    groups = NeuronGroups((NeuronGroup("units", 5, signed=True),), tuple(blocks), run.shapes)
    source_to_target = Permutation.random(groups, seed=2)
    assert -1 in source_to_target.signs["units"]
    moved = modes.permuted(source_to_target)
    assert same(moved.weights_at(7), source_to_target.apply(modes.weights_at(7)))
