"""A flipped bit anywhere in a run is noticed, and a hostile run is a one-line error."""

import json
import os
import shutil

import pytest
import torch
from recorded_networks import on_posix

from slipstream.storage.strict_json import checked_json, read_checked_json
from slipstream.trajectory import Layout, Trajectory, check_run, create_run, read_run
from slipstream.trajectory.run_index import lines_in


@pytest.fixture
def run(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = [{"w": torch.randn(20, generator=generator), "n": torch.tensor(t)} for t in range(3)]
    with create_run(tmp_path / "run", model=Layout.of_weights(weights[0])) as writer:
        for step, one in enumerate(weights):
            writer.append(step=step, weights=one, epoch=step, metrics={"loss": 1 / (step + 1)})
        writer.amend(metrics={"accuracy": 0.5})
    return tmp_path / "run"


def content(path):
    found = read_run(path)
    trajectory = Trajectory.open(path)
    values = [{n: v.tolist() for n, v in s.weights.items()} for s in trajectory]
    told = [(s.step, s.epoch, dict(s.metrics)) for s in trajectory]
    return found.description, values, told


@pytest.mark.parametrize("file", ["run.json", "snapshots.jsonl", "snapshots/00000001.safetensors"])
def test_flipped_bits_are_never_silent(run, tmp_path, file):
    right = content(run)
    whole = (run / file).read_bytes()
    generator = torch.Generator().manual_seed(1)
    bits = torch.randperm(8 * len(whole), generator=generator)[:250].tolist()
    silent = []
    for number, bit in enumerate(bits):
        other = tmp_path / f"copy{number}"  # another name: what was verified is remembered
        shutil.copytree(run, other)
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (other / file).write_bytes(flipped)
        try:
            if content(other) != right:
                silent.append(bit)
        except (OSError, ValueError):
            pass
        shutil.rmtree(other)
    assert silent == []


def test_check_run_reads_the_values(run):
    assert check_run(run) == []
    file = run / "snapshots" / "00000001.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    (problem,) = check_run(run)
    assert "step 1" in problem
    assert "checksum" in problem


def test_metrics_that_came_later_belong_to_the_last_snapshot(run):
    assert Trajectory.open(run)[2].metrics == {"loss": 1 / 3, "accuracy": 0.5}


def test_half_a_line_at_the_end_is_ignored_and_no_more(run):
    whole = (run / "snapshots.jsonl").read_bytes()
    (run / "snapshots.jsonl").write_bytes(whole + whole[:40])
    assert len(lines_in(run)) == 4
    (run / "snapshots.jsonl").write_bytes(whole[:-1] + b"\x0b")
    with pytest.raises(ValueError, match=r"Line 4 .* is damaged"):
        read_run(run)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/hostname", "snapshots/../../x"])
def test_an_index_that_leads_outside_is_refused(run, file):
    line = {"step": 3, "epoch": None, "files": [file], "bytes": 1, "metrics": {}, "prefix": ""}
    with (run / "snapshots.jsonl").open("a") as index:
        index.write(json.dumps(line) + "\n")
    with pytest.raises(OSError, match="lies outside the run"):
        Trajectory.open(run)[-1].state_dict()


@on_posix
def test_a_pipe_is_not_waited_for(run):
    file = run / "snapshots" / "00000001.safetensors"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(OSError, match="not a regular file"):
        Trajectory.open(run)[1].state_dict()
    assert "not a regular file" in check_run(run)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"format": True},
        {
            "model": {
                "class": "",
                "aliases": {},
                "tensors": {"w": {"shape": [[2]], "dtype": "bool"}},
            }
        },
        {"model": {"class": "", "aliases": {}, "tensors": {"w": {"shape": [-1], "dtype": "bool"}}}},
        {
            "model": {
                "class": "",
                "aliases": {},
                "tensors": {"w": {"shape": [1], "dtype": ["bool"]}},
            }
        },
        {
            "model": {
                "class": "",
                "aliases": {},
                "tensors": {"w": {"shape": [1 << 40, 1 << 40], "dtype": "bool"}},
            }
        },
        {"model": {"class": "", "aliases": [], "tensors": []}},
        {"model": {"class": "", "aliases": {"v": "w"}, "tensors": {}}},
        {"configuration": []},
        {"provenance": None},
        {"provenance": {"linked": "/"}},
        {"provenance": {"imported": []}},
        {"provenance": {"imported": {"source": 3}}},
        {"companions": "*"},
    ],
)
def test_a_hostile_description_is_a_value_error(run, change):
    description = read_checked_json((run / "run.json").read_bytes())
    (run / "run.json").write_bytes(checked_json(description | change))
    with pytest.raises(ValueError, match=r"run\.json cannot be read: .*"):
        Trajectory.open(run)


def test_a_number_that_no_float_holds_is_damage(run):
    with (run / "snapshots.jsonl").open("a") as index:
        index.write('{"amends": 2, "epoch": null, "metrics": {"loss": 1' + "0" * 400 + "}}\n")
    with pytest.raises(ValueError, match="line 5 is damaged"):
        read_run(run)


@pytest.mark.parametrize(
    "change", [{"step": True}, {"bytes": True}, {"files": ["snapshots/a", "snapshots/a"]}]
)
def test_an_entry_that_no_recorder_writes_is_damage(run, change):
    line = {"step": 9, "epoch": None, "files": ["x"], "bytes": 1, "metrics": {}, "prefix": ""}
    with (run / "snapshots.jsonl").open("ab") as index:
        index.write(checked_json(line | change))
    with pytest.raises(ValueError, match="line 5 is damaged"):
        read_run(run)


def test_no_memory_is_taken_for_what_no_file_holds(run):
    description = read_checked_json((run / "run.json").read_bytes())
    description["model"]["tensors"]["w"]["shape"] = [10**18]
    (run / "run.json").write_bytes(checked_json(description))
    with pytest.raises(OSError, match="expected"):
        Trajectory.open(run)["w"]
