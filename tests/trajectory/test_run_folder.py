"""The run folder: its bytes, its lock, and what it survives."""

import errno
import json
import os
import re
import subprocess
import sys
import textwrap
from io import FileIO
from pathlib import Path
from zlib import crc32

import pytest
import torch
from recorded_networks import on_posix, tied
from safetensors.torch import load_file

from slipstream.storage import reading
from slipstream.storage.tensor_file import tensor_chunks
from slipstream.trajectory import Layout, Trajectory, check_run, create_run, read_run, reopen_run
from slipstream.trajectory.run_files import rewrite_description
from slipstream.weights import weights_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)


def weights(value=0.0):
    return {"w": torch.full((2, 3), float(value)), "n": torch.tensor(int(value))}


CHECK = ', "check"'
LAYOUT = Layout.of_weights(weights())


def small_run(path, steps=(0, 10, 20)):
    with create_run(path, model=LAYOUT, configuration={"rate": 0.1}, seed=3) as writer:
        for step in steps:
            writer.append(step=step, weights=weights(step), epoch=step / 10, metrics={"loss": 1.5})
    return path


def test_the_files_are_what_format_1_says(tmp_path):
    run = small_run(tmp_path / "run")
    assert sorted(str(p.relative_to(run)) for p in run.rglob("*")) == [
        "run.json",
        "snapshots",
        "snapshots.jsonl",
        "snapshots/00000000.safetensors",
        "snapshots/00000010.safetensors",
        "snapshots/00000020.safetensors",
    ]
    description = json.loads((run / "run.json").read_text())
    assert list(description) == [
        "format", "created", "model", "configuration", "seed", "provenance", "versions", "check",
    ]  # fmt: skip
    assert description["format"] == 1
    assert description["model"] == {
        "class": "",
        "tensors": {
            "w": {"shape": [2, 3], "dtype": "float32"},
            "n": {"shape": [], "dtype": "int64"},
        },
        "aliases": {},
    }
    assert (description["configuration"], description["seed"]) == ({"rate": 0.1}, 3)
    assert list(description["versions"]) == ["slipstream", "torch", "python"]
    size = (run / "snapshots/00000010.safetensors").stat().st_size
    line = (run / "snapshots.jsonl").read_text().splitlines()[1]
    check = f"{crc32(line.partition(CHECK)[0].encode()):08x}"
    assert line == (
        '{"step": 10, "epoch": 1.0, "files": ["snapshots/00000010.safetensors"], '
        f'"bytes": {size}, "metrics": {{"loss": 1.5}}, "prefix": "", '
        f'"checksums": ["{crc32((run / "snapshots/00000010.safetensors").read_bytes()):08x}"], '
        f'"check": "{check}"}}'
    )
    assert load_file(run / "snapshots/00000010.safetensors")["w"].tolist() == [[10.0] * 3] * 2


