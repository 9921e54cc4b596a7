import json
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError

from slipstream.evaluation import Task
from slipstream.matching import LowRank
from slipstream.storage.new_run import NewRun
from slipstream.symmetry.permutation import Permutation
from slipstream.trajectory import Trajectory, create_run, reopen_run
from slipstream.transfer import (
    TransferPlan,
    find_source,
    load_transfer,
    source_reference,
    transfer_trajectory,
)
from slipstream.transfer.gradient_store import GradientStore
from slipstream.weights import weights_of
from transfer.small_runs import batches, network, trained


@pytest.fixture(scope="module")
def run():
    return trained(network(0))


def transfer(run, folder, *, seed=2, **options):
    pieces = {n: options.pop(n) for n in ("data", "validation") if n in options}
    new = {n: options.pop(n) for n in ("resume", "configuration") if n in options}
    task = Task(network(1), **{"data": batches(), "validation": batches(seed=7), **pieces})
    return transfer_trajectory(
        run, weights_of(network(seed)), task, run_folder=NewRun(folder, **new), **options
    )


def interrupt_after(count):
    def progress(done, _):
        if done == count:
            raise KeyboardInterrupt

    return progress


def same(first, second):
    assert len(first.trajectory) == len(second.trajectory)
    for mine, other in zip(first.trajectory, second.trajectory, strict=True):
        for name, value in mine.weights.items():
            assert torch.equal(value, other.weights[name])
    assert first.stages == second.stages
    assert all(p.same_as(second.permutations[stage]) for stage, p in first.permutations.items())


@pytest.mark.parametrize(("method", "after"), [("gmt", 2), ("fgmt", 2), ("fgmt-signed", 2),
                                               ("fgmt-signed", 5), ("naive", 1)])  # fmt: skip
def test_an_interrupted_transfer_ends_in_the_same_bits(run, tmp_path, method, after):
    plan = TransferPlan(method, stages=4)
    whole = transfer(run, tmp_path / "whole", plan=plan)
    with pytest.raises(KeyboardInterrupt):
        transfer(run, tmp_path / "broken", plan=plan, progress=interrupt_after(after))
    left = len(Trajectory.open(tmp_path / "broken"))
    assert left < 5
    resumed = transfer(run, tmp_path / "broken", plan=plan, resume=True)
    same(whole, resumed)
    if method != "naive":
        assert resumed.cost.resumed_gradients > 0
        spent = resumed.cost.gradient_evaluations + resumed.cost.resumed_gradients
        assert spent == whole.cost.gradient_evaluations
    assert not (tmp_path / "broken" / "gradients").exists()


def test_the_run_folder_is_a_run_like_any_other(run, tmp_path):
    plan = TransferPlan("fgmt", stages=3, exclude=("6.*",))
    result = transfer(run, tmp_path / "run", plan=plan, configuration={"network": "small"})
    opened = Trajectory.open(tmp_path / "run")
    assert opened.steps == [0, 1, 2, 3]
    assert opened.description["configuration"] == {"network": "small"}
    model = network(5)
    model.load_state_dict(dict(opened[-1].weights))
    loaded = load_transfer(tmp_path / "run")
    same(result, loaded)
    assert (loaded.plan, loaded.cost, loaded.chosen) == (result.plan, result.cost, result.chosen)
    summary = json.loads((tmp_path / "run" / "transfer.json").read_text())
    assert summary["cost"]["gradient_evaluations"] == 6
    held = Permutation.load(tmp_path / "run" / "permutations" / "00000003.safetensors")
    assert held.same_as(result.source_to_target)


def test_a_finished_transfer_is_not_done_again(run, tmp_path):
    first = transfer(run, tmp_path / "run", plan=TransferPlan(stages=2))
    again = transfer(run, tmp_path / "run", plan=TransferPlan(stages=2), resume=True)
    same(first, again)
    with pytest.raises(FileExistsError, match="already holds a run"):
        transfer(run, tmp_path / "run", plan=TransferPlan(stages=2))


def test_a_full_disk_leaves_a_transfer_that_can_go_on(run, tmp_path, monkeypatch):
    plan = TransferPlan("fgmt", stages=3)
    whole = transfer(run, tmp_path / "whole", plan=plan)
    written = []

    def full(tensors, path, **_):
        written.append(path)
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("slipstream.transfer.gradient_store.save_file", full)
        with pytest.raises(OSError, match=r"could not be written: .*No space left.*resume"):
            transfer(run, tmp_path / "run", plan=plan)
    assert not written[0].exists()
    assert len(Trajectory.open(tmp_path / "run")) == 1
    same(whole, transfer(run, tmp_path / "run", plan=plan, resume=True))


def broken(run, folder, **plan):
    with pytest.raises(KeyboardInterrupt):
        transfer(run, folder, plan=TransferPlan(stages=4, **plan), progress=interrupt_after(3))


def test_another_plan_data_or_target_is_refused(run, tmp_path):
    broken(run, tmp_path / "run")
    with pytest.raises(ValueError, match=r"another plan \(stages: 4, now 5\)"):
        transfer(run, tmp_path / "run", plan=TransferPlan(stages=5), resume=True)
    other = [*batches()[:2], *batches(seed=1)[2:]]  # the first two calibrate BatchNorm
    with pytest.raises(ValueError, match="gives other batches"):
        transfer(run, tmp_path / "run", plan=TransferPlan(stages=4), resume=True, data=other)
    with pytest.raises(ValueError, match="another target"):
        transfer(run, tmp_path / "run", seed=3, plan=TransferPlan(stages=4), resume=True)


