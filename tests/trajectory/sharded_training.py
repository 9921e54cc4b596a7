"""Started by tests: trainings of small sharded networks, in processes that share the work."""

import json
import os
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from slipstream.averaging import EMA, LAWA, SWA, Averages, PowerEMA
from slipstream.evaluation.swapped_weights import weights_in
from slipstream.modes import OnlineModes, OnlinePlan
from slipstream.sharded import gathered, local_part
from slipstream.trajectory import Recorder, Schedule, Trajectory
from slipstream.weights import load_weights_

RULES = (SWA(start=2), EMA(0.8), PowerEMA(0.2), LAWA(3))
MODES = OnlinePlan(modes=2, warm_up=3, trial=2, reference="component")


def network():
    """Sizes that no number of processes divides, BatchNorm, and layers that no unit wraps."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 8), nn.Linear(8, 1)]
    return nn.Sequential(*layers)


def batches(steps):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, generator=generator) for _ in range(steps)]


def sharded(model, kind):
    """Shard a network in place, by FSDP2, tensor parallelism, or both."""
    processes = torch.distributed.get_world_size()
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (processes,))
        fully_shard(model[0], mesh=mesh)
        return fully_shard(model, mesh=mesh)
    both = init_device_mesh("cpu", (processes // 2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, both["tensor"], {"3": ColwiseParallel(), "4": RowwiseParallel()})
    return fully_shard(model, mesh=both["data"]) if kind == "both" else model


def train(model, given, *followers):
    """Train with the same batches in all processes, so that one alone gets the same weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, foreach=False)
    for follower in followers:
        follower.attach(optimizer)
    for batch in given:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        for follower in followers:
            if isinstance(follower, Recorder):
                follower.log(loss=loss.detach())
        optimizer.step()


def recorded(path, model, given, **options):
    """A training of the network, recorded at every other step."""
    with Recorder(path, model, schedule=Schedule.every(2), **options) as recorder:
        train(model, given, recorder)


def run_processes(count, work, folder):
    """Run `work(folder)` in so many processes; the exit status is 0 if all went well."""
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            _take_part(rank, count, work, folder)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def _take_part(rank, count, work, folder):
    """In a process of its own, which ends here."""
    store = torch.distributed.FileStore(f"{folder}/store-{work.__name__}", count)
    try:
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
        work(folder)
        torch.distributed.destroy_process_group()
    except BaseException:  # ruff: ignore[blind-except]
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def said(work):
    """What an error says that all processes should get."""
    try:
        work()
    except Exception as error:  # ruff: ignore[blind-except]
        return f"{type(error).__name__}: {error}"
    return "nothing"


def recordings(folder):
    """What is recorded by several processes, and what they say of bad input."""
    rank = torch.distributed.get_rank()
    recorded(folder / "fsdp", sharded(network(), "fsdp"), batches(5))
    recorded(folder / "tensor", sharded(network(), "tensor"), batches(5))
    model = sharded(network(), "fsdp")
    before = Trajectory.open(folder / "alone-4").at(4)
    for name in before:
        load_weights_(model, {name: before[name]})
    recorded(folder / "alone-4", model, batches(5)[4:], resume=4)
    model.eval()
    with torch.no_grad():
        model(batches(1)[0])  # leaves the outer layers gathered
    recorder = Recorder(folder / "evaluated", model)
    recorder.record(step=1)
    recorder.close()
    answers = {
        "folder": said(lambda: Recorder(folder / f"of-{rank}", model)),
        "there": said(lambda: Recorder(folder / "fsdp", model)),
        "model": said(
            lambda: Recorder(folder / "x", fully_shard(nn.Linear(2, 2 + rank, bias=False)))
        ),
        "steps": said(lambda: steps_that_differ(folder / "steps", model)),
        "disk": said(lambda: unwritable(folder / "disk", model)),
    }
    (folder / f"said-{rank}.json").write_text(json.dumps(answers))


def steps_that_differ(path, model):
    recorder = Recorder(path, model)
    recorder.record(step=1)
    recorder.record(step=2 + torch.distributed.get_rank())
    recorder.close()


def unwritable(path, model):
    """The second process finds a folder where its file should be."""
    recorder = Recorder(path, model)
    recorder.record(step=1)
    if torch.distributed.get_rank():
        (path / "snapshots" / "00000002-00002-of-00002.safetensors.tmp").mkdir()
    recorder.record(step=2)
    recorder.close()


