"""A port on disk that is interrupted continues where it was, and ends in the same bytes."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from slipstream.porting import FineTune, PortPlan, port_checkpoint
from slipstream.storage import room

SHARDS = {"1.safetensors": ("a", "b"), "2.safetensors": ("c",), "3.safetensors": ("d", "e")}


def folder(path, seed):
    path.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for file, names in SHARDS.items():
        held = {name: torch.randn(6, 4, generator=generator) for name in names}
        save_file(held, path / file)
    homes = {name: file for file, names in SHARDS.items() for name in names}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    return path


@pytest.fixture
def files(tmp_path):
    return FineTune(*(folder(tmp_path / name, seed) for seed, name in enumerate("ABC")))


class Stop:
    def __init__(self, after):
        self.after = after

    def __call__(self, *_):
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt


def content(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_an_interrupted_port_continues_at_any_tensor(files, tmp_path):
    plan = PortPlan("identity")
    whole = port_checkpoint(tmp_path / "whole", files, plan=plan)
    for after in range(6):
        out = tmp_path / f"out{after}"
        try:
            port_checkpoint(out, files, plan=plan, progress=Stop(after))
        except KeyboardInterrupt:
            again = port_checkpoint(out, files, plan=plan)
            assert again.to_json() == whole.to_json()
        assert content(out) == content(tmp_path / "whole")
        assert not list(tmp_path.glob(".out*"))


def test_whole_files_are_not_written_again(files, tmp_path):
    plan = PortPlan("identity")
    with pytest.raises(KeyboardInterrupt):
        port_checkpoint(tmp_path / "out", files, plan=plan, progress=Stop(4))
    (partial,) = tmp_path.glob(".out.partial")
    before = (partial / "1.safetensors").stat().st_mtime_ns
    port_checkpoint(tmp_path / "out", files, plan=plan)
    assert (tmp_path / "out" / "1.safetensors").stat().st_mtime_ns == before


def test_another_plan_begins_again(files, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        port_checkpoint(tmp_path / "out", files, plan=PortPlan("identity"), progress=Stop(4))
    other = PortPlan("identity", exclude=("a",))
    port_checkpoint(tmp_path / "out", files, plan=other)
    base = load_file(files.to_base / "1.safetensors")
    assert torch.equal(load_file(tmp_path / "out" / "1.safetensors")["a"], base["a"])


def test_a_mistake_leaves_nothing(files, tmp_path):
    with pytest.raises(ValueError, match="matches no tensor"):
        port_checkpoint(tmp_path / "out", files, plan=PortPlan("identity", exclude=("zz",)))
    assert not list(tmp_path.glob(".out*"))


def test_too_little_memory_or_disk_is_said_before_anything_is_computed(
    files, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(room, "free_memory", lambda: 10)
        with pytest.raises(MemoryError, match=r"Porting, .* needs 0.0 MB of memory; 0.0 MB are"):
            port_checkpoint(tmp_path / "out", files, plan=PortPlan("identity"))
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"Writing .* needs 0.0 MB of disk; 0.0 MB are free"):
        port_checkpoint(tmp_path / "out", files, plan=PortPlan("identity"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "B", "C"]
