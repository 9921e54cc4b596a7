import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from slipstream.evaluation import (
    Task,
    accuracy,
    classification_loss,
    evaluate,
    recalibrate_batchnorm,
)
from slipstream.landscape import weight_cosine
from slipstream.recipes import SubspacePlan, load_subspace, train_subspace
from slipstream.storage import resumable_state as checkpoint
from slipstream.storage.new_run import NewRun
from slipstream.training import TrainingPlan, fresh_weights
from slipstream.trajectory import Trajectory, check_run
from slipstream.weights import clone, weights_of

SHORT = TrainingPlan.cosine(epochs=5, lr=0.05)


def network(seed=0, *, batchnorm=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norm = nn.BatchNorm1d(8) if batchnorm else nn.Identity()
        return nn.Sequential(nn.Linear(3, 8), norm, nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def batches(count=30):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, 3, generator=generator)
    return list(zip(inputs.split(8), (inputs[:, 0] > 0).long().split(8), strict=True))


def same(first, second):
    return all(
        torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a
    )


@pytest.mark.parametrize(
    ("plan", "corners"),
    [
        (SubspacePlan("line", descent=SHORT), 2),
        (SubspacePlan("curve", descent=SHORT), 3),
        (SubspacePlan("simplex", corners=4, layerwise=True, descent=SHORT), 4),
    ],
)
def test_every_point_is_ordinary_weights(plan, corners):
    model, data = network(), batches()
    before = clone(weights_of(model))
    found = train_subspace(Task(model, data), plan=plan)
    assert same([before], [weights_of(model)])
    assert len(found.corners) == corners
    assert found.steps == 20
    assert len(found.losses) == 5
    middle = found.midpoint
    assert list(middle) == list(weights_of(model))
    expected = recalibrate_batchnorm(model, weights=middle, data=data)
    assert all(torch.equal(middle[name], value) for name, value in expected.items())
    model.load_state_dict(middle)
    one, again = (evaluate(model, {"loss": classification_loss}, data=data) for _ in "ab")
    assert one == again  # dropout is for training


def test_a_line_learns_at_all_of_its_points():
    model, data = network(), batches(120)
    plan = SubspacePlan("line", descent=TrainingPlan.cosine(epochs=40, lr=0.1))
    line = train_subspace(Task(model, data), plan=plan)
    for position in (0.0, 0.3, 0.5, 1.0):
        found = evaluate(model, {"accuracy": accuracy}, weights=line.at(position), data=data)
        assert found["accuracy"] > 0.9
    assert line.cosine == pytest.approx(weight_cosine(*line.corners))
    assert abs(line.cosine) < 0.3
    free = SubspacePlan("line", repulsion=0.0, descent=plan.descent)
    one = train_subspace(Task(model, data), plan=free)
    assert abs(line.cosine) < abs(one.cosine)


def test_the_ensemble_is_the_mean_of_the_probabilities():
    model, data = network(), batches()
    line = train_subspace(Task(model, data), plan=SubspacePlan(descent=SHORT))
    metrics = {"accuracy": accuracy, "loss": classification_loss}
    found = evaluate(line.ensemble(model), metrics, data=data)
    alone = []
    for corner in line.corners:
        other = network()
        other.load_state_dict(corner)
        other.eval()
        alone.append(torch.cat([other(x).softmax(-1) for x, _ in data]).detach())
    mean, labels = (alone[0] + alone[1]) / 2, torch.cat([labels for _, labels in data])
    assert found["loss"] == pytest.approx(float(nn.functional.nll_loss(mean.log(), labels)))
    assert found["accuracy"] == pytest.approx(float((mean.argmax(-1) == labels).float().mean()))
    middle = evaluate(line.ensemble(model, positions=[0.5]), metrics, data=data)
    one = evaluate(model, metrics, weights=line.midpoint, data=data)
    assert middle == pytest.approx(one)


def test_the_first_corner_starts_at_the_model_and_the_others_elsewhere():
    model = network()
    begin = [clone(weights_of(model)), *(weights_of(network(seed)) for seed in (1, 2))]
    still = TrainingPlan.cosine(epochs=1, lr=1e-12, weight_decay=0.0)
    plan = SubspacePlan("simplex", descent=still)
    given = train_subspace(Task(model, batches()), plan=plan, initial=begin)
    for corner, start in zip(given.corners, begin, strict=True):
        torch.testing.assert_close(corner["0.weight"], start["0.weight"])
    drawn = train_subspace(Task(model, batches()), plan=plan)
    torch.testing.assert_close(drawn.corners[0]["0.weight"], begin[0]["0.weight"])
    for first, second in itertools.combinations(drawn.corners, 2):
        assert not torch.allclose(first["0.weight"], second["0.weight"])


def test_it_is_recorded_as_a_run_of_the_midpoint(tmp_path):
    model, data = network(), batches()
    folder = tmp_path / "run"
    plan = SubspacePlan(descent=SHORT)
    line = train_subspace(
        Task(model, data, validation=data, metrics={"accuracy": accuracy}),
        plan=plan,
        run_folder=NewRun(folder, configuration={"note": "mine"}),
    )
    run = Trajectory.open(folder)
    assert check_run(folder) == []
    assert run.steps == [0, 4, 8, 12, 16, 20]
    assert same([run[-1].weights], [line.midpoint])
    metrics = run[-1].metrics
    assert metrics["train_loss"] == line.losses[-1]
    assert metrics["cosine"] == pytest.approx(line.cosine)
    expected = evaluate(model, {"accuracy": accuracy}, weights=line.midpoint, data=data)
    assert metrics["validation_accuracy"] == expected["accuracy"]
    assert run.description["configuration"]["note"] == "mine"
    assert run.description["configuration"]["recipe"]["subspace"]["shape"] == "line"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["corners", "run.json", "snapshots", "snapshots.jsonl", "subspace.json"]

    loaded = load_subspace(folder, Task(model, data))
    assert loaded.plan == plan
    assert same(loaded.corners, line.corners)
    assert same([loaded.at(0.3)], [line.at(0.3)])
    assert loaded.losses == line.losses
    bare = load_subspace(folder)
    with pytest.raises(ValueError, match="must be recalibrated at every point"):
        bare.at(0.3)
    with pytest.raises(ValueError, match="data is empty"):
        load_subspace(folder, Task(model)).at(0.3)


@pytest.mark.parametrize(("stop_at", "share"), [(2, 1.0), (11, 1.0), (11, 0.0)])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, stop_at, share):
    """Also from a state that is older than the last snapshots, which are then taken again."""
    monkeypatch.setattr(checkpoint, "SHARE", share)
    data, plan = batches(), SubspacePlan("simplex", descent=SHORT)
    whole = train_subspace(Task(network(), data), plan=plan, run_folder=tmp_path / "whole")

    def stop(step, total):
        assert total == 20
        if step == stop_at:
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    task, given = Task(network(), data), {"plan": plan, "run_folder": folder}
    with pytest.raises(KeyboardInterrupt):
        train_subspace(task, **given, progress=stop)
    with pytest.raises(FileNotFoundError, match="not finished: resume it"):
        load_subspace(folder)
    with pytest.raises(FileExistsError, match="resume it"):
        train_subspace(task, **given)
    given["run_folder"] = NewRun(folder, resume=True)
    resumed = train_subspace(task, **given)
    assert same(resumed.corners, whole.corners)
    assert resumed.losses == whole.losses
    first, second = (Trajectory.open(tmp_path / name) for name in ("whole", "run"))
    assert first.steps == second.steps
    for a, b in zip(first, second, strict=True):
        assert same([a.weights], [b.weights])
    assert check_run(folder) == []

    finished = train_subspace(task, **given, progress=lambda *_: 1 / 0)
    assert same(finished.corners, whole.corners)
    other = {**given, "plan": SubspacePlan("simplex", corners=4, descent=SHORT)}
    with pytest.raises(ValueError, match="holds a finished subspace of another plan"):
        train_subspace(task, **other)


