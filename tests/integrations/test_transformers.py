"""The callbacks in real trainings of a tiny model, in one go and broken off and resumed."""

import pytest
import torch
import transformers

from slipstream.averaging import EMA, LAWA, SWA, Averages, Nowcaster, NowcastPlan
from slipstream.evaluation import Task
from slipstream.integrations.transformers import (
    AveragingCallback,
    NowcastingCallback,
    OnlineModesCallback,
    RecordingCallback,
)
from slipstream.trajectory import Schedule, Trajectory, check_run
from slipstream.weights import weights_of

RULES = [SWA(start=3), EMA(0.9), LAWA(2)]
DATA = [{"input_ids": row, "labels": row} for row in torch.arange(96).view(12, 8) % 13]
OPTIONS = {"modes": 2, "warm_up": 3, "trial": 2, "samples": 50}


def tiny():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=13,
            n_positions=8,
            n_embd=8,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


class Break(transformers.TrainerCallback):
    """Breaks the training off."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 7:
            raise KeyboardInterrupt


class Spy(transformers.TrainerCallback):
    """Keeps the weights after every step, the plain way."""

    def __init__(self):
        self.weights = {}

    def on_train_begin(self, args, state, control, model=None, **_):
        self.weights[state.global_step] = copied(model)

    def on_step_end(self, args, state, control, model=None, **_):
        self.weights[state.global_step] = copied(model)


def copied(model):
    return {name: value.clone() for name, value in weights_of(model).items()}


def arguments(folder, **options):
    settings = {
        "max_steps": 10, "per_device_train_batch_size": 3, "save_steps": 5, "logging_steps": 1,
        "learning_rate": 0.01, "lr_scheduler_type": "constant", "use_cpu": True, "seed": 3,
        "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    return transformers.TrainingArguments(str(folder / "out"), **settings | options)


def callbacks(folder):
    return [
        RecordingCallback(folder / "run", schedule=Schedule.every(2)),
        AveragingCallback(RULES),
        OnlineModesCallback(every=1, **OPTIONS),
    ]


def train(folder, *extra, resume=None, data=DATA, **options):
    made = callbacks(folder)
    trainer = transformers.Trainer(
        model=tiny(), args=arguments(folder, **options), train_dataset=data,
        eval_dataset=data[:3], callbacks=[*made, *extra],
    )  # fmt: skip
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        made[0].close()
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training in one go: its folder, its callbacks, and the weights after each step."""
    folder, spy = tmp_path_factory.mktemp("whole"), Spy()
    return folder, train(folder, spy), spy.weights


def test_the_run_holds_the_weights_and_the_numbers_of_each_step(whole):
    folder, _, weights = whole
    run = Trajectory.open(folder / "run")
    assert run.steps == [0, 2, 4, 6, 8, 10]
    for snapshot in run:
        for name, value in snapshot.weights.items():
            assert torch.equal(value, weights[snapshot.step][name])
    assert run.layout.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert [snapshot.epoch for snapshot in run] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert run[0].metrics == {}
    assert {"loss", "grad_norm", "learning_rate"} <= run[1].metrics.keys()
    assert "train_runtime" not in run[-1].metrics
    assert run.description["seed"] == 3
    assert run.description["configuration"]["trainer"]["max_steps"] == 10


def test_averages_are_those_of_the_weights_after_each_step(whole):
    _, (_, averaging, online), weights = whole
    steps = list(range(1, 11))
    for rule in RULES:
        for name, value in averaging.averages.weights(rule).items():
            kernel = torch.tensor(rule.kernel(steps), dtype=torch.float64)
            stacked = torch.stack([weights[step][name].double() for step in steps])
            expected = torch.tensordot(kernel, stacked, 1)
            torch.testing.assert_close(value, expected.float(), rtol=2e-7, atol=1e-12)
    assert online.modes.steps == tuple(steps)


def test_broken_off_and_resumed_is_the_same_run(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Break())
    assert Trajectory.open(tmp_path / "run").steps == [0, 2, 4, 6]
    _, averaging, online = train(tmp_path, resume=True)
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


def test_the_last_weights_are_kept_and_not_the_best(tmp_path):
    spy = Spy()
    best = {
        "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 5,
        "metric_for_best_model": "loss", "greater_is_better": True,  # so that it is an earlier one
    }  # fmt: skip
    train(tmp_path, spy, **best)
    run = Trajectory.open(tmp_path / "run")
    assert run.steps[-1] == 10
    assert torch.equal(run[-1]["transformer.wpe.weight"], spy.weights[10]["transformer.wpe.weight"])
    assert "eval_loss" in run[-1].metrics


def test_every_epoch_and_accumulated_gradients(tmp_path):
    averaging = AveragingCallback([LAWA(9)], every="epoch")
    spy = Spy()
    options = {"gradient_accumulation_steps": 2, "max_steps": 4}
    train(tmp_path, averaging, spy, **options)  # two optimiser steps are an epoch
    assert Trajectory.open(tmp_path / "run").steps == [0, 2, 4]
    name = "transformer.wpe.weight"
    expected = (spy.weights[2][name].double() + spy.weights[4][name].double()) / 2
    torch.testing.assert_close(averaging.averages.weights(LAWA(9))[name], expected.float())


