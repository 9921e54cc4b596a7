"""The recorder, in a real training loop."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from recorded_networks import on_posix, tied, train
from torch import nn

from slipstream.trajectory import Recorder, Schedule, Trajectory, check_run
from slipstream.trajectory.run_folder import RunWriter
from slipstream.weights import TrainablePart, clone, load_weights_, weights_of


def setup(seed=0):
    model = tied(seed)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_each_snapshot_is_the_model_after_that_step(tmp_path):
    model, optimizer = setup()
    seen = {0: clone(weights_of(model))}
    with Recorder(tmp_path / "run", model, schedule=Schedule.every(1)).attach(optimizer):
        train(model, optimizer, 20, lambda step: seen.update({step: clone(weights_of(model))}))
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == list(range(21))
    for snapshot in run:
        for name, value in snapshot.weights.items():
            if name in dict(model.named_parameters()):  # buffers move before the step, too
                assert torch.equal(value, seen[snapshot.step][name])
    assert run["norm.num_batches_tracked"].tolist() == run.steps
    assert run["norm.running_mean"][-1].tolist() == model.norm.running_mean.tolist()


def test_the_schedule_epochs_and_metrics(tmp_path):
    model, optimizer = setup()
    schedule = Schedule.epochs(4)
    with Recorder(
        tmp_path / "run", model, schedule=schedule, configuration={"a": 1}, seed=5
    ).attach(optimizer) as recorder:
        train(model, optimizer, 10, lambda step: recorder.log(loss=torch.tensor(float(step))))
        recorder.log(epoch=9, accuracy=0.5)
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == schedule.steps(10)
    assert [snapshot.epoch for snapshot in run] == [0, 1, 2, 9]
    # What is logged after a step belongs to that step's snapshot, also if it is written already.
    metrics = [dict(snapshot.metrics) for snapshot in run]
    assert metrics == [{}, {"loss": 4}, {"loss": 8}, {"loss": 10, "accuracy": 0.5}]
    assert (run.description["configuration"], run.description["seed"]) == ({"a": 1}, 5)
    kept = run.description["provenance"]["recorded"]["schedule"]
    assert Schedule.from_json(kept) == schedule


def test_metrics_stay_with_the_weights_they_were_measured_at(tmp_path, caplog):
    """Validation after each epoch of 4 steps, snapshots every 4 and every 3 steps."""
    for every, found in ((4, {4: 1, 8: 2, 12: 3}), (3, {12: 3})):
        model, optimizer = setup()
        path = tmp_path / f"run{every}"
        with Recorder(path, model, schedule=Schedule.every(every)).attach(optimizer) as recorder:
            for epoch in (1, 2, 3):
                train(model, optimizer, 4)
                recorder.log(epoch=epoch, accuracy=epoch)
        run = Trajectory.open(path)
        assert {s.step: s.metrics["accuracy"] for s in run if "accuracy" in s.metrics} == found
        assert not caplog.records
    model, optimizer = setup()
    with Recorder(tmp_path / "never", model).attach(optimizer) as recorder:
        train(model, optimizer, 4)
        recorder.log(accuracy=1)
        train(model, optimizer, 4)
    assert "accuracy: logged only at steps that were not recorded" in caplog.text


def test_the_step_of_0_1_still_says_where_to_resume(tmp_path):
    model, optimizer = setup()
    with Recorder(tmp_path / "run", model, schedule=Schedule.every(2)).attach(optimizer):
        train(model, optimizer, 6)
    with pytest.warns(DeprecationWarning, match=r"is now Recorder\(..., resume=20\)"):
        recorder = Recorder(tmp_path / "run", model, resume=True, step=4)
    assert (recorder.step, recorder.last_kept) == (4, 4)
    recorder.close()


@pytest.mark.parametrize("order", ["logged after", "logged before", "both"])
def test_without_an_optimizer_values_go_to_the_weights_they_were_measured_at(tmp_path, order):
    model = nn.Linear(2, 1)
    with Recorder(tmp_path / "run", model) as recorder:
        for step in range(3):
            with torch.no_grad():
                model.weight.add_(1)
            if order != "logged after":
                recorder.log(before=float(step))
            recorder.record(step=step)
            if order != "logged before":
                recorder.log(after=float(step))
                recorder.log(other=2.0 * step)
    names = {"logged after": ["after", "other"], "logged before": ["before"]}
    for snapshot in Trajectory.open(tmp_path / "run"):
        step = float(snapshot.step)
        values = {"before": step, "after": step, "other": 2 * step}
        listed = names.get(order, list(values))
        assert dict(snapshot.metrics) == {name: values[name] for name in listed}


def test_what_is_logged_after_resuming_is_not_added_to_an_old_snapshot(tmp_path):
    model = nn.Linear(2, 1)
    with Recorder(tmp_path / "run", model) as recorder:
        recorder.record(step=0)
    with torch.no_grad():
        model.weight.add_(1)
    with Recorder(tmp_path / "run", model, resume=True) as recorder:
        recorder.log(loss=3.0)
        recorder.record(step=1)
    assert [dict(s.metrics) for s in Trajectory.open(tmp_path / "run")] == [{}, {"loss": 3.0}]


def test_another_optimizer_continues_the_count(tmp_path, caplog):
    model, optimizer = setup()
    with Recorder(tmp_path / "run", model, schedule=Schedule.every(2)).attach(
        optimizer
    ) as recorder:
        train(model, optimizer, 3)
        recorder.attach(other := torch.optim.SGD(model.parameters(), lr=0.01))
        train(model, other, 3)
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 2, 4, 6]
    model, optimizer = setup()
    with Recorder(tmp_path / "lost", model, schedule=Schedule.every(1)).attach(optimizer):
        train(model, optimizer, 2)
        train(model, torch.optim.SGD(model.parameters(), lr=0.01), 3)
    run = Trajectory.open(tmp_path / "lost")
    assert run.steps == [0, 1, 2, 3]
    assert "moved since step 2, but not by the attached optimizer" in caplog.text
    name = next(name for name, _ in model.named_parameters())
    assert torch.equal(run[-1].weights[name], model.get_parameter(name))


def test_explicit_records_need_no_optimizer(tmp_path):
    model = tied()
    with Recorder(tmp_path / "run", model) as recorder:
        recorder.record(step=3, epoch=0.5, metrics={"loss": 2})
        recorder.record(step=8)
        with pytest.raises(ValueError, match="step must grow: 8 comes after 8"):
            recorder.record(step=8)
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [3, 8]
    assert (run[0].epoch, run[0].metrics) == (0.5, {"loss": 2})


def test_recording_changes_nothing_in_the_training(tmp_path):
    plain, optimizer = setup()
    train(plain, optimizer, 15)
    model, optimizer = setup()
    with Recorder(tmp_path / "run", model, schedule=Schedule.every(2)).attach(optimizer):
        train(model, optimizer, 15)
    for name, value in weights_of(plain).items():
        assert torch.equal(value, weights_of(model)[name])


def test_a_closed_recorder_is_detached(tmp_path):
    model, optimizer = setup()
    recorder = Recorder(tmp_path / "run", model, schedule=Schedule.every(1)).attach(optimizer)
    with pytest.raises(RuntimeError, match=r"attached .* already"):
        recorder.attach(optimizer)
    train(model, optimizer, 2)
    recorder.close()
    recorder.close()
    train(model, optimizer, 2)
    assert recorder.step == 2
    assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2]
    with pytest.raises(RuntimeError, match="This recorder is closed"):
        recorder.log(loss=1.0)
    with pytest.raises(RuntimeError, match="This recorder is closed"):
        recorder.record(step=5)


def test_resuming_goes_on_counting(tmp_path):
    model, optimizer = setup()
    schedule = Schedule.every(3)
    with Recorder(tmp_path / "run", model, schedule=schedule).attach(optimizer):
        train(model, optimizer, 4)
    with Recorder(tmp_path / "run", model, schedule=schedule, resume=True) as recorder:
        assert recorder.step == 4
        recorder.attach(optimizer)
        train(model, optimizer, 4)
    assert Trajectory.open(tmp_path / "run").steps == [0, 3, 4, 6, 8]


def test_resuming_from_an_earlier_checkpoint_drops_what_came_after(tmp_path):
    model, optimizer = setup()
    schedule = Schedule.every(2)
    with Recorder(tmp_path / "run", model, schedule=schedule).attach(optimizer):
        train(model, optimizer, 8)
    load_weights_(model, Trajectory.open(tmp_path / "run").at(4).weights)
    with Recorder(tmp_path / "run", model, schedule=schedule, resume=4).attach(optimizer):
        train(model, optimizer, 3)
    assert Trajectory.open(tmp_path / "run").steps == [0, 2, 4, 6, 7]
    with pytest.raises(ValueError, match=r"The model to resume .* with: the tensor 'weight'"):
        Recorder(tmp_path / "run", nn.Linear(2, 2), resume=0)
    assert Trajectory.open(tmp_path / "run").steps == [0, 2, 4, 6, 7]
    assert check_run(tmp_path / "run") == []


def test_ctrl_c_closes_the_run(tmp_path):
    model, optimizer = setup()

    def interrupt(step):
        if step == 5:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        Recorder(tmp_path / "run", model, schedule=Schedule.every(2)).attach(optimizer),
    ):
        train(model, optimizer, 9, interrupt)
    assert Trajectory.open(tmp_path / "run").steps == [0, 2, 4]
    Recorder(tmp_path / "run", model, resume=True).close()


def test_a_slow_disk_holds_the_loop_up_and_loses_nothing(tmp_path, monkeypatch):
    model, optimizer = setup()
    gate, waiting = threading.Semaphore(0), []
    append = RunWriter.append

    def slow(self, **snapshot):
        assert gate.acquire(timeout=30)
        append(self, **snapshot)

    monkeypatch.setattr(RunWriter, "append", slow)
    recorder = Recorder(tmp_path / "run", model, schedule=Schedule.every(1)).attach(optimizer)
    loop = threading.Thread(target=train, args=(model, optimizer, 6, waiting.append))
    loop.start()
    loop.join(timeout=0.5)
    assert loop.is_alive()
    assert waiting == []  # step 0 is being written, and step 1 has no buffer: there is one copy
    gate.release(7)
    loop.join()
    recorder.close()
    run = Trajectory.open(tmp_path / "run")
    assert run["norm.num_batches_tracked"].tolist() == run.steps == list(range(7))


def full_disk(monkeypatch, after):
    calls = []

    def append(self, **snapshot):
        calls.append(snapshot["step"])
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "Step 1 could not be kept: No space left on device.")

    monkeypatch.setattr(RunWriter, "append", append)
    return calls


def test_an_error_behind_the_loop_is_raised_in_the_loop(tmp_path, monkeypatch):
    model, optimizer = setup()
    calls, steps = full_disk(monkeypatch, after=1), []
    with (
        pytest.raises(OSError, match="No space left"),
        Recorder(tmp_path / "run", model, schedule=Schedule.every(1)).attach(optimizer),
    ):
        train(model, optimizer, 50, steps.append)
    assert len(steps) < 10
    assert calls == [0, 1]


def test_nothing_is_written_behind_a_gap(tmp_path, monkeypatch):
    go_on, calls = threading.Event(), []

    def append(self, **snapshot):
        calls.append(snapshot["step"])
        assert go_on.wait(timeout=30)
        raise OSError(errno.ENOSPC, "No space left on device.")

    monkeypatch.setattr(RunWriter, "append", append)
    recorder = Recorder(tmp_path / "run", tied())
    recorder.record(step=0)
    go_on.set()
    with pytest.raises(OSError, match="No space left"):
        recorder.record(step=1)
    recorder.close()
    assert calls == [0]


def test_an_error_after_the_last_step_is_raised_by_close(tmp_path, monkeypatch):
    model, optimizer = setup()
    full_disk(monkeypatch, after=0)
    recorder = Recorder(tmp_path / "run", model).attach(optimizer)
    with pytest.raises(OSError, match="No space left"):
        recorder.close()


def test_two_recorders_on_one_folder(tmp_path):
    model, optimizer = setup()
    with Recorder(tmp_path / "run", model).attach(optimizer):
        with pytest.raises(FileExistsError, match="already holds a run"):
            Recorder(tmp_path / "run", model)
        with pytest.raises(BlockingIOError, match="written by another recorder"):
            Recorder(tmp_path / "run", model, resume=True)


TRAIN = textwrap.dedent(
    """
    import sys, torch
    from slipstream.trajectory import Recorder
    from torch import nn

    model = nn.Linear(50, 50)
    torch.nn.init.zeros_(model.bias)
    recorder = Recorder(sys.argv[1], model)
    for step in range(int(sys.argv[2])):
        recorder.record(step=step)
        with torch.no_grad():
            model.bias += 1
        print(step, flush=True)
    """
)


def test_a_forgotten_recorder_writes_what_it_holds(tmp_path):
    subprocess.run([sys.executable, "-c", TRAIN, str(tmp_path / "run"), "5"], check=True)
    assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2, 3, 4]


@on_posix
@pytest.mark.parametrize("number", [9, signal.SIGINT])
def test_a_training_that_is_killed_leaves_a_run_that_opens(tmp_path, number):
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "run"), "1000000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as loop:
        for _ in range(30):
            loop.stdout.readline()
        os.kill(loop.pid, number)
    folder = tmp_path / "run"
    run = Trajectory.open(folder)
    assert run.steps == list(range(len(run)))
    assert len(run) > 20
    assert run["bias"][:, 7].tolist() == run.steps
    assert [problem for problem in check_run(folder) if "broken off" not in problem] == []
    Recorder(folder, nn.Linear(50, 50), resume=True).close()
    assert not list(folder.rglob("*.tmp"))


def test_the_trainable_part_alone_is_recorded_and_loaded_again(tmp_path):
    model, optimizer = setup()
    name, frozen = next(iter(model.named_parameters()))
    frozen.requires_grad_(False)
    with Recorder(tmp_path / "run", TrainablePart(model)).attach(optimizer):
        train(model, optimizer, 3)
    run = Trajectory.open(tmp_path / "run")
    learned = [n for n, p in model.named_parameters() if p.requires_grad]
    assert list(run.names) == learned
    assert name not in run.names
    moved = {n: p.detach().clone() for n, p in model.named_parameters()}
    load_weights_(model, run[0].weights)
    load_weights_(model, run[-1].weights)
    for other, value in model.named_parameters():
        assert torch.equal(value, moved[other])


def test_a_snapshot_is_a_mapping_of_its_tensors():
    held = {"w": torch.ones(2), "n": torch.tensor(3)}
    snapshot = Trajectory.from_weights([held])[0]
    assert {n: v.tolist() for n, v in dict(snapshot).items()} == {"w": [1.0, 1.0], "n": 3}
    assert list(snapshot) == ["w", "n"]
    with pytest.raises(KeyError, match="tensors by name, got 0"):
        snapshot[0]


def test_a_metric_of_several_values_is_refused_by_name(tmp_path):
    recorder = Recorder(tmp_path / "run", nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"'accuracy' must be one value; its shape is \(2,\)"):
        recorder.log(accuracy=torch.ones(2))
    recorder.close()


class Passing:
    """Wraps an optimiser, and passes on whatever it is asked for."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self.optimizer, name)