def followed(folder):
    """Averages and modes of a sharded training, and checkpoints in the formats of torch."""
    rank = torch.distributed.get_rank()
    model = sharded(network(), "fsdp")
    averages, modes = Averages(model, RULES), OnlineModes(model, MODES)
    train(model, batches(8), averages, AfterSteps(modes))
    state = averages.state_dict()
    again = Averages(model, RULES)
    again.load_state_dict(state)
    for rule in RULES:
        found, loaded = (
            {name: gathered(value).clone() for name, value in them.weights(rule).items()}
            for them in (averages, again)
        )
        assert all(torch.equal(found[name], loaded[name]) for name in found)
        if rank == 0:
            save_file(found, folder / f"{rule}.safetensors")
    if rank == 0:
        torch.save(modes.state_dict(), folder / "modes.pt")
        save_file(modes.weights(), folder / "modes.safetensors")
        torch.save(state, folder / "averages.pt")
    kept = {"model": model.state_dict(), "optimizer": {"lr": torch.ones(1)}, "step": 8}
    dcp.save(kept, checkpoint_id=folder / "native" / "step-8")
    plain = dcp.HuggingFaceStorageWriter(str(folder / "plain" / "step-8"), save_distributed=True)
    dcp.save(model.state_dict(), storage_writer=plain)
    answers = {
        "device": said(lambda: Averages(model, RULES, device="cpu")),
        "cut": said(lambda: load_weights_(model, {"0.weight": in_every_process(model[0].weight)})),
        "swap": said(lambda: weights_in(model, averages.weights(EMA(0.8))).__enter__()),
    }
    local_part(model[0].weight.detach())[-1] = float("nan") if rank else 1.0  # in one piece only
    averages.update()
    answers["finite"] = bool(averages.weights(EMA(0.8))["0.weight"].isfinite().all())
    (folder / f"followed-{rank}.json").write_text(json.dumps(answers))


def in_every_process(value):
    return value.detach().redistribute(placements=[Replicate()])


class AfterSteps:
    """Modes that are updated after every step."""

    def __init__(self, modes):
        self.modes = modes

    def attach(self, optimizer):
        optimizer.register_step_post_hook(lambda *_: self.modes.update())


def both(folder):
    recordings(folder)
    followed(folder)


def called_back(folder):
    """Trainings in which the callbacks of the frameworks hear of what theirs would tell them."""
    from slipstream.integrations import lightning, transformers

    first = torch.distributed.get_rank() == 0
    every = Schedule.every(2)

    model = sharded(network(), "fsdp")
    trainer = SimpleNamespace(is_global_zero=first, global_step=0, callback_metrics={})
    trainer.current_epoch, trainer.num_training_batches = 0, 5
    module = SimpleNamespace(get_submodule=lambda _: model)
    averaging = lightning.AveragingCallback([EMA(0.8)])
    callbacks = [lightning.RecordingCallback(folder / "lightning", schedule=every), averaging]
    tell(callbacks, "on_train_start", trainer, module)
    for number, _ in stepwise(model, batches(5)):
        if number:
            trainer.global_step += 1
            tell(callbacks, "on_train_batch_end", trainer, module, None, None, number - 1)
        if number < 5:
            tell(callbacks, "on_train_batch_start", trainer, module, None, number)
    tell(callbacks, "on_train_end", trainer, module)
    states = [averaging.state_dict()]

    model = sharded(network(), "fsdp")
    arguments = SimpleNamespace(
        to_sanitized_dict=dict, seed=0, load_best_model_at_end=False, output_dir=str(folder / "out")
    )
    state = SimpleNamespace(is_world_process_zero=first, global_step=0, epoch=0.0, max_steps=5)
    averaging = transformers.AveragingCallback([EMA(0.8)])
    callbacks = [transformers.RecordingCallback(folder / "transformers", schedule=every), averaging]
    told = arguments, state, SimpleNamespace(should_training_stop=False)
    tell(callbacks, "on_train_begin", *told, model=model)
    for number, _ in stepwise(model, batches(5)):
        if number:
            state.global_step += 1
            tell(callbacks, "on_step_end", *told)
        if number < 5:
            tell(callbacks, "on_step_begin", *told)
    (folder / "out" / "checkpoint-5").mkdir(parents=True, exist_ok=True)
    tell(callbacks, "on_save", *told)
    tell(callbacks, "on_train_end", *told)
    states.append(averaging.state())
    if first:
        torch.save(states, folder / "states.pt")


def tell(callbacks, what, *told, **named):
    for callback in callbacks:
        getattr(callback, what)(*told, **named)


def stepwise(model, given):
    """Train, and stop before the first step and after each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield 0, None
    for number, batch in enumerate(given, start=1):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        yield number, batch


def as_fsdp(folder):
    recorded(folder / "run", sharded(network(), "fsdp"), batches(5))


def as_tensor(folder):
    recorded(folder / "run", sharded(network(), "tensor"), batches(5))


def as_both(folder):
    recorded(folder / "run", sharded(network(), "both"), batches(5))


def for_long(folder):
    """A training that is killed."""
    (folder / f"pid-{torch.distributed.get_rank()}").write_text(str(os.getpid()))
    model = sharded(network(), "fsdp")
    with Recorder(folder / "run", model, schedule=Schedule.every(1)) as recorder:
        train(model, batches(10_000), recorder)


def the_rest(folder):
    """Three more steps."""
    model = sharded(network(), "fsdp")
    last = Trajectory.open(folder / "run")[-1]
    for name in last:
        load_weights_(model, {name: last[name]})
    with Recorder(folder / "run", model, schedule=Schedule.every(1), resume=True) as recorder:
        train(model, batches(3), recorder)


if __name__ == "__main__":
    sys.exit(run_processes(int(sys.argv[1]), globals()[sys.argv[2]], Path(sys.argv[3])))