def test_resuming_without_a_state_is_an_error_and_restarting_is_not(tmp_path):
    args = arguments(tmp_path)
    transformers.Trainer(model=tiny(), args=args, train_dataset=DATA).train()

    def resumed(**options):
        averaging = AveragingCallback([EMA(0.9)], **options)
        trainer = transformers.Trainer(
            model=tiny(), args=args, train_dataset=DATA, callbacks=[averaging]
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
        return averaging.averages

    with pytest.raises(FileNotFoundError, match=r"checkpoint-5 holds no averages .*restart=True"):
        resumed()
    found = resumed(restart=True)
    assert found.step == 10
    with pytest.warns(DeprecationWarning, match=r"anew= is now restart="):  # as in 0.1
        assert resumed(anew=True).step == 10
    with pytest.warns(DeprecationWarning, match=r"anew= is now restart="):
        OnlineModesCallback(anew=True)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    other = Averages(tiny(), [EMA(0.9)])
    other.update(step=5)
    torch.save(other.state_dict(), folder / "slipstream_averages.pt")
    name = "transformer.wpe.weight"
    assert not torch.equal(
        resumed(checkpoint=folder).weights(EMA(0.9))[name], found.weights(EMA(0.9))[name]
    )


def validated(folder, *, resume=None, broken=None, spy=None, rule=RULES[1], **options):
    """A training that evaluates and saves an average every 5 steps, and what was evaluated."""
    model, seen = tiny(), []
    averaging = AveragingCallback(RULES, validate=rule)

    def metrics(_):
        seen.append(copied(model))
        if broken and len(seen) == 2:
            raise broken
        return {}

    trainer = transformers.Trainer(
        model=model,
        args=arguments(folder, eval_strategy="steps", eval_steps=5, **options),
        train_dataset=DATA, eval_dataset=DATA[:3], compute_metrics=metrics,
        callbacks=[spy] if spy else [],
    )  # fmt: skip
    try:
        averaging.attach(trainer).train(resume_from_checkpoint=resume)
    except BaseException as error:
        if error is not broken:
            raise
    return trainer, averaging, seen


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same training that evaluates its own weights: after each step, and its averages."""
    spy = Spy()
    _, averaging, _ = validated(tmp_path_factory.mktemp("plain"), spy=spy, rule=None)
    return spy.weights, averaging.averages.weights(EMA(0.9))


def test_averaged_weights_are_evaluated_and_saved_and_training_is_not_altered(plain, tmp_path):
    spy = Spy()
    trainer, averaging, seen = validated(tmp_path, spy=spy)
    assert all(same(spy.weights[step], plain[0][step]) for step in range(11))
    assert same(seen[-1], averaging.averages.weights(EMA(0.9)))
    assert same(copied(trainer.model), plain[0][10])
    trainer.evaluate()  # after the training: what is in the model
    assert same(seen[-1], plain[0][10])
    saved = type(trainer.model).from_pretrained(tmp_path / "out" / "checkpoint-10")
    assert same(copied(saved), averaging.averages.weights(EMA(0.9)))


def test_the_best_model_is_an_averaged_one(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    trainer, _, seen = validated(tmp_path, **best)
    assert any(same(copied(trainer.model), weights) for weights in seen)
    assert not same(copied(trainer.model), tiny().state_dict())


def test_resuming_from_averaged_weights_continues_from_the_trained_ones(plain, tmp_path):
    validated(tmp_path)
    spy = Spy()
    checkpoint = str(tmp_path / "out" / "checkpoint-5")
    _, averaging, _ = validated(tmp_path, resume=checkpoint, spy=spy)
    assert all(same(spy.weights[step], plain[0][step]) for step in range(6, 11))
    assert same(averaging.averages.weights(EMA(0.9)), plain[1])


@pytest.mark.parametrize("broken", [ValueError("broken off"), KeyboardInterrupt()], ids=repr)
def test_an_exception_in_the_evaluation_restores_the_trained_weights(plain, tmp_path, broken):
    trainer, _, seen = validated(tmp_path, broken=broken)
    assert not same(seen[-1], plain[0][10])
    assert same(copied(trainer.model), plain[0][10])


def test_validating_an_average_needs_the_trainer(tmp_path):
    averaging = AveragingCallback(RULES, validate=EMA(0.9))
    trainer = transformers.Trainer(
        model=tiny(), args=arguments(tmp_path), train_dataset=DATA, callbacks=[averaging]
    )
    with pytest.raises(RuntimeError, match=r"call callback.attach\(trainer\)"):
        trainer.train()


def nowcast(folder, *, resume=None, **options):
    """A training with jumps to the trend."""
    model = tiny()
    held_out = [{"input_ids": (torch.arange(32).view(4, 8) * 3) % 13}]
    held_out[0]["labels"] = held_out[0]["input_ids"]
    task = Task(model, [], lambda m, b: m(**b).loss, validation=held_out,
                batch_size=lambda batch: len(batch["input_ids"]))  # fmt: skip
    plan = NowcastPlan(snapshots=3, gap=1, every=3, ahead=(0, 2, 4))
    callback = NowcastingCallback(Nowcaster(task, plan))
    trainer = transformers.Trainer(
        model=model, args=arguments(folder, **options), train_dataset=DATA, callbacks=[callback]
    )
    trainer.train(resume_from_checkpoint=resume)
    return callback.nowcaster, copied(model)


def test_a_nowcaster_jumps_and_resumes(tmp_path):
    whole, weights = nowcast(tmp_path)
    assert [jump.step for jump in whole.jumps] == [3, 6, 9]
    assert any(jump.ahead is not None for jump in whole.jumps)
    resumed, others = nowcast(tmp_path, resume=str(tmp_path / "out" / "checkpoint-5"))
    assert [j.losses for j in resumed.jumps] == [j.losses for j in whole.jumps]
    assert same(weights, others)


def test_a_nowcaster_of_another_model_is_refused(tmp_path):
    callback = NowcastingCallback(Nowcaster(Task(tiny(), validation=DATA[:1])))
    trainer = transformers.Trainer(
        model=tiny(), args=arguments(tmp_path), train_dataset=DATA, callbacks=[callback]
    )
    with pytest.raises(ValueError, match="has another model than the one that trains"):
        trainer.train()


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