def test_an_optimizer_inside_two_wrappers_that_pass_on_is_found(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = Passing(Passing(optimizer))
    with Recorder(tmp_path / "run", model, schedule=Schedule.every(1)).attach(wrapped):
        model(torch.ones(1, 2)).sum().backward()
        wrapped.step()
    assert Trajectory.open(tmp_path / "run").steps == [0, 1]


@pytest.mark.gpu
def test_on_a_gpu_under_autocast_each_snapshot_is_the_model_after_its_step(tmp_path):
    model, kept = setup()[0].cuda(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, schedule=Schedule.every(1)).attach(optimizer):
        for _ in range(5):
            with torch.autocast("cuda", torch.bfloat16):
                outputs = model(torch.randn(8, 4, device="cuda"))
            outputs.float().square().mean().backward()
            optimizer.step()
            kept.append({name: value.cpu() for name, value in weights_of(model).items()})
    run = Trajectory.open(tmp_path / "run")
    for snapshot, weights in zip(run[-5:], kept, strict=True):
        assert all(torch.equal(snapshot.weights[name], value) for name, value in weights.items())


@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_a_tensor_without_all_of_its_values_is_refused_before_a_folder_is_made(kind, tmp_path):
    model = nn.Linear(2, 2)
    value = model.weight.detach()
    model.weight = nn.Parameter(value.to("meta") if kind == "meta" else value.to_sparse())
    with pytest.raises(
        ValueError, match=f"'weight' of the model cannot be recorded: it is .*{kind}"
    ):
        Recorder(tmp_path / "run", model)
    assert not (tmp_path / "run").exists()