def test_a_plan_that_is_not_the_one_to_resume(tmp_path):
    task, plan = Task(network(), batches()), SubspacePlan(descent=SHORT)
    again = NewRun(tmp_path / "run", resume=True)

    def stop(step, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_subspace(task, plan=plan, run_folder=tmp_path / "run", progress=stop)
    with pytest.raises(
        ValueError, match=r"another training: its plan.repulsion is 1.0, here it is"
    ):
        train_subspace(task, plan=SubspacePlan(repulsion=2.0, descent=SHORT), run_folder=again)
    with pytest.raises(ValueError, match="another training: its start is"):
        train_subspace(Task(network(7), batches()), plan=plan, run_folder=again)


def test_overwriting_leaves_nothing_of_the_other(tmp_path):
    folder, data = tmp_path / "run", batches()
    three = SubspacePlan("simplex", descent=SHORT)
    train_subspace(Task(network(), data), plan=three, run_folder=folder)
    line = SubspacePlan(descent=SHORT)
    train_subspace(Task(network(), data), plan=line, run_folder=NewRun(folder, overwrite=True))
    assert sorted(path.name for path in (folder / "corners").iterdir()) == [
        "0.safetensors",
        "1.safetensors",
    ]


def test_a_damaged_description_says_so(tmp_path):
    folder = tmp_path / "run"
    task, plan = Task(network(), batches()), SubspacePlan(descent=SHORT)
    train_subspace(task, plan=plan, run_folder=folder)
    file = folder / "subspace.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "plan": {"shape": "line", "speed": 3}}))
    with pytest.raises(ValueError, match=r"subspace\.json holds no subspace, or is damaged"):
        load_subspace(folder)
    with pytest.raises(FileNotFoundError, match=r"holds no subspace: it has no subspace.json"):
        load_subspace(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "sphere"}, "shape must be line, curve or simplex, got 'sphere'"),
        ({"shape": "simplex", "corners": 1}, "corners of a simplex must be 2 to 6, got 1"),
        ({"shape": "simplex", "corners": 7}, "corners of a simplex must be 2 to 6, got 7"),
        ({"shape": "line", "corners": 3}, "A line has 2 corners, got corners=3"),
        ({"repulsion": -1.0}, "repulsion must not be negative"),
    ],
)
def test_plans_of_no_subspace(options, message):
    with pytest.raises(ValueError, match=message):
        SubspacePlan(**options)


