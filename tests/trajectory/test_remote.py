"""Runs on other file systems, by fsspec's own: in memory, and cached."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slipstream.storage import room
from slipstream.trajectory import (
    Layout,
    Recorder,
    Schedule,
    Trajectory,
    check_run,
    compress_run,
    create_run,
    import_run,
)
from slipstream.trajectory.remote import address_of

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory():
    """A file system that is empty again afterwards."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def local(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = [{"w": torch.randn(40, 3, generator=generator)} for _ in range(3)]
    with create_run(tmp_path / "run", model=Layout.of_weights(weights[0])) as writer:
        for step, one in enumerate(weights):
            writer.append(step=step, weights=one)
    return tmp_path / "run"


def test_addresses_are_told_from_paths(tmp_path):
    cases = {"s3://a/b": "s3://a/b", "run": None, "a:b/c": None}
    cases |= {"C:/runs": None, "simplecache::s3://a": "simplecache::s3://a"}
    for path, address in cases.items():
        assert address_of(path) == address
        assert address_of(Path(path)) == address  # as a command gets it


@pytest.mark.parametrize("address", ["memory://bucket/run", "simplecache::memory://bucket/run"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_run_is_read_where_it_is(memory, local, address, packed):
    plain = [snapshot.weights["w"].clone() for snapshot in Trajectory.open(local)]
    if packed:
        pytest.importorskip("zstandard")
        compress_run(local)
    memory.put(str(local), "/bucket/run", recursive=True)
    shutil.rmtree(local)
    run = Trajectory.open(address)
    assert torch.equal(run["w"], torch.stack(plain))
    assert torch.equal(Trajectory.open(Path(address))[2].weights["w"], plain[2])
    assert not check_run(address)


def test_only_what_is_read_is_fetched(memory, local, monkeypatch):
    memory.put(str(local), "/run", recursive=True)
    fetched = []
    get = type(memory).get_file
    monkeypatch.setattr(
        type(memory), "get_file", lambda self, a, b, **o: (fetched.append(a), get(self, a, b, **o))
    )
    run = Trajectory.open("memory://run")
    assert [Path(name).name for name in fetched] == ["run.json", "snapshots.jsonl"]
    _ = run[1:]["w"], run[1].weights
    assert [Path(name).name for name in fetched[2:]] == [
        "00000001.safetensors",
        "00000002.safetensors",
    ]


def test_a_file_system_that_goes_away_is_named(memory, local, monkeypatch):
    memory.put(str(local), "/run", recursive=True)
    run = Trajectory.open("memory://run")
    memory.rm("/run/snapshots/00000001.safetensors")
    with pytest.raises(OSError, match=r"step 1 cannot be read: .*not found on memory://run"):
        _ = run[1].weights

    def gone(*_, **__):
        raise ConnectionResetError("connection reset")

    monkeypatch.setattr(type(memory), "get_file", gone)
    with pytest.raises(OSError, match=r"step 2 .*memory://run does not answer .*connection reset"):
        _ = run[2].weights
    monkeypatch.setattr(type(memory), "find", gone)
    with pytest.raises(OSError, match="memory://run does not answer"):
        Trajectory.open("memory://run")


def test_what_is_not_a_run_or_not_an_address_is_refused(memory, tmp_path):
    with pytest.raises(FileNotFoundError, match="memory://none is not a run folder"):
        Trajectory.open("memory://none")
    with pytest.raises(ValueError, match="nothing://"):
        Trajectory.open("nothing://run")
    layout = Layout.of_weights({"w": torch.ones(1)})
    with pytest.raises(ValueError, match=r"memory://run cannot be written to: .*call_after"):
        create_run("memory://run", model=layout)


def test_checkpoints_are_imported_from_there(memory, tmp_path):
    for step in (1, 2):
        save_file({"w": torch.full((3,), float(step))}, tmp_path / f"step-{step}.safetensors")
        memory.put(str(tmp_path / f"step-{step}.safetensors"), f"/all/step-{step}.safetensors")
    run = import_run("memory://all", tmp_path / "run")
    assert run["w"].tolist() == [[1.0] * 3, [2.0] * 3]
    memory.put(str(tmp_path / "run" / "run.json"), "/wrong/step-1.safetensors")
    with pytest.raises(ValueError, match="step-1"):
        import_run("memory://wrong", tmp_path / "other")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("other")]
    with pytest.raises(ValueError, match="destination must be given to import memory://all"):
        import_run("memory://all")


def recorded(path, hook):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(path, model, schedule=Schedule.every(1)).call_after(hook)
    with recorder.attach(optimizer):
        for step in range(3):
            recorder.wait()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            recorder.log(loss=float(step))


def test_each_snapshot_is_uploaded_behind_the_loop(memory, tmp_path):
    told = []

    def upload(folder, names):
        told.append(names)
        for name in names:
            memory.put_file(str(folder / name), f"/up/{name}")

    recorded(tmp_path / "run", upload)
    assert told[0] == ("snapshots/00000000.safetensors", "run.json", "snapshots.jsonl")
    here, there = Trajectory.open(tmp_path / "run"), Trajectory.open("memory://up")
    assert there.steps == here.steps == [0, 1, 2, 3]
    assert [s.metrics for s in there] == [s.metrics for s in here]
    assert torch.equal(there["weight"], here["weight"])


def test_what_an_upload_missed_comes_with_the_next(memory, tmp_path, caplog):
    calls = []

    def upload(folder, names):
        calls.append(names)
        if len(calls) < 3:
            raise ConnectionResetError("connection reset")
        for name in names:
            memory.put_file(str(folder / name), f"/up/{name}")

    recorded(tmp_path / "run", upload)
    assert calls[2][-1] == "snapshots.jsonl"  # behind all that it lists
    assert not check_run("memory://up")
    assert Trajectory.open("memory://up").steps == [0, 1, 2, 3]
    assert "ConnectionResetError: connection reset. The run itself is whole" in caplog.text


def test_too_little_memory_is_said_before_the_recording(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda: 10)
    with pytest.raises(MemoryError, match=r"Recording .* needs 0.0 MB of memory; 0.0 MB are free"):
        Recorder(tmp_path / "run", torch.nn.Linear(2, 1))
