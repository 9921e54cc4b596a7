"""A training that is interrupted anywhere ends as one that was not, to the bit."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from slipstream.evaluation import Task
from slipstream.storage.new_run import NewRun
from slipstream.storage.resumable_state import ResumableState
from slipstream.training import TrainingPlan, record_training
from slipstream.training.recorded_training import STATE
from slipstream.trajectory import Recorder, Trajectory
from slipstream.weights import weights_of

STEPS, EPOCHS = 3, 3
PLAN = TrainingPlan.cosine(EPOCHS, "adamw", 0.05, seed=4)


class Stop(BaseException):
    """What interrupts."""


def task(width=6):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(width, 2),
        )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(15, 3, generator=generator)
    labels = (inputs[:, 0] > 0).long()
    batches = list(zip(inputs.split(6), labels.split(6), strict=True))
    return Task(model, batches, validation=batches[:1], configuration={"names": {"width": width}})


def train(folder, *, resume=False, stop_at=None, keep="epochs", **options):
    own = task()

    def progress(step, total):
        assert total == STEPS * EPOCHS
        if step == stop_at:
            raise Stop

    new = NewRun(folder, resume=resume)
    found = record_training(own, PLAN, run_folder=new, keep=keep, progress=progress, **options)
    return found, weights_of(own.model)


def same_run(first, second):
    first, second = Trajectory.open(first), Trajectory.open(second)
    assert first.steps == second.steps
    for one, other in zip(first, second, strict=True):
        assert (one.epoch, one.metrics) == (other.epoch, other.metrics)
        assert all(torch.equal(one[name], other[name]) for name in one.weights)


@pytest.mark.parametrize("keep", ["epochs", "every:2"])
@pytest.mark.parametrize("step", range(1, STEPS * EPOCHS + 1))
def test_it_ends_the_same_after_an_interruption_at_any_step(tmp_path, step, keep):
    whole, weights = train(tmp_path / "whole", keep=keep)
    with pytest.raises(Stop):
        train(tmp_path / "run", stop_at=step, keep=keep)
    torch.manual_seed(99)  # what the process has drawn by then must not matter
    found, resumed = train(tmp_path / "run", resume=True, keep=keep)
    assert found.losses == whole.losses
    assert found.validation == whole.validation
    assert all(torch.equal(weights[name], value) for name, value in resumed.items())
    same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("place", range(1, EPOCHS + 4))
def test_it_ends_the_same_when_the_process_ends_at_a_state(tmp_path, place, monkeypatch):
    """The first state is offered just after the folder is made."""
    whole, _ = train(tmp_path / "whole")
    offer, calls = ResumableState.offer, []

    def dying(*args, **options):
        calls.append(args)
        if len(calls) == place:
            raise Stop
        offer(*args, **options)

    monkeypatch.setattr(ResumableState, "offer", dying)
    with pytest.raises(Stop):
        train(tmp_path / "run")
    monkeypatch.undo()
    found, _ = train(tmp_path / "run", resume=True)
    assert found.losses == whole.losses
    same_run(tmp_path / "whole", tmp_path / "run")


def test_a_loader_that_shuffles_is_resumed_to_the_bit(tmp_path):
    def shuffled():
        own = task()
        inputs, labels = (torch.cat(parts) for parts in zip(*own.data, strict=True))
        loader = DataLoader(TensorDataset(inputs, labels), batch_size=6, shuffle=True)
        return replace(own, data=loader)

    def stop(step, total):
        if step == 5:
            raise Stop

    whole = record_training(shuffled(), PLAN, run_folder=tmp_path / "whole")
    with pytest.raises(Stop):
        record_training(shuffled(), PLAN, run_folder=tmp_path / "run", progress=stop)
    torch.manual_seed(99)
    found = record_training(shuffled(), PLAN, run_folder=NewRun(tmp_path / "run", resume=True))
    assert found.losses == whole.losses
    same_run(tmp_path / "whole", tmp_path / "run")


def test_no_state_is_ahead_of_the_snapshots(tmp_path, monkeypatch):
    waited = []
    wait = Recorder.wait
    monkeypatch.setattr(Recorder, "wait", lambda self: (waited.append(1), wait(self)))
    train(tmp_path / "run")
    assert waited


def test_resuming_begins_where_there_is_nothing(tmp_path):
    whole, _ = train(tmp_path / "whole")
    found, _ = train(tmp_path / "run", resume=True)
    assert found.losses == whole.losses
    same_run(tmp_path / "whole", tmp_path / "run")


def test_a_finished_training_is_read_and_left_alone(tmp_path):
    whole, weights = train(tmp_path / "run")
    assert not (tmp_path / "run" / STATE).exists()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    found, read = train(tmp_path / "run", resume=True, stop_at=1)
    assert replace(found, seconds=0) == replace(whole, seconds=0)
    assert all(torch.equal(weights[name], value) for name, value in read.items())
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_another_training_is_not_resumed(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train(folder, stop_at=5)
    new = NewRun(folder, resume=True)
    with pytest.raises(ValueError, match=r"its training.lr is 0.05, here it is 0.1"):
        record_training(task(), replace(PLAN, lr=0.1), run_folder=new)
    other = task()
    nn.init.zeros_(other.model[0].weight)
    with pytest.raises(ValueError, match="its start is another"):
        record_training(other, PLAN, run_folder=new)
    with pytest.raises(ValueError, match=r"configuration.names.width is 6, here it is 7"):
        record_training(
            replace(task(), configuration={"names": {"width": 7}}), PLAN, run_folder=new
        )


def test_a_run_without_a_state_is_never_overwritten_by_resuming(tmp_path):
    with Recorder(tmp_path / "run", task().model) as recorder:
        recorder.record()
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"already holds a run, without the training.pt to"):
        train(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_finished_run_of_another_plan_is_not_taken_for_this_one(tmp_path):
    train(tmp_path / "run")
    with pytest.raises(FileExistsError, match="already holds a run"):
        record_training(
            task(), replace(PLAN, momentum=0.5), run_folder=NewRun(tmp_path / "run", resume=True)
        )


def test_a_state_from_before_plans_had_a_schedule_is_resumed(tmp_path):
    """As version 0.1.0 wrote it: a cosine goes without saying."""
    plan = json.loads(json.dumps(asdict(PLAN)))
    before = {name: value for name, value in plan.items() if name != "schedule"}
    ResumableState(tmp_path / "state", {"lure": {"descent": before}}).offer(dict, last=True)
    known = {"schedule": "cosine"}
    now = ResumableState(tmp_path / "state", {"lure": {"descent": plan}}, before=known)
    assert now.read() == {}
    other = plan | {"schedule": "constant"}
    with pytest.raises(ValueError, match=r"it has no lure.descent.schedule"):
        ResumableState(tmp_path / "state", {"lure": {"descent": other}}, before=known).read()
