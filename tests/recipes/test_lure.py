import math

import pytest
import torch
from small_networks import Interrupt, batches, network, same, same_runs
from torch import nn

from slipstream.evaluation import Task, accuracy, classification_loss, evaluate
from slipstream.recipes import (
    LurePlan,
    least_salient,
    reset_weights_,
    resettable,
    train_lure,
    weight_saliency,
)

# One reset with an optimiser, and the order of batches: neither shows in what is returned.
from slipstream.recipes.lure.training import _Joined, _unlearn_
from slipstream.storage import resumable_state as checkpoint
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, TrainingPlan, fresh_weights
from slipstream.trajectory import Trajectory, check_run
from slipstream.weights import clone, weights_of

SHORT = TrainingPlan.cosine(epochs=2, lr=0.05)
CHUNKS = (batches(seed=1), batches(seed=2), batches(seed=4))
STILL = TrainingPlan.cosine(epochs=1, lr=1e-60, weight_decay=0.0)  # which is 0 in float32


def test_saliency_is_gradient_times_weight_over_all_examples():
    torch.manual_seed(0)
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
    model = nn.Linear(3, 1).double()

    def loss(model, batch):
        return (model(batch[0]).squeeze(-1) - batch[1]).square().mean()

    uneven = [(x[:7], y[:7]), (x[7:], y[7:])]
    found = weight_saliency(Task(model, uneven, loss))
    w, b = model.weight.detach().squeeze(), model.bias.detach()
    residual = x @ w + b - y
    torch.testing.assert_close(found["weight"][0], (2 * residual @ x / 10 * w).abs())
    torch.testing.assert_close(found["bias"], (2 * residual.mean() * b).abs())


@pytest.mark.parametrize(
    ("share", "total", "expected"),
    [(0.0, 10, 0), (0.2, 9, 1), (0.2, 10, 2), (0.29, 100, 29), (0.999, 10, 9), (0.3, 10, 3)],
)
def test_exactly_the_floor_is_chosen_and_ties_go_by_order(share, total, expected):
    ties = {"a": torch.ones(total // 2), "b": torch.ones(total - total // 2)}
    masks = least_salient(ties, share=share)
    flat = torch.cat(list(masks.values()))
    assert flat.tolist() == [place < expected for place in range(total)]


def test_the_least_of_all_tensors_together_are_chosen():
    generator = torch.Generator().manual_seed(0)
    saliency = {n: torch.randint(0, 9, (5, 7), generator=generator).double() for n in "ab"}
    masks = least_salient(saliency, share=0.4)
    ranked = sorted(
        (float(value), name, place)
        for name in saliency
        for place, value in enumerate(saliency[name].flatten())
    )  # plain Python, by value, then tensor, then place
    chosen = {(name, place) for _, name, place in ranked[:28]}
    assert chosen == {
        (n, p) for n in masks for p in masks[n].flatten().nonzero().flatten().tolist()
    }


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_resetting_changes_what_is_masked_and_nothing_else(kind):
    model = network()
    optimizer = TrainingPlan(optimizer=kind).build(list(model.parameters()))
    for inputs, labels in batches():
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    before = clone(weights_of(model))
    remembered = {
        name: {k: v.clone() for k, v in optimizer.state[p].items()}
        for name, p in model.named_parameters()
    }
    masks = {"0.weight": torch.rand(8, 3) < 0.4, "4.bias": torch.tensor([True, False])}
    fresh = fresh_weights(model, seed=5)
    reset_weights_(model, masks, fresh=fresh, optimizer=optimizer)
    after = weights_of(model)
    for name, value in before.items():
        mask = masks.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(after[name], torch.where(mask, fresh.get(name, value), value))
    for name, parameter in model.named_parameters():
        mask = masks.get(name, torch.zeros_like(parameter, dtype=torch.bool))
        for key, value in optimizer.state[parameter].items():
            old = remembered[name][key]
            expected = old if key == "step" else torch.where(mask, torch.zeros_like(old), old)
            assert torch.equal(value, expected)


def test_normalisation_layers_and_frozen_weights_are_left_alone():
    class OtherNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(8))

    model = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.RMSNorm(8),
        OtherNorm(), nn.Linear(8, 2),
    )  # fmt: skip
    model[6].weight.requires_grad_(False)
    assert resettable(model) == ["0.weight", "0.bias", "6.bias"]


