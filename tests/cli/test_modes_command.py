import json

import pytest
import torch

from commands import slipstream
from slipstream.modes import Modes, compare_modes, fit_modes
from slipstream.trajectory import Layout, Trajectory, create_run


@pytest.fixture
def run(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(9, 4, generator=generator), "bias": torch.zeros(4)}
    with create_run(tmp_path / "run", model=Layout.of_weights(weights)) as writer:
        for step in range(6):
            weights = {n: v + torch.randn(v.shape, generator=generator) for n, v in weights.items()}
            writer.append(step=step, weights=weights)
    return tmp_path / "run"


def test_it_says_saves_and_draws_what_the_library_finds(run, tmp_path):
    file, figure = tmp_path / "modes.safetensors", tmp_path / "modes.png"
    options = ("--modes", 3, "--reference", "component", "--grouping", "k-means", "--seed", 2)
    text = slipstream("modes", run, *options, "--compare", "--out", file, "--figure", figure)
    how = {"modes": 3, "grouping": "k-means", "seed": 2}
    found = fit_modes(Trajectory.open(run), reference="component", **how)
    assert str(found) in text.stdout
    assert str(compare_modes(Trajectory.open(run), **how)) in text.stdout
    assert torch.equal(Modes.load(file).a["w"], found.a["w"])
    assert figure.read_bytes()[1:4] == b"PNG"


def test_for_machines(run):
    said = json.loads(slipstream("modes", run, "--modes", 2, "--compare", "--json").stdout)
    found = fit_modes(Trajectory.open(run), modes=2)
    assert said["share"] == found.share
    assert sum(mode["weights"] for mode in said["modes"]) == 40
    assert sum(mode["share"] for mode in said["modes"]) == pytest.approx(found.share)
    assert said["tensors"] == found.share_by_tensor()
    assert said["rows"][0] == {
        "name": "member", "curves": 2, "numbers_per_weight": 2,
        "share": pytest.approx(found.share),
    }  # fmt: skip
    assert "rows" not in json.loads(slipstream("modes", run, "--modes", 2, "--json").stdout)


def test_mistakes_are_one_line(run):
    for options, message in [
        (("--modes", 99), "--modes 99, but 40 of the sampled weights move"),
        (("--samples", 0), "--samples must be at least 1, got 0"),
    ]:
        result = slipstream("modes", run, *options, code=2)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
