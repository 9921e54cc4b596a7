"""Trainings that are sharded over processes, against the same training in one."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from slipstream.averaging import EMA, Averages
from slipstream.modes import OnlineModes
from slipstream.trajectory import Trajectory, check_run, compress_run, decompress_run, import_run
from slipstream.weights import weights_of
from trajectory.sharded_training import (
    MODES,
    RULES,
    AfterSteps,
    batches,
    network,
    recorded,
    train,
)

SCRIPT = Path(__file__).with_name("sharded_training.py")


def together(count, work, folder):
    """Do some work in processes; all of them end, whatever happens."""
    command = [sys.executable, str(SCRIPT), str(count), work, str(folder)]
    begun = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, said = begun.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(begun.pid, signal.SIGKILL)
    assert begun.returncode == 0, said[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one process and what two have recorded."""
    folder = tmp_path_factory.mktemp("sharded")
    for name in ("alone", "alone-4"):
        recorded(folder / name, network(), batches(5))
    together(2, "both", folder)
    return folder


def assert_same_run(run, other):
    assert run.steps == other.steps
    assert run.names == other.names
    for name in run.names:
        torch.testing.assert_close(run[name], other[name], rtol=1e-5, atol=1e-6)
        for one, two in zip(run, other, strict=True):
            assert torch.equal(one.weights[name], run.at(one.step)[name])
            torch.testing.assert_close(one.weights[name], two[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["fsdp", "tensor"])
def test_a_sharded_training_is_recorded_as_by_one_process(folder, kind):
    run = Trajectory.open(folder / kind)
    alone = Trajectory.open(folder / "alone")
    assert_same_run(run, alone)
    assert run.description["model"] == alone.description["model"]
    for one, other in zip(run, alone, strict=True):
        assert one.metrics == pytest.approx(other.metrics)
    assert not check_run(folder / kind)
    files = sorted(path.name for path in (folder / kind / "snapshots").glob("00000002*"))
    assert files == [f"00000002-0000{n}-of-00002.safetensors" for n in (1, 2)]


@pytest.mark.parametrize("kind", ["fsdp", "tensor"])
def test_any_stretch_of_a_tensor_is_read_from_its_pieces(folder, kind):
    run = Trajectory.open(folder / kind)
    for name in run.names:
        whole = run[name].reshape(len(run), -1)
        for start in range(0, whole.shape[1], 3):
            for stop in range(start, whole.shape[1] + 1, 7):
                part = run.part(name, start=start, stop=stop)
                assert torch.equal(part, whole[:, start:stop])


def test_a_run_continues_with_another_number_of_processes(folder, tmp_path):
    # One process, then two.
    assert_same_run(Trajectory.open(folder / "alone-4"), Trajectory.open(folder / "alone"))
    # Two, then one: step 5 is dropped, and what a killed process left goes.
    shutil.copytree(folder / "fsdp", tmp_path / "run")
    left = tmp_path / "run" / "snapshots" / "00000005-00002-of-00003.safetensors"
    left.touch()
    model = network()
    model.load_state_dict(Trajectory.open(tmp_path / "run").at(4).state_dict())
    recorded(tmp_path / "run", model, batches(5)[4:], resume=4)
    assert_same_run(Trajectory.open(tmp_path / "run"), Trajectory.open(folder / "alone"))
    assert not check_run(tmp_path / "run")


def test_tensors_gathered_by_an_evaluation_are_recorded_as_pieces(folder):
    (snapshot,) = Trajectory.open(folder / "evaluated")
    expected = Trajectory.open(folder / "alone-4")[-1]
    assert all(torch.equal(snapshot[name], expected[name]) for name in expected if "." in name)


def test_all_processes_hear_of_bad_input(folder):
    first, second = (json.loads((folder / f"said-{rank}.json").read_text()) for rank in (0, 1))
    assert {**first, "steps": first["steps"].replace("Step 2", "Step 3")} == second
    assert f"Process 1 records into {folder / 'of-1'}, process 0 into" in first["folder"]
    assert "FileExistsError" in first["there"]
    assert "The model of process 1: the tensor 'weight' is (2, 3) float32, expected (2, 2)" in (
        first["model"].replace("(3, 2)", "(2, 3)")
    )
    assert "the processes record different steps, [2, 3]" in first["steps"]
    assert "Step 2 could not be kept" in first["disk"]
    assert "process 1: Is a directory" in first["disk"]
    assert Trajectory.open(folder / "steps").steps == [1]
    assert Trajectory.open(folder / "disk").steps == [1]


def test_fsdp1_is_refused():
    flat = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(flat)  # the rest of it needs a GPU
    with pytest.raises(TypeError, match=r"use torch.distributed.fsdp.fully_shard"):
        weights_of(nn.Sequential(flat))


def test_a_missing_piece_is_named(folder, tmp_path):
    shutil.copytree(folder / "fsdp", tmp_path / "run")
    (tmp_path / "run" / "snapshots" / "00000002-00002-of-00002.safetensors").unlink()
    with pytest.raises(OSError, match=r"step 2 cannot be read: .*00002-of-00002.*No such file"):
        Trajectory.open(tmp_path / "run")["0.weight"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_the_files_of_a_snapshot(folder, tmp_path):
    for path in (folder / "fsdp" / "snapshots").glob("00000004*"):
        shutil.copy(path, tmp_path)
    state = {name: torch.zeros_like(value) for name, value in weights_of(network()).items()}
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    snapshot = Trajectory.open(folder / "fsdp").at(4)
    assert all(torch.equal(state[name], snapshot[name]) for name in state)


def test_averages_and_modes_are_those_of_one_process(folder):
    model = network()
    averages, modes = Averages(model, RULES), OnlineModes(model, MODES)
    train(model, batches(8), averages, AfterSteps(modes))
    for rule in RULES:
        for name, value in load_file(folder / f"{rule}.safetensors").items():
            torch.testing.assert_close(value, averages.weights(rule)[name], rtol=1e-5, atol=1e-6)
    for name, value in load_file(folder / "modes.safetensors").items():
        torch.testing.assert_close(value, modes.weights()[name], rtol=1e-4, atol=1e-5)
    # States of two processes are continued by one.
    averages.load_state_dict(torch.load(folder / "averages.pt"))
    modes.load_state_dict(torch.load(folder / "modes.pt"))
    assert averages.step == modes.updates == 8


def test_what_cannot_be_done_with_a_sharded_model_is_refused(folder):
    first, second = (json.loads((folder / f"followed-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert "device cannot be given for a sharded model" in first["device"]
    assert "A tensor is cut as ((2,), (Replicate(),))" in first["cut"]
    assert "the number of processes or the way of sharding has changed" in first["cut"]
    assert "cannot be put into a sharded model" in first["swap"]
    assert first["finite"]  # the step with a NaN in one piece is left out of all


@pytest.mark.parametrize("kind", ["native", "plain"])
def test_checkpoints_of_torch_are_imported(folder, kind, tmp_path):
    run = import_run(folder / kind, tmp_path / "run")
    saved = Trajectory.open(tmp_path / "run")[0].weights
    assert run.steps == [8]
    model = network()
    train(model, batches(8))
    for name, value in weights_of(model).items():
        torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_that_holds_code_is_refused(tmp_path):
    class Hidden:
        def __reduce__(self):
            return os.system, ("true",)

    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / ".metadata").write_bytes(pickle.dumps(Hidden()))
    with pytest.raises(ValueError, match=r"step-1.*holds posix.system, and loading that could run"):
        import_run(tmp_path, tmp_path / "run")


def test_a_checkpoint_without_one_of_its_files_is_refused(folder, tmp_path):
    shutil.copytree(folder / "native", tmp_path / "native")
    (tmp_path / "native" / "step-8" / "__1_0.distcp").unlink()
    with pytest.raises(FileNotFoundError, match=r"__1_0.distcp, which .metadata lists, is missing"):
        import_run(tmp_path / "native", tmp_path / "run")
    shutil.copytree(folder / "plain", tmp_path / "plain")
    first, *_ = sorted((tmp_path / "plain" / "step-8").glob("shard-00001-*"))
    first.unlink()
    with pytest.raises(ValueError, match=r"step-8 cannot be imported: a piece of tensor"):
        import_run(tmp_path / "plain", tmp_path / "run")


def test_a_sharded_run_is_compressed_and_unpacked_to_the_bit(folder, tmp_path):
    pytest.importorskip("zstandard")
    shutil.copytree(folder / "fsdp", tmp_path / "run")
    plain, other = Trajectory.open(folder / "fsdp"), tmp_path / "run"
    compress_run(other)
    packed = Trajectory.open(other)
    for name in plain.names:
        assert torch.equal(packed[name], plain[name])
        assert torch.equal(packed[2].weights[name], plain[2][name])
    decompress_run(other)
    assert not check_run(other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "tensor", "both"])
def test_four_processes_record_as_one(folder, kind, tmp_path):
    together(4, f"as_{kind}", tmp_path)
    assert_same_run(Trajectory.open(tmp_path / "run"), Trajectory.open(folder / "alone"))
    assert not check_run(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_whichever_process_is_killed_what_is_listed_is_whole(seed, tmp_path):
    chosen = random.Random(seed)
    command = [sys.executable, str(SCRIPT), "4", "for_long", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as training:
        index = tmp_path / "run" / "snapshots.jsonl"
        while not index.is_file() or index.read_bytes().count(b"\n") < 3:
            assert training.poll() is None, training.stderr.read()[-4000:]
            time.sleep(0.05)
        time.sleep(chosen.random())
        victim = int((tmp_path / f"pid-{chosen.randrange(4)}").read_text())
        os.kill(victim, signal.SIGKILL)
        assert training.wait(60) != 0
    assert all("not in the index" in problem for problem in check_run(tmp_path / "run"))
    killed = Trajectory.open(tmp_path / "run")
    assert len(killed) >= 3
    for snapshot in killed:
        assert all(value.isfinite().all() for value in snapshot.weights.values())
    # The rest is trained by two.
    together(2, "the_rest", tmp_path)
    whole = Trajectory.open(tmp_path / "run")
    assert whole.steps == list(range(killed.steps[-1] + 4))
    assert not check_run(tmp_path / "run")


@pytest.mark.slow
def test_callbacks_follow_a_sharded_training(folder, tmp_path):
    pytest.importorskip("lightning")
    pytest.importorskip("transformers")
    together(2, "called_back", tmp_path)
    model = network()
    averages = Averages(model, [EMA(0.8)])
    train(model, batches(5), averages)
    (expected,) = averages.state_dict()["averages"]["ema:0.8"]["weights"]
    states = torch.load(tmp_path / "states.pt")
    (saved,) = (tmp_path / "out" / "checkpoint-5").glob("slipstream_averages_*.pt")
    for state in (*states, torch.load(saved)):
        (found,) = state["averages"]["ema:0.8"]["weights"]
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    for name in ("lightning", "transformers"):
        run, alone = Trajectory.open(tmp_path / name), Trajectory.open(folder / "alone")
        assert_same_run(run, alone)