def test_starts_that_make_no_subspace():
    model, data = network(), batches()
    own, other = weights_of(model), weights_of(network(1))
    plan = SubspacePlan(descent=SHORT)

    def train(initial):
        return train_subspace(Task(model, data), plan=plan, initial=initial)

    with pytest.raises(ValueError, match="weights for each of the 2 corners, got 3"):
        train([own, other, own])
    with pytest.raises(ValueError, match=r"initial\[0\] and initial\[1\] are equal"):
        train([own, clone(own)])
    with pytest.raises(ValueError, match=r"initial\[0\] and initial\[1\] differ in the shape"):
        train([own, other | {"0.weight": torch.zeros(1, 3)}])
    with pytest.raises(ValueError, match=r"initial\[1\] holds a NaN or an infinity in '4.bias'"):
        train([own, other | {"4.bias": torch.full((2,), math.inf)}])
    with pytest.raises(ValueError, match="data is empty"):
        train_subspace(Task(model, []), plan=plan)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 3))

    def forward(self, x):
        return x @ self.scale.T


def test_models_that_cannot_be_drawn_anew_say_how_to_start():
    data, plan = batches(), SubspacePlan(descent=SHORT)
    with pytest.raises(ValueError, match=r"Bare has parameters, but no reset_parameters.*initial="):
        train_subspace(Task(Bare(), data), plan=plan)
    begin = [{"scale": torch.randn(2, 3)} for _ in "ab"]
    train_subspace(Task(Bare(), data), plan=plan, initial=begin)

    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=r"'0.parametrizations.weight' .* no reset_.*initial="):
        train_subspace(Task(normed, data), plan=plan)
    starts = [weights_of(parametrizations.weight_norm(nn.Linear(3, 2))) for _ in "ab"]
    begin = [{f"0.{name}": value for name, value in own.items()} for own in starts]
    line = train_subspace(Task(normed, data), plan=plan, initial=begin)
    normed.load_state_dict(line.midpoint)


def test_a_layer_that_draws_nothing_new_is_noticed():
    class Still(nn.Linear):
        def reset_parameters(self):
            nn.init.eye_(self.weight)

    with pytest.raises(ValueError, match="'weight' is not re-initialised by its layer"):
        fresh_weights(Still(2, 2), seed=0)


def test_the_seed_that_made_the_model_is_no_mistake():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Linear(2, 2)
    assert same([fresh_weights(model, seed=3)], [weights_of(model)])


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    task = Task(model, batches(), lambda model, batch: model(batch[0]).square().mean())
    line = train_subspace(task, plan=SubspacePlan(descent=SHORT))
    assert "2.weight" not in line.midpoint
    assert model[2].weight is model[0].weight


def test_fresh_weights_are_those_of_the_layers():
    model = network()
    before, state = clone(weights_of(model)), torch.get_rng_state()
    model[4].weight.requires_grad_(False)
    found = fresh_weights(model, seed=5)
    assert same([before], [weights_of(model)])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found["4.weight"], before["4.weight"])  # frozen
    bound = 1 / math.sqrt(3)
    assert found["0.weight"].abs().max() < bound  # uniform in 1 / sqrt(fan in)
    assert not torch.equal(found["0.weight"], before["0.weight"])
    attention = nn.MultiheadAttention(4, 2)
    drawn = fresh_weights(attention, seed=1)
    assert not torch.equal(drawn["in_proj_weight"], attention.in_proj_weight)


@pytest.mark.gpu
def test_on_a_gpu_it_trains_resumes_and_measures(tmp_path):
    model, data = network().cuda(), batches()
    plan = SubspacePlan("simplex", descent=SHORT)

    def stop(step, total):
        if step == 11:
            raise KeyboardInterrupt

    task, folder = Task(model, data), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_subspace(task, plan=plan, run_folder=folder, progress=stop)
    found = train_subspace(task, plan=plan, run_folder=NewRun(folder, resume=True))
    assert all(value.is_cuda for value in found.midpoint.values())
    evaluate(found.ensemble(model), {"accuracy": accuracy}, data=data)
    loaded = load_subspace(tmp_path / "run", Task(model, data))
    middle = evaluate(model, {"loss": classification_loss}, weights=loaded.midpoint, data=data)
    assert math.isfinite(middle["loss"])