def test_statistics_that_were_rounded_differently_are_no_other_target(run, tmp_path, monkeypatch):
    whole = transfer(run, tmp_path / "whole", plan=TransferPlan(stages=4))
    broken(run, tmp_path / "run")
    recalibrated = Task.recalibrated

    def elsewhere(task, weights=None):
        return {n: (v * (1 + 1e-6)).to(v) for n, v in recalibrated(task, weights).items()}

    monkeypatch.setattr(Task, "recalibrated", elsewhere)
    found = transfer(run, tmp_path / "run", plan=TransferPlan(stages=4), resume=True)
    for name, value in whole.trajectory[-1].weights.items():
        torch.testing.assert_close(found.trajectory[-1].weights[name], value, rtol=1e-4, atol=1e-5)


def test_a_finished_transfer_is_only_given_back_where_it_was_asked_for(run, tmp_path):
    plan = TransferPlan("naive", stages=2)
    first = transfer(run, tmp_path / "run", plan=plan)
    losses = [stage.metrics["loss"] for stage in first.stages]
    best = transfer(run, tmp_path / "run", plan=replace(plan, keep="best"), resume=True)
    assert (first.chosen, best.chosen) == (2, losses.index(min(losses)))
    with pytest.raises(ValueError, match="another plan"):
        transfer(run, tmp_path / "run", plan=TransferPlan("naive", stages=3), resume=True)
    own = Trajectory.open(tmp_path / "run")
    with pytest.raises(FileExistsError, match="another path, or resume=True"):
        transfer(own, tmp_path / "run", plan=plan)
    with pytest.raises(ValueError, match="another target"):
        transfer(run, tmp_path / "run", seed=3, plan=plan, resume=True)


def test_what_was_not_measured_before_the_interruption_is_measured_after_it(run, tmp_path):
    plan = TransferPlan("naive", stages=3, exclude=["6.*"])
    whole = transfer(run, tmp_path / "whole", plan=plan)
    with pytest.raises(KeyboardInterrupt):
        transfer(run, tmp_path / "run", plan=plan, validation=None, progress=interrupt_after(2))
    same(whole, transfer(run, tmp_path / "run", plan=plan, resume=True))


def test_what_was_measured_is_not_measured_again(run, tmp_path):
    broken(run, tmp_path / "run")
    other = batches(seed=8)
    result = transfer(
        run, tmp_path / "run", plan=TransferPlan(stages=4), resume=True, validation=other
    )
    again = Trajectory.open(tmp_path / "run")
    recorded = [{f"validation_{n}": v for n, v in s.metrics.items()} for s in result.stages]
    assert [s.metrics for s in again] == recorded


def test_another_writer_is_let_in_when_a_transfer_ends_or_fails(run, tmp_path):
    broken(run, tmp_path / "run")
    reopen_run(tmp_path / "run").close()


def test_gradients_come_back_on_the_models_device(tmp_path):
    first = GradientStore(tmp_path)
    factors = LowRank(torch.ones(2, 3), torch.full((2, 4), 2.0))
    first.get(batches="one", compute=lambda: {"w": factors, "b": torch.ones(3)})
    found = GradientStore(tmp_path, device="meta").get(batches="one", compute=dict)
    assert {found["w"].left.device.type, found["b"].device.type} == {"meta"}
    kept = GradientStore(tmp_path).get(batches="one", compute=dict)
    assert torch.equal(kept["w"].left, factors.left)
    assert torch.equal(kept["w"].right, factors.right)


def test_a_source_is_found_from_every_folder(run, tmp_path, monkeypatch):
    source = tmp_path / "runs" / "source"
    create_run(source, model=network(0)).close()
    out = tmp_path / "runs" / "moved"
    monkeypatch.chdir(tmp_path)
    reference = source_reference("runs/source", "runs/moved")
    assert reference == "../source"
    configuration = {"source": reference}
    transfer(run, out, plan=TransferPlan("naive", stages=1), configuration=configuration)
    monkeypatch.chdir("/")
    assert find_source(out) == source
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert find_source(tmp_path / "elsewhere" / "moved") == tmp_path / "elsewhere" / "source"
    assert source_reference("/runs/source", tmp_path / "moved") == "/runs/source"


def test_the_source_of_an_old_transfer_is_found_where_it_was_typed(run, tmp_path, monkeypatch):
    create_run(tmp_path / "runs" / "source", model=network(0)).close()
    out = tmp_path / "transfers" / "moved"
    transfer(
        run, out, plan=TransferPlan("naive", stages=1), configuration={"source": "runs/source"}
    )
    monkeypatch.chdir("/")
    assert find_source(out) == tmp_path / "runs" / "source"
    (tmp_path / "runs" / "source").rename(tmp_path / "transfers" / "source")
    assert find_source(out) == tmp_path / "transfers" / "source"
    (tmp_path / "transfers" / "source").rename(tmp_path / "gone")
    assert find_source(out) is None


def test_a_finished_folder_can_be_overwritten(run, tmp_path):
    plan = TransferPlan("naive", stages=1)
    transfer(run, tmp_path / "run", plan=plan)
    task = Task(network(1), batches(), calibration=())
    again = transfer_trajectory(
        run,
        weights_of(network(3)),
        task,
        plan=plan,
        run_folder=NewRun(tmp_path / "run", overwrite=True),
    )
    own = weights_of(network(3))["1.running_var"]
    assert torch.equal(again.trajectory[0].weights["1.running_var"], own)  # nothing calibrated
    assert len(Trajectory.open(tmp_path / "run")) == 2
