"""`slipstream compress`: without loss, back again, and to modes."""

import json
import sys

import pytest
import torch

from commands import slipstream
from slipstream.modes import Modes, compress_to_modes
from slipstream.trajectory import Layout, Trajectory, create_run


@pytest.fixture
def run(tmp_path):
    """Weights on a line in time, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    slopes, noise = (torch.randn(200, 100, generator=generator) for _ in range(2))
    points = [{"w": slopes * step + 1e-3 * noise * (step % 2)} for step in range(30)]
    with create_run(tmp_path / "run", model=Layout.of_weights(points[0])) as writer:
        for step, weights in enumerate(points):
            writer.append(step=step, weights=weights)
    return tmp_path / "run"


def test_there_and_back(run):
    before = Trajectory.open(run)["w"]
    said = json.loads(slipstream("compress", run, "--json").stdout)
    assert (said["path"], said["replaced"]) == (str(run), 30)
    assert said["bytes_after"] < said["bytes_before"]
    assert torch.equal(Trajectory.open(run)["w"], before)
    shown = json.loads(slipstream("show", run, "--json").stdout)
    assert (shown["bytes"], shown["problems"]) == (said["bytes_after"], [])
    assert slipstream("compress", run, "--undo").stdout.startswith("30 of 30 snapshots, ")
    assert json.loads(slipstream("show", run, "--json").stdout)["bytes"] == said["bytes_before"]


def test_to_modes_with_an_error_that_is_true(run):
    said = json.loads(slipstream("compress", run, "--modes", 1, "--json").stdout)
    assert said["path"] == f"{run}.modes.safetensors"
    modelled = Modes.load(said["path"]).trajectory()["w"].double()
    exact = Trajectory.open(run)["w"].double()
    error = (modelled - exact).norm() / (exact - exact.mean(0)).norm()
    assert said["relative_error"] == pytest.approx(error.item(), rel=1e-3)
    assert 0 < said["relative_error"] < 0.01
    assert said["bytes_before"] / said["bytes_after"] > 5
    text = slipstream("compress", run, "--modes", 2, "-o", run.parent / "two").stdout
    assert "times smaller, error 0.0% of the run's motion" in text
    assert (run.parent / "two").exists()


def test_an_error_that_is_too_large_writes_nothing(run):
    path = run.parent / "modes"
    with pytest.raises(ValueError, match=r"With 1 modes the error is .* max_error=1e-06"):
        compress_to_modes(run, path, modes=1, max_error=1e-6)
    assert not path.exists()
    options = ("--modes", 1, "--max-error", "1e-6", "-o", path)
    assert "nothing was written" in slipstream("compress", run, *options, code=2).stderr
    assert not path.exists()
    assert compress_to_modes(run, path, modes=1, max_error=0.1).factor > 5


def test_a_missing_package_is_one_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    said = slipstream("compress", run, code=2).stderr
    assert said == 'Compressed runs need zstandard: pip install "slipstream[zstd]".\n'


def test_a_compressed_run_is_evaluated_averaged_and_transferred_as_before(tmp_path):
    run = tmp_path / "run"
    small = ("--width", 8, "--examples", 300, "--epochs", 4)
    slipstream("train", "mlp", *small, "--out", run)

    def said():
        return [
            json.loads(slipstream(*command, "--json").stdout)
            for command in (
                ("evaluate", run, "--step", 6),
                ("average", run, "--rule", "lawa:2", "--rule", "swa:3"),
                ("show", run),
            )
        ]

    def transferred(name):
        slipstream("transfer", run, "--seed", 1, "--stages", 2, "--out", tmp_path / name)
        return Trajectory.open(tmp_path / name)[-1].weights

    (*plain, shown), there = said(), transferred("plain")
    slipstream("compress", run)
    (*packed, shown_packed), here = said(), transferred("packed")
    assert packed == plain
    assert shown_packed["snapshots"] == shown["snapshots"]
    assert all(torch.equal(here[name], value) for name, value in there.items())
