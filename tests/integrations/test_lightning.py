"""The callbacks in real trainings of a tiny module, in one go and broken off and resumed."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from slipstream.averaging import EMA, LAWA, SWA, Nowcaster, NowcastPlan
from slipstream.evaluation import Task, recalibrate_batchnorm
from slipstream.integrations.lightning import (
    AveragingCallback,
    NowcastingCallback,
    OnlineModesCallback,
    RecordingCallback,
)
from slipstream.trajectory import Schedule, Trajectory, check_run
from slipstream.weights import weights_of

RULES = [SWA(start=3), EMA(0.9), LAWA(2)]
OPTIONS = {"modes": 2, "warm_up": 3, "trial": 2, "samples": 50}


@pytest.fixture(autouse=True)
def _advice_of_lightning():
    """On workers, logging intervals and the like; and what its own code is warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        yield


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    def training_step(self, batch, _):
        loss = (self.network(batch) - batch[:, :2]).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("validation_loss", (self.network(batch) - batch[:, :2]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(64.0).view(16, 4).sin(), batch_size=4)

    def val_dataloader(self):
        return self.train_dataloader()


class TwoOptimizers(Module):
    """As in adversarial training: each batch is a step of both."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, _):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, 0))
            optimizer.step()

    def configure_optimizers(self):
        halves = self.network[0].parameters(), self.network[2].parameters()
        return [torch.optim.SGD(half, lr=0.1) for half in halves]


class Break(Callback):
    """Breaks the training off."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 7:
            raise ValueError("broken off")


class Spy(Callback):
    """Keeps the weights after every step, the plain way."""

    def __init__(self):
        self.weights = {}

    def on_train_start(self, trainer, pl_module):
        self.weights[trainer.global_step] = copied(pl_module.network)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights[trainer.global_step] = copied(pl_module.network)


def copied(model):
    return {name: value.clone() for name, value in weights_of(model).items()}


def callbacks(folder):
    return [
        RecordingCallback(folder / "run", module="network", schedule=Schedule.every(2)),
        AveragingCallback(RULES, module="network"),
        OnlineModesCallback(every=1, module="network", **OPTIONS),
    ]


def train(folder, *extra, module=Module, resume=None, made=None, **options):
    made = callbacks(folder) if made is None else made
    saving = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=4, save_top_k=-1)
    trainer = Trainer(
        **{"max_steps": 10} | options,
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[*made, *extra, saving],
    )  # fmt: skip
    trainer.fit(module(), ckpt_path=resume)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training in one go: its folder, its callbacks, and the weights after each step."""
    folder, spy = tmp_path_factory.mktemp("whole"), Spy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        return folder, train(folder, spy), spy.weights


def test_the_run_holds_the_weights_and_the_numbers_of_each_step(whole):
    folder, _, weights = whole
    run = Trajectory.open(folder / "run")
    assert run.steps == [0, 2, 4, 6, 8, 10]
    assert run.layout.model == "torch.nn.modules.container.Sequential"
    for snapshot in run:
        for name, value in snapshot.weights.items():
            assert torch.equal(value, weights[snapshot.step][name])
    assert [snapshot.epoch for snapshot in run] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert "validation_loss" in run.at(4).metrics
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    network.load_state_dict(run.at(4).state_dict())
    batches = [torch.arange(64.0).view(16, 4).sin()[n : n + 4] for n in range(0, 16, 4)]
    losses = [(network.eval()(b) - b[:, :2]).square().mean().item() for b in batches]
    assert run.at(4).metrics["validation_loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_averages_are_those_of_the_weights_after_each_step(whole):
    _, (_, averaging, online), weights = whole
    steps = list(range(1, 11))
    for rule in RULES:
        for name, value in averaging.averages.weights(rule).items():
            if not value.is_floating_point():
                continue
            kernel = torch.tensor(rule.kernel(steps), dtype=torch.float64)
            stacked = torch.stack([weights[step][name].double() for step in steps])
            expected = torch.tensordot(kernel, stacked, 1)
            torch.testing.assert_close(value, expected.float(), rtol=2e-7, atol=1e-12)
    assert online.modes.steps == tuple(steps)


def test_broken_off_and_resumed_is_the_same_run(whole, tmp_path):
    """From the end of an epoch: inside one, Lightning does not know which batches were seen."""
    with pytest.raises(ValueError, match="broken off"):
        train(tmp_path, Break())
    assert Trajectory.open(tmp_path / "run").steps == [0, 2, 4, 6]
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    _, averaging, online = train(tmp_path, resume=checkpoint)
    folder, (_, expected, modes), _ = whole
    first, second = Trajectory.open(folder / "run"), Trajectory.open(tmp_path / "run")
    assert second.steps == first.steps
    assert check_run(tmp_path / "run") == []
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(other.weights[n], value) for n, value in one.weights.items())
        assert other.epoch == one.epoch
        assert other.metrics.get("loss") == one.metrics.get("loss")
    for rule in RULES:
        found = averaging.averages.weights(rule)
        for name, value in expected.averages.weights(rule).items():
            assert torch.equal(found[name], value)
    found = online.modes.weights()
    assert all(torch.equal(found[n], value) for n, value in modes.modes.weights().items())


def test_steps_that_are_counted_two_at_a_time(tmp_path):
    """With two optimisers the steps are 2, 4, 6: those that the schedule passes are kept."""
    averaging = AveragingCallback([LAWA(9)], every=3, module="network")
    recording = RecordingCallback(
        tmp_path / "run", module="network", schedule=Schedule.every(3), overwrite=True
    )
    spy = Spy()
    made = [recording, averaging]
    train(tmp_path, spy, module=TwoOptimizers, made=made, max_steps=12)
    assert Trajectory.open(tmp_path / "run").steps == [0, 4, 6, 10, 12]
    expected = torch.stack([spy.weights[step]["0.weight"].double() for step in (4, 6, 10, 12)])
    found = averaging.averages.weights(LAWA(9))["0.weight"]
    torch.testing.assert_close(found, expected.mean(0).float())


def test_every_epoch_and_accumulated_gradients(tmp_path):
    averaging = AveragingCallback([LAWA(9)], every="epoch", module="network")
    spy = Spy()
    made = [
        RecordingCallback(tmp_path / "run", module="network", schedule=Schedule.at(())),
        averaging,
    ]
    train(tmp_path, spy, made=made, max_steps=4, accumulate_grad_batches=2)
    assert Trajectory.open(tmp_path / "run").steps == [0, 4]
    expected = (spy.weights[2]["0.weight"].double() + spy.weights[4]["0.weight"].double()) / 2
    torch.testing.assert_close(averaging.averages.weights(LAWA(9))["0.weight"], expected.float())


class Watch(Module):
    """Notes the weights that are validated, and may break off there."""

    broken = None

    def __init__(self):
        super().__init__()
        self.seen = []

    def validation_step(self, batch, index):
        super().validation_step(batch, index)
        self.seen.append(copied(self.network))
        if self.broken and self.trainer.global_step == 8:
            raise self.broken


def validating(**options):
    return AveragingCallback(RULES, module="network", validate=EMA(0.9), **options)


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def test_averaged_weights_are_validated_and_saved_and_training_is_not_altered(whole, tmp_path):
    module, averaging, spy = Watch(), validating(), Spy()
    train(tmp_path, spy, module=lambda: module, made=[averaging], max_steps=8)
    _, _, weights = whole
    assert all(same(spy.weights[step], weights[step]) for step in range(9))
    assert same(copied(module.network), weights[8])
    assert same(module.seen[-1], averaging.averages.weights(EMA(0.9)))
    assert same(module.seen[0], weights[0])  # the check before the training uses what is there
    saved = torch.load(tmp_path / "checkpoints" / "epoch=1-step=8.ckpt", weights_only=True)
    found = {name.removeprefix("network."): v for name, v in saved["state_dict"].items()}
    assert same(found, averaging.averages.weights(EMA(0.9)))


def test_resuming_from_averaged_weights_continues_from_the_trained_ones(whole, tmp_path):
    train(tmp_path, made=[validating()], max_steps=4)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    spy, averaging = Spy(), validating()
    train(tmp_path, spy, made=[averaging], resume=checkpoint)
    _, (_, expected, _), weights = whole
    assert all(same(spy.weights[step], weights[step]) for step in range(4, 11))
    assert same(averaging.averages.weights(EMA(0.9)), expected.averages.weights(EMA(0.9)))


@pytest.mark.parametrize("broken", [ValueError("broken off"), KeyboardInterrupt()], ids=repr)
def test_an_exception_in_the_validation_restores_the_trained_weights(whole, tmp_path, broken):
    module = Watch()
    module.broken = broken
    with pytest.raises((ValueError, SystemExit)):
        train(tmp_path, module=lambda: module, made=[validating()])
    assert same(copied(module.network), whole[2][8])


def test_batchnorm_can_be_calibrated_for_the_validation(tmp_path):
    module = Watch()
    batches = [torch.arange(64.0).view(16, 4).sin()]
    averaging = validating(calibration=batches)
    train(tmp_path, module=lambda: module, made=[averaging], max_steps=8)
    weights = averaging.averages.weights(EMA(0.9))
    expected = weights | recalibrate_batchnorm(module.network, weights=weights, data=batches)
    assert same(module.seen[-1], expected)
    assert not same(module.seen[-1], weights)


def nowcast(folder, **options):
    """A training with jumps to the trend, and the same jumps in a plain loop."""
    module = Module()
    held_out = [torch.arange(64.0).view(16, 4).cos()]
    task = Task(
        module.network, [], lambda m, b: (m(b) - b[:, :2]).square().mean(), validation=held_out
    )
    plan = NowcastPlan(snapshots=3, gap=1, every=3, ahead=(0, 2, 4))
    nowcaster = Nowcaster(task, plan)
    train(folder, module=lambda: module, made=[NowcastingCallback(nowcaster)], **options)
    return nowcaster, copied(module.network)


def test_a_nowcaster_jumps_and_resumes(tmp_path):
    whole, weights = nowcast(tmp_path / "whole")
    assert [jump.step for jump in whole.jumps] == [3, 6, 9]
    assert any(jump.ahead is not None for jump in whole.jumps)
    nowcast(tmp_path / "part", max_steps=4)
    (checkpoint,) = (tmp_path / "part" / "checkpoints").iterdir()
    resumed, others = nowcast(tmp_path / "rest", resume=checkpoint)
    assert [j.losses for j in resumed.jumps] == [j.losses for j in whole.jumps]
    assert same(weights, others)


def test_a_nowcaster_of_another_model_is_refused(tmp_path):
    task = Task(nn.Linear(4, 2), validation=[torch.ones(1, 4)])
    with pytest.raises(ValueError, match="has another model than the one that trains"):
        train(tmp_path, made=[NowcastingCallback(Nowcaster(task))])


def test_a_run_that_is_there_is_not_overwritten(whole):
    folder, _, _ = whole
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(folder)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"validate must be one of the rules, .* got ema:0.5"):
        AveragingCallback(RULES, validate=EMA(0.5))
    with pytest.raises(ValueError, match="every must be at least 1 step, or 'epoch', got 0"):
        AveragingCallback(RULES, every=0)
    with pytest.raises(RuntimeError, match="no averages before the training"):
        AveragingCallback(RULES).averages  # ruff: ignore[useless-expression]
    with pytest.raises(RuntimeError, match="no modes before the training"):
        OnlineModesCallback().modes  # ruff: ignore[useless-expression]