@pytest.mark.parametrize("choice", ["saliency", "random", "none"])
def test_a_stage_resets_its_share_and_keeps_all_other_bits(choice):
    model = network()
    plan = LurePlan(share=0.3, choice=choice, slice_batches=1, descent=STILL)
    found = train_lure(Task(model), chunks=CHUNKS[:2], plan=plan)
    candidates = 24 + 8 + 16 + 2
    expected = 0 if choice == "none" else math.floor(0.3 * candidates)
    assert [stage.reset for stage in found.stages] == [0, expected]
    assert {stage.candidates for stage in found.stages} == {candidates}
    assert sum(found.stages[1].by_tensor.values()) == expected
    own = weights_of(model)
    changed = {n: own[n] != found.weights[n] for n, _ in model.named_parameters()}
    assert sum(int(mask.sum()) for mask in changed.values()) == expected
    assert not changed["1.weight"].any()
    if choice == "saliency":  # of the first batch of the new chunk, where the network stands
        at = {n: v for n, v in found.weights.items() if "running" in n or "tracked" in n}
        first = train_lure(Task(model), chunks=CHUNKS[:1], plan=plan).weights
        assert not same(at, {n: first[n] for n in at})
        saliency = weight_saliency(Task(model, CHUNKS[1][:1]), weights=first)
        masks = least_salient({n: saliency[n] for n in resettable(model)}, share=0.3)
        assert all(torch.equal(masks[n], changed[n]) for n in masks)


def test_the_memory_of_what_is_reset_becomes_zero():
    training = Loop(network(), SHORT, rounds=2)
    training.run(lambda batch: classification_loss(training.module, batch), data=CHUNKS[0])
    masks = _unlearn_(training, Task(training.module, CHUNKS[1]), LurePlan(share=0.4), 1, None)
    for name, parameter in training.module.named_parameters():
        mask = masks.get(name, torch.zeros_like(parameter, dtype=torch.bool))
        memory = training.optimizer.state[parameter]["momentum_buffer"]
        assert not memory[mask].any()
        assert memory[~mask].any()


def test_random_resets_are_other_ones_of_the_same_number():
    model = network()
    found = [
        train_lure(Task(model), chunks=CHUNKS[:2],
            plan=LurePlan(choice=choice, descent=STILL),
        )
        for choice in ("saliency", "random")
    ]  # fmt: skip
    assert found[0].stages[1].reset == found[1].stages[1].reset == 10
    assert found[0].stages[1].by_tensor != found[1].stages[1].by_tensor


def test_the_batches_of_all_chunks_so_far_come_once_an_epoch_in_random_order():
    chunks = [[0, 1, 2], [10, 11], [20]]
    joined = _Joined(chunks, seed=0)
    assert len(joined) == 6
    orders = [list(joined.epoch(number)) for number in range(8)]
    assert all(sorted(order) == [0, 1, 2, 10, 11, 20] for order in orders)
    assert len({tuple(order) for order in orders}) > 4
    assert orders[3] == list(_Joined(chunks, seed=0).epoch(3))


def test_it_is_recorded_and_learns(tmp_path):
    model, before = network(), clone(weights_of(network()))
    metrics, data = {"accuracy": accuracy}, [*CHUNKS[0], *CHUNKS[1]]
    plan = LurePlan(descent=TrainingPlan.cosine(epochs=15, lr=0.1, seed=6))
    task = Task(model, validation=data, metrics=metrics, configuration={"note": "mine"})
    found = train_lure(task, chunks=CHUNKS, plan=plan, run_folder=tmp_path / "run")
    assert same(before, weights_of(model))
    assert check_run(tmp_path / "run") == []
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, *range(3, 46, 3), *range(51, 136, 6), *range(144, 271, 9)]
    assert same(run[-1].weights, found.weights)
    last = run[-1].metrics
    assert last["train_loss"] == found.losses[-1]
    assert last["validation_accuracy"] == found.stages[-1].metrics["validation_accuracy"] > 0.85
    there = evaluate(model, metrics, weights=found.weights, data=data)
    assert there["accuracy"] == last["validation_accuracy"]
    assert run.description["configuration"]["recipe"]["lure"]["choice"] == "saliency"
    assert run.description["configuration"]["note"] == "mine"
    assert run.description["seed"] == 6