def test_a_folder_of_format_1_opens_whatever_wrote_it(tmp_path):
    """Bytes as version 0.1 wrote them: never change this test, only add to it."""
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "run.json").write_bytes(
        b'{"format": 1, "created": "2026-11-21T20:00:00+00:00", "model": {"class": "torch.nn.'
        b'modules.linear.Linear", "tensors": {"weight": {"shape": [1, 2], "dtype": "float32"}, '
        b'"bias": {"shape": [1], "dtype": "bfloat16"}}, "aliases": {"again": "weight"}}, '
        b'"configuration": {}, "seed": null, "provenance": {}, "versions": {}}'
    )
    (tmp_path / "snapshots.jsonl").write_bytes(
        b'{"step": 4, "epoch": null, "files": ["snapshots/00000004.safetensors"], '
        b'"bytes": 154, "metrics": {}, "prefix": ""}\n'
    )
    header = (
        b'{"__metadata__":{"format":"pt"},"weight":{"dtype":"F32","shape":[1,2],'
        b'"data_offsets":[0,8]},"bias":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]}}'
    )
    header += b" " * (-len(header) % 8)
    numbers = b"\x00\x00\x80\x3f\x00\x00\x00\xc0" + b"\xc0\x3f"
    (tmp_path / "snapshots/00000004.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + numbers
    )
    run = Trajectory.open(tmp_path)
    assert run.steps == [4]
    assert run[0].weights["weight"].tolist() == [[1.0, -2.0]]
    assert run["again"].tolist() == [[[1.0, -2.0]]]
    assert run["bias"].tolist() == [[1.5]]
    assert check_run(tmp_path) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_dtype_is_cast(tmp_path, dtype):
    value = (torch.randn(5, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    with create_run(tmp_path / "run", model=Layout.of_weights({"w": value})) as writer:
        writer.append(step=0, weights={"w": value})
        with pytest.raises(ValueError, match=r"step 1: the tensor 'w' is \(5,\) complex64"):
            writer.append(step=1, weights={"w": value.to(torch.complex64)})
    run = Trajectory.open(tmp_path / "run")
    for read in (run[0].weights["w"], run["w"][0]):
        assert read.dtype == dtype
        assert torch.equal(read, value)


def test_one_tensor_is_read_without_touching_the_others(tmp_path, monkeypatch):
    held = {"w": torch.zeros(100_000), "n": torch.arange(10)}
    with create_run(tmp_path / "run", model=Layout.of_weights(held)) as writer:
        for step in range(3):
            writer.append(step=step, weights=held)
    counts = []

    class Counting(FileIO):
        def read(self, size=-1):
            counts.append(len(data := super().read(size)))
            return data

        def readinto(self, buffer):
            counts.append(super().readinto(buffer))
            return counts[-1]

    monkeypatch.setattr(reading, "FileIO", Counting)
    assert Trajectory.open(tmp_path / "run")["n"].tolist() == [list(range(10))] * 3
    assert 3 * held["n"].nbytes < sum(counts) < 3 * (held["n"].nbytes + 300)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux what is in memory")
def test_a_snapshot_is_mapped_and_not_read(tmp_path):
    held = {"w": torch.ones(1_000_000)}
    with create_run(tmp_path / "run", model=Layout.of_weights(held)) as writer:
        writer.append(step=0, weights=held)

    def resident():
        entry = Path("/proc/self/smaps").read_text().split(str(tmp_path))[1]
        return int(re.search(r"Rss: *(\d+) kB", entry)[1])

    weights = Trajectory.open(tmp_path / "run")[0].weights
    assert resident() == 0
    assert weights["w"].sum() == 1_000_000
    assert resident() >= 3900


def test_opening_reads_no_snapshot(tmp_path):
    run = small_run(tmp_path / "run")
    for file in (run / "snapshots").iterdir():
        file.unlink()
    assert Trajectory.open(run)[1:].resample(2).steps == [10, 20]


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage", "other layout"])
def test_a_damaged_snapshot_is_named_and_the_rest_is_readable(tmp_path, damage):
    run = small_run(tmp_path / "run")
    file = run / "snapshots/00000010.safetensors"
    content = {
        "missing": None,
        "truncated": file.read_bytes()[:-1],
        "garbage": b"\x99" * 200,
        "other layout": b"".join(tensor_chunks({"w": torch.zeros(3, 2), "n": torch.tensor(0)})),
    }[damage]
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    trajectory = Trajectory.open(run)
    assert trajectory[::2]["w"][:, 0, 0].tolist() == [0, 20]
    assert trajectory[2].weights["n"].item() == 20
    for read in (lambda: trajectory[1].weights, lambda: trajectory["w"]):
        with pytest.raises(OSError, match=r"step 10 cannot be read: .*00000010.safetensors"):
            read()
    (problem,) = check_run(run)
    assert "step 10" in problem


def test_half_a_line_is_ignored_and_cut_off_when_reopened(tmp_path):
    run = small_run(tmp_path / "run")
    whole = (run / "snapshots.jsonl").read_bytes()
    with (run / "snapshots.jsonl").open("ab") as index:
        index.write(whole.splitlines()[0][:40])
    (run / "snapshots/00000030.safetensors.tmp").write_bytes(b"half")
    (run / "transfer.json").write_text("{}")
    assert Trajectory.open(run).steps == [0, 10, 20]
    assert any("broken off" in problem for problem in check_run(run))
    with reopen_run(run) as writer:
        assert (run / "snapshots.jsonl").read_bytes() == whole
        writer.append(step=30, weights=weights(30))
    assert Trajectory.open(run)["n"].tolist() == [0, 10, 20, 30]
    assert check_run(run) == []
    assert (run / "transfer.json").exists()


def test_reopening_at_an_earlier_step_drops_what_came_after(tmp_path):
    run = small_run(tmp_path / "run")
    with reopen_run(run, keep_through=15) as writer:
        assert writer.last_step == 10
        writer.append(step=16, weights=weights(16))
    assert Trajectory.open(run).steps == [0, 10, 16]
    assert check_run(run) == []


def test_steps_grow_and_the_layout_stays(tmp_path):
    with create_run(tmp_path / "run", model=LAYOUT) as writer:
        writer.append(step=5, weights=weights())
        with pytest.raises(ValueError, match="step must grow: 5 comes after 5"):
            writer.append(step=5, weights=weights())
        with pytest.raises(ValueError, match=r"'w' is \(3, 2\) float32, expected \(2, 3\)"):
            writer.append(step=6, weights=weights() | {"w": torch.zeros(3, 2)})
    assert Trajectory.open(tmp_path / "run").steps == [5]


def test_what_is_there_is_not_overwritten(tmp_path):
    run = small_run(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"already holds a run: .* resume .* overwrite=True"):
        create_run(run, model=LAYOUT)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"is not empty \(it holds mine.txt\)"):
            create_run(tmp_path / "notes", model=LAYOUT, overwrite=overwrite)
    (run / "averaged.safetensors").write_text("mine")
    for name in ("transfer.json", "permutations/00000001.safetensors", "ticket.safetensors"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("of the old run")
    with create_run(run, model=LAYOUT, overwrite=True) as writer:
        writer.append(step=7, weights=weights(7))
    assert Trajectory.open(run).steps == [7]
    assert check_run(run) == []
    left = sorted(path.name for path in run.iterdir())
    assert left == ["averaged.safetensors", "run.json", "snapshots", "snapshots.jsonl"]


def test_two_writers_on_one_folder(tmp_path):
    run = small_run(tmp_path / "run")
    with reopen_run(run):
        for other in (
            lambda: reopen_run(run),
            lambda: create_run(run, model=LAYOUT, overwrite=True),
        ):
            with pytest.raises(BlockingIOError, match="written by another recorder"):
                other()
        assert Trajectory.open(run).steps == [0, 10, 20]
    reopen_run(run).close()


def test_what_is_no_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        read_run(tmp_path)
    run = small_run(tmp_path / "run")
    text = (run / "run.json").read_text()
    rewrite_description(run, format=3)
    with pytest.raises(ValueError, match="format 3 is newer than 2"):
        read_run(run)
    (run / "run.json").write_text(text[:50])
    with pytest.raises(ValueError, match="cannot be read"):
        read_run(run)
    (run / "run.json").write_text(text)
    (run / "snapshots.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match="Line 1 of"):
        read_run(run)
    with pytest.raises(TypeError, match="must be plain data"):
        create_run(tmp_path / "new", model=LAYOUT, configuration={"path": tmp_path})
    assert not (tmp_path / "new").exists()


class FullDisk:
    """Lets `os.fsync` fail from a chosen call on: the disk turns out to be full."""

    def __init__(self, monkeypatch, call):
        self.calls, self.call, self.real = 0, call, os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor):
        self.calls += 1
        if self.calls >= self.call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real(descriptor)


@pytest.mark.parametrize("call", [1, 2, 3])  # the snapshot, its folder, the index
def test_a_full_disk_loses_nothing_that_was_there(tmp_path, monkeypatch, call):
    run = small_run(tmp_path / "run")
    with reopen_run(run) as writer, monkeypatch.context() as patch:
        FullDisk(patch, call)
        with pytest.raises(OSError, match=r"Step 30 could not be kept in .*No space left"):
            writer.append(step=30, weights=weights(30))
    assert Trajectory.open(run)["n"].tolist() == [0, 10, 20]
    assert check_run(run) == []
    with reopen_run(run) as writer:
        writer.append(step=30, weights=weights(30))


KILL_WRITERS = textwrap.dedent(
    """
    import os, signal, sys, time, torch
    from slipstream.trajectory import Layout, create_run

    def weights(step):
        return {"w": torch.full((300, 300), float(step)), "n": torch.tensor(step)}

    for attempt in range(10):
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            writer = create_run(f"{sys.argv[1]}/{attempt}", model=Layout.of_weights(weights(0)))
            os.write(tell, b"!")
            for step in range(10**9):
                writer.append(step=step, weights=weights(step))
        os.read(ready, 1)
        time.sleep(0.003 * 1.7**attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    """
)


@on_posix
def test_killed_writers_leave_runs_that_open_and_go_on(tmp_path):
    subprocess.run([sys.executable, "-W", "ignore", "-c", KILL_WRITERS, str(tmp_path)], check=True)
    lengths = []
    for run in tmp_path.iterdir():
        trajectory = Trajectory.open(run)
        lengths.append(len(trajectory))
        assert trajectory.steps == list(range(len(trajectory)))
        assert trajectory["w"][:, 17, 23].tolist() == trajectory.steps
        assert trajectory["n"].tolist() == trajectory.steps
        with reopen_run(run) as writer:
            writer.append(step=10**6, weights={"w": torch.zeros(300, 300), "n": torch.tensor(0)})
        assert Trajectory.open(run)[-1].step == 10**6
        assert not list(run.rglob("*.tmp"))
    assert len(lengths) == 10
    assert max(lengths) > 5


def test_an_unfinished_making_can_be_repeated(tmp_path):
    (tmp_path / "snapshots.jsonl").touch()
    (tmp_path / "run.json.tmp").write_text("{")
    with create_run(tmp_path, model=tied()) as writer:
        writer.append(step=0, weights=weights_of(tied()))
    assert Trajectory.open(tmp_path).steps == [0]


def test_a_full_disk_leaves_the_old_description_in_place(tmp_path, monkeypatch):
    run = small_run(tmp_path / "run")
    before = (run / "run.json").read_bytes()
    with monkeypatch.context() as patch:
        FullDisk(patch, 1)
        with pytest.raises(OSError, match="No space left"):
            create_run(run, model=tied(), overwrite=True)
    assert (run / "run.json").read_bytes() == before
    reopen_run(run).close()
