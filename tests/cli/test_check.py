"""`slipstream check`, and how the steps of imported checkpoints are given."""

import json

import torch

from commands import slipstream
from slipstream.trajectory import Layout, Trajectory, create_run


def test_check_names_what_is_damaged(tmp_path):
    weights = {"w": torch.ones(8)}
    with create_run(tmp_path / "run", model=Layout.of_weights(weights)) as writer:
        for step in range(3):
            writer.append(step=step, weights=weights)
    assert "3 snapshots, all as they were written" in slipstream("check", tmp_path / "run").stdout
    file = tmp_path / "run" / "snapshots" / "00000001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    done = slipstream("check", tmp_path / "run", code=1)
    assert "step 1" in done.stdout
    assert "checksum" in done.stdout
    described = json.loads(slipstream("check", tmp_path / "run", "--json", code=1).stdout)
    assert (described["snapshots"], len(described["problems"])) == (3, 1)


def test_the_step_of_a_file_can_be_given(tmp_path):
    (tmp_path / "files").mkdir()
    for number, name in enumerate(("best.pt", "last.pt")):
        torch.save({"w": torch.full((2,), float(number))}, tmp_path / "files" / name)
    refused = slipstream("import", tmp_path / "files", "-o", tmp_path / "run", code=2)
    assert "--step" in refused.stderr
    given = ("--step", "best.pt=500", "--step", "last.pt=900")
    slipstream("import", tmp_path / "files", "-o", tmp_path / "run", *given)
    assert Trajectory.open(tmp_path / "run").steps == [500, 900]
    refused = slipstream("import", tmp_path / "files", "-o", "x", "--step", "best", code=2)
    assert "--step must be NAME=N" in refused.stderr
