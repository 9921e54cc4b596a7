"""Compressed runs: every bit is there, whatever happens on the way."""

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from recorded_networks import on_posix
from safetensors.torch import load_file, save_file

from slipstream.storage import packed_file
from slipstream.storage.packed_header import contents_of
from slipstream.trajectory import (
    Layout,
    Trajectory,
    check_run,
    compress_run,
    compression,
    create_run,
    decompress_run,
    import_run,
    read_run,
    reopen_run,
)


def wandering(count, size=2000):
    """Weights that move a little at each step."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(size, generator=generator)
    for step in range(count):
        w = w + 1e-3 * torch.randn(size, generator=generator)
        yield {"w": w.view(40, -1), "b": w[:7].bfloat16(), "n": torch.tensor(step)}


def recorded(path, count=20):
    points = list(wandering(count))
    with create_run(path, model=Layout.of_weights(points[0])) as writer:
        for step, weights in enumerate(points):
            writer.append(step=10 * step, weights=weights, epoch=step, metrics={"loss": step})
    return path


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_whole(path, count=20):
    """Every snapshot that was recorded is there, bit by bit."""
    run = Trajectory.open(path)
    assert run.steps == [10 * step for step in range(count)]
    for snapshot, weights in zip(run, wandering(count), strict=True):
        found = snapshot.weights
        assert list(found) == list(weights)
        assert all(torch.equal(found[name], value) for name, value in weights.items())
    return run


@pytest.fixture
def run(tmp_path):
    return recorded(tmp_path / "run")


def test_a_compressed_run_reads_as_before_and_comes_back_file_by_file(run):
    before = contents(run)
    result = compress_run(run)
    assert (result.snapshots, result.replaced) == (20, 20)
    sizes = [path.stat().st_size for path in (run / "snapshots").iterdir()]
    assert {path.suffix for path in (run / "snapshots").iterdir()} == {".packed"}
    assert result.bytes_before == sum(len(v) for k, v in before.items() if "snapshots/" in k)
    assert result.bytes_after == sum(sizes) == sum(e.bytes for e in read_run(run).entries)
    assert result.share < 0.7
    trajectory = check_whole(run)
    points = list(wandering(20))
    assert torch.equal(trajectory["w"], torch.stack([p["w"] for p in points]))
    assert torch.equal(
        trajectory.part("w", start=30, stop=90),
        torch.stack([p["w"].flatten()[30:90] for p in points]),
    )
    assert torch.equal(trajectory.at(130)["b"], points[13]["b"])
    assert (trajectory[3].epoch, trajectory[3].metrics) == (3, {"loss": 3})
    assert check_run(run) == []
    back = decompress_run(run)
    assert (back.replaced, back.bytes_after) == (20, result.bytes_before)
    assert contents(run) == before


@pytest.mark.parametrize("every", [1, 3, 8])
def test_a_snapshot_is_reached_over_few_differences(run, every):
    compress_run(run, keyframe_every=every)

    def depth(path):
        base = contents_of(path).base
        return 0 if base is None else 1 + depth(path.with_name(f"{base}.packed"))

    depths = [depth(path) for path in sorted((run / "snapshots").iterdir())]
    assert depths == [position % every for position in range(20)]


def test_a_second_call_changes_nothing_and_new_snapshots_are_packed_later(run):
    compress_run(run)
    before = contents(run)
    again = compress_run(run)
    assert (again.replaced, again.share) == (0, 1)
    assert contents(run) == before
    points = list(wandering(24))
    with reopen_run(run) as writer:
        assert writer.last_step == 190
        for step in range(20, 24):
            writer.append(step=10 * step, weights=points[step], epoch=step, metrics={"loss": step})
    check_whole(run, 24)
    assert compress_run(run).replaced == 4
    check_whole(run, 24)
    decompress_run(run)
    reference = contents(recorded(run.parent / "reference", 24))
    assert {k: v for k, v in contents(run).items() if "snapshots" in k} == {
        k: v for k, v in reference.items() if "snapshots" in k
    }


def test_snapshots_are_dropped_and_runs_overwritten_with_all_their_files(run):
    compress_run(run)
    with reopen_run(run, keep_through=45):
        pass
    assert len(list((run / "snapshots").iterdir())) == 5
    check_whole(run, 5)
    with create_run(run, model=Layout.of_weights({"v": torch.zeros(1)}), overwrite=True):
        pass
    assert list((run / "snapshots").iterdir()) == []
    assert read_run(run).description["format"] == 1


def test_whoever_reads_the_run_meanwhile_reads_on(run):
    opened = Trajectory.open(run)
    compress_run(run)
    packed = Trajectory.open(run)
    for trajectory in (opened, packed):
        assert torch.equal(trajectory["n"], torch.arange(20))
        assert torch.equal(trajectory[-1].weights["w"], list(wandering(20))[-1]["w"])
    decompress_run(run)
    assert torch.equal(packed[-1].weights["w"], opened[-1].weights["w"])


def test_linked_files_of_other_tools_stay_where_they_are(tmp_path):
    points = list(wandering(3))
    for step, weights in enumerate(points):
        folder = tmp_path / "there" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        named = {f"model.{name}": value.contiguous() for name, value in weights.items()}
        save_file(named | {"other": torch.ones(3)}, folder / "model.safetensors")
    import_run(tmp_path / "there", tmp_path / "run", prefix="model.")
    there = contents(tmp_path / "there")
    compress_run(tmp_path / "run")
    assert contents(tmp_path / "there") == there
    shutil.move(tmp_path / "there", tmp_path / "gone")
    run = Trajectory.open(tmp_path / "run")
    assert sorted(run.names) == sorted(points[0])
    assert torch.equal(run["w"], torch.stack([p["w"] for p in points]))
    decompress_run(tmp_path / "run")
    for step in range(3):
        original = there[f"checkpoint-{step}/model.safetensors"]
        assert (tmp_path / "run" / "snapshots" / f"{step:08d}.safetensors").read_bytes() == original


def test_shards_are_packed_one_by_one(tmp_path):
    points = list(wandering(3))
    for step, weights in enumerate(points):
        for shard, names in enumerate((["w"], ["b", "n"])):
            save_file(
                {n: weights[n].contiguous() for n in names},
                tmp_path / f"{step}-{shard}.safetensors",
            )
    with create_run(tmp_path / "run", model=Layout.of_weights(points[0])) as writer:
        for step in range(3):
            writer.link(step=step, files=[tmp_path / f"{step}-{s}.safetensors" for s in (0, 1)])
    compress_run(tmp_path / "run")
    assert len(list((tmp_path / "run" / "snapshots").glob("*.packed"))) == 6
    run = Trajectory.open(tmp_path / "run")
    assert all(
        torch.equal(run[s].weights[n], v) for s, p in enumerate(points) for n, v in p.items()
    )
    assert torch.equal(run["b"], torch.stack([p["b"] for p in points]))
    decompress_run(tmp_path / "run")
    files = read_run(tmp_path / "run").entries[1].files
    assert [load_file(tmp_path / "run" / file).keys() for file in files] == [{"w"}, {"b", "n"}]


def test_packed_snapshots_can_be_imported(run, tmp_path):
    compress_run(run)
    import_run(run / "snapshots", tmp_path / "copy")
    shutil.rmtree(run)
    copy = Trajectory.open(tmp_path / "copy")
    assert copy.steps == [10 * step for step in range(20)]
    assert torch.equal(copy["w"][7], list(wandering(8))[7]["w"])


# what may go wrong


class Broken:
    """Lets a function fail from a chosen call on."""

    def __init__(self, real, call, error):
        self.real, self.left, self.error = real, call, error

    def __call__(self, *arguments, **options):
        self.left -= 1
        if self.left <= 0:
            raise self.error
        return self.real(*arguments, **options)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("convert", [compress_run, decompress_run])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
@pytest.mark.parametrize("call", range(1, 10))
def test_whatever_breaks_off_leaves_all_snapshots_and_the_next_call_goes_on(
    tmp_path, monkeypatch, convert, error, call
):
    run = recorded(tmp_path / "run", 4)
    before = contents(run)
    if convert is decompress_run:
        compress_run(run)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Broken(os.fsync, call, error))
        with pytest.raises(type(error)) as raised:
            convert(run)
    check_whole(run, 4)
    if error is FULL:
        assert "No space left" in str(raised.value)
    assert all("it may go" in problem for problem in check_run(run))
    convert(run)
    check_whole(run, 4)
    assert check_run(run) == []
    decompress_run(run)
    assert contents(run) == before


KILL = textwrap.dedent(
    """
    import os, signal, sys, time
    from slipstream.trajectory import compress_run, decompress_run

    def told(tell):
        return lambda done, total: os.write(tell, b"!")

    for number in range(6):
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            for _ in range(1000):
                compress_run(sys.argv[1], progress=told(tell))
                decompress_run(sys.argv[1], progress=told(tell))
        for _ in range(1 + 3 * number):
            os.read(ready, 1)
        time.sleep(0.0007 * number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    """
)


@on_posix
def test_killed_processes_leave_a_run_that_opens_and_the_next_one_goes_on(tmp_path):
    run = recorded(tmp_path / "run", 6)
    before = contents(run)
    subprocess.run([sys.executable, "-W", "ignore", "-c", KILL, str(run)], check=True)
    check_whole(run, 6)
    compress_run(run)
    check_whole(run, 6)
    assert check_run(run) == []
    assert len(list((run / "snapshots").iterdir())) == 6
    decompress_run(run)
    assert contents(run) == before


def test_what_does_not_come_back_is_not_kept(run, monkeypatch):
    before = contents(run)

    def damaged(path):
        for number, chunk in enumerate(packed_file.unpacked_chunks(path)):
            yield memoryview(bytes(chunk)[:-1] + b"?") if number == 2 else chunk

    monkeypatch.setattr(compression, "unpacked_chunks", damaged)
    with pytest.raises(OSError, match=r"Step 0 of .* what was packed is not what comes back"):
        compress_run(run)
    assert {k: v for k, v in contents(run).items() if k != "run.json"} == {
        k: v for k, v in before.items() if k != "run.json"
    }


def test_damage_is_named_and_nothing_is_lost_over_it(run):
    compress_run(run)
    victim = run / "snapshots" / "00000040.packed"
    whole = victim.read_bytes()
    packed_file._unpacked.cache_clear()  # a clock may be too coarse to tell the files apart
    victim.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    trajectory = Trajectory.open(run)
    for step in (40, 50, 60, 70):  # it and those that are differences to it
        with pytest.raises(OSError, match=f"step {step} cannot be read: .*damaged"):
            trajectory.at(step).state_dict()
    for step in (30, 80, 120, 190):
        assert torch.equal(trajectory.at(step)["n"], torch.tensor(step // 10))
    with pytest.raises(OSError, match=r"Step 40 of .*damaged"):
        decompress_run(run)
    victim.write_bytes(whole)
    decompress_run(run)
    check_whole(run)
    compress_run(run)
    victim.unlink()
    problems = check_run(run)
    assert len(problems) == 4
    assert "step 40 cannot be read" in problems[0]
    assert "00000040, which it is a difference to, is missing" in problems[1]


def test_one_writer_at_a_time(run):
    with reopen_run(run):
        for convert in (compress_run, decompress_run):
            with pytest.raises(BlockingIOError, match="written by another recorder"):
                convert(run)

    def intrude(done, total):
        with pytest.raises(BlockingIOError, match="written by another recorder"):
            reopen_run(run)
        check_whole(run)

    compress_run(run, progress=intrude)


@on_posix
def test_a_lock_on_a_file_that_was_removed_is_none(run, monkeypatch):
    """Another writer removes the file and ends, between its opening and its locking here."""
    real = os.open

    def slow(path, *arguments):
        descriptor = real(path, *arguments)
        if Path(path).name == ".lock":
            monkeypatch.setattr(os, "open", real)
            Path(path).unlink()
        return descriptor

    monkeypatch.setattr(os, "open", slow)
    with pytest.raises(BlockingIOError):
        reopen_run(run)
    reopen_run(run).close()


def test_mistakes_are_told(run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="keyframe_every must be from 1 to 256, got 0"):
        compress_run(run, keyframe_every=0)
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        compress_run(tmp_path)
    before = contents(run)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "slipstream\[zstd\]"'):
        compress_run(run)
    assert contents(run) == before


def test_an_empty_run_is_compressed_too(tmp_path):
    create_run(tmp_path / "run", model=Layout.of_weights({"w": torch.zeros(2)})).close()
    assert compress_run(tmp_path / "run").share == 1