@pytest.mark.parametrize("stop_at", [2, 6, 8, 14, 33])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)  # a state after every epoch
    given = {"chunks": CHUNKS, "plan": LurePlan(descent=SHORT)}
    whole = train_lure(Task(network()), **given, run_folder=tmp_path / "whole")
    assert whole.steps == 36
    given["run_folder"] = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_lure(Task(network()), **given, progress=Interrupt(stop_at))
    with pytest.raises(FileExistsError, match="resume it"):
        train_lure(Task(network()), **given)
    given["run_folder"] = NewRun(tmp_path / "run", resume=True)
    resumed = train_lure(Task(network()), **given)
    assert same(resumed.weights, whole.weights)
    assert (resumed.stages, resumed.losses) == (whole.stages, whole.losses)
    assert same_runs(tmp_path / "whole", tmp_path / "run")
    again = train_lure(Task(network()), **given, progress=lambda *_: 1 / 0)
    assert same(again.weights, whole.weights)
    assert again.stages == whole.stages
    other = {**given, "plan": LurePlan(share=0.1, descent=SHORT)}
    with pytest.raises(ValueError, match=r"another training: its lure.share is 0.2, here it is"):
        train_lure(Task(network()), **other)
    fewer = {**given, "chunks": CHUNKS[:2]}
    with pytest.raises(ValueError, match=r"another training: its lure.chunks is 3, here it is 2"):
        train_lure(Task(network()), **fewer)


def test_it_goes_on_from_the_weights_of_another_run(tmp_path):
    plan = LurePlan(descent=STILL)
    given = fresh_weights(network(), seed=9)
    found = train_lure(Task(network()), chunks=CHUNKS[:1], plan=plan, initial=given,
        run_folder=tmp_path / "run",
    )  # fmt: skip
    assert torch.equal(found.weights["0.weight"], given["0.weight"])
    last = Trajectory.open(tmp_path / "run")[-1].weights
    again = train_lure(Task(network()), chunks=CHUNKS[:1], plan=plan, initial=last)
    assert torch.equal(again.weights["0.weight"], given["0.weight"])


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 3))

    def forward(self, x):
        return x @ self.scale.T


def test_layers_that_cannot_draw_anew_take_a_function():
    plan = LurePlan(share=0.5, descent=STILL)
    with pytest.raises(ValueError, match=r"Bare has parameters, but no reset_parameters.*fresh="):
        train_lure(Task(Bare()), chunks=CHUNKS[:2], plan=plan)
    found = train_lure(Task(Bare()), chunks=CHUNKS[:2], plan=plan,
        fresh=lambda seed: {"scale": torch.full((2, 3), 7.0)},
    )  # fmt: skip
    assert sorted(found.weights["scale"].flatten().tolist()) == [1.0] * 3 + [7.0] * 3


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, math.nan])
def test_a_share_outside_its_range(share):
    with pytest.raises(ValueError, match="share must be at least 0 and below 1"):
        LurePlan(share=share)
    with pytest.raises(ValueError, match="share must be at least 0 and below 1"):
        least_salient({"w": torch.ones(3)}, share=share)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chunks": []}, "chunks must hold 1 sets of batches at least, got 0"),
        ({"chunks": [CHUNKS[0], []]}, r"chunks\[1\] is empty"),
        ({"chunks": [iter(CHUNKS[0])]}, r"chunks\[0\] must have a length, got a list_iterator"),
        ({"initial": {"0.weight": torch.ones(8, 3)}}, "initial lacks the tensor '0.bias'"),
        (
            {"initial": weights_of(network()) | {"4.bias": torch.full((2,), math.nan)}},
            "initial holds a NaN or an infinity in '4.bias'",
        ),
        ({"plan": LurePlan(descent=TrainingPlan.cosine(lr=1e30))}, "is nan: try a smaller lr"),
        ({"model": nn.ReLU()}, "no parameter that requires a gradient"),
        ({"model": nn.BatchNorm1d(3)}, "only normalisation layers"),
    ],
)
def test_bad_input_says_what_is_wrong(given, message):
    given = {"model": network(), "chunks": CHUNKS, **given}
    with pytest.raises(ValueError, match=message):
        train_lure(Task(given.pop("model")), **given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LurePlan(choice="best"), "choice must be saliency, random or none, got 'best'"),
        (lambda: LurePlan(slice_batches=0), "slice_batches must be at least 1, got 0"),
        (lambda: least_salient({}, share=0.1), "There is no weight to choose from"),
        (
            lambda: least_salient({"w": torch.tensor([math.nan])}, share=0.1),
            "The saliency of 'w' holds a NaN",
        ),
        (
            lambda: reset_weights_(nn.Linear(2, 2), {"w": torch.ones(1)}, fresh={}),
            "the model lacks the tensor 'w' that masks has",
        ),
        (
            lambda: reset_weights_(
                nn.Linear(2, 2), {"bias": torch.ones(2) > 0}, fresh={"bias": torch.ones(3)}
            ),
            "the model and fresh differ in the shape of 'bias'",
        ),
    ],
)
def test_bad_pieces_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
