"""Metrics at many points: batched, one at a time, plain, and in a file."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from cases import CASES
from slipstream.evaluation import (
    Task,
    accuracy,
    classification_loss,
    evaluate,
    recalibrate_batchnorm,
)
from slipstream.landscape import evaluate_points, mix
from slipstream.landscape import evaluator as evaluator_module
from slipstream.landscape.line import polyline
from slipstream.weights import clone, weights_of

BOTH = {"loss": classification_loss, "accuracy": accuracy}


def ends(case, *, dtype=torch.float64):
    return [clone(weights_of(case.model(seed=seed).to(dtype))) for seed in (1, 2)]


def data_of(case, *, dtype=torch.float64, seed=0):
    return [(inputs.to(dtype), labels) for inputs, labels in case.batches(seed=seed)]


def plain(model, corners, table, data, calibration=None):
    """The same, point by point, with functions of the package."""
    rows = []
    for row in table:
        weights = mix(corners, row)
        if calibration is not None:
            weights |= recalibrate_batchnorm(model, weights=weights, data=calibration)
        rows.append(evaluate(model, BOTH, weights=weights, data=data))
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in BOTH}


def test_a_mixture_by_its_formula_and_a_corner_to_the_bit():
    corners = [{"w": torch.randn(3), "n": torch.tensor(k)} for k in range(3)]
    mixed = mix(corners, [0.5, 0.125, -2.0])
    expected = 0.5 * corners[0]["w"] + 0.125 * corners[1]["w"] - 2 * corners[2]["w"]
    torch.testing.assert_close(mixed["w"], expected)
    assert mixed["n"] == 2
    assert torch.equal(mix(corners, [0.0, 1.0, 0.0])["w"], corners[1]["w"])
    with pytest.raises(ValueError, match="coefficients must be 3 values"):
        mix(corners, [1.0])


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_model_is_measured_as_it_is_one_by_one(name):
    case = CASES[name]
    model, corners = case.model().double().train(), ends(case)
    table, data = polyline(2, 5), data_of(case)
    before = clone(weights_of(model))
    found = evaluate_points(
        corners,
        table,
        Task(model, data, calibration=data_of(case, seed=1)),
        metrics=BOTH,
        memory=1 << 30,
    )
    wanted = plain(model, corners, table, data, data_of(case, seed=1))
    for metric in BOTH:
        torch.testing.assert_close(found[metric], wanted[metric], rtol=1e-10, atol=1e-12)
    assert model.training
    assert "forward" not in model.__dict__
    assert all(torch.equal(value, before[key]) for key, value in weights_of(model).items())


@pytest.mark.parametrize("memory", [1, 20000, 1 << 30])
def test_chunks_of_any_size_give_the_same(memory, monkeypatch):
    case = CASES["mlp"]
    model, corners, table = case.model().double(), ends(case), polyline(2, 13)
    sizes = []
    # The size of chunks shows in nothing that is returned.
    together = evaluator_module._Measurement.together
    # Counted on the way.
    monkeypatch.setattr(
        evaluator_module._Measurement,
        "together",
        lambda self, points: sizes.append(len(points["0.bias"])) or together(self, points),
    )
    data = data_of(case)
    found = evaluate_points(corners, table, Task(model, data), metrics=BOTH, memory=memory)
    wanted = plain(model, corners, table, data)
    for metric in BOTH:
        torch.testing.assert_close(found[metric], wanted[metric], rtol=1e-10, atol=1e-12)
    assert sum(sizes) == (0 if memory == 1 else 13)
    assert memory != 20000 or 4 <= sizes[0] < 13


class Recurrent(nn.Module):
    """Its weights cannot be swapped by functional_call, which then would use the old ones."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Branching(nn.Module):
    """What it computes depends on numbers, which vmap cannot follow."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.head(x)
        return x * 2 if x.sum() > 0 else x


class SlowlyBatched(nn.Module):
    """Has an operator that vmap runs in a slow loop, and warns of it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.head(x)
        return x * functional.multi_margin_loss(x, torch.zeros(len(x), dtype=torch.int64))


class Remembering(nn.Module):
    """Uses its weight behind the back of functional_call, which then changes nothing."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.held = [self.head.weight]

    def forward(self, x):
        return functional.linear(x, self.held[0], self.head.bias)


class Normed(nn.Sequential):
    """BatchNorm without a convolution, which alone would rule batching out."""

    def __init__(self):
        super().__init__(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (Recurrent, (4, 2)),
        (Branching, (6,)),
        (SlowlyBatched, (6,)),
        (Remembering, (6,)),
        (Normed, (6,)),
    ],
)
def test_models_that_cannot_be_batched_are_measured_one_at_a_time(build, shape):
    torch.manual_seed(0)
    model = build().double()
    corners = [clone(weights_of(build().double())) for _ in range(2)]
    data = [(torch.randn(5, *shape, dtype=torch.float64), torch.arange(5) % 3)]
    # Statistics that are right at the last point, where batched and single values are compared.
    corners[1] |= recalibrate_batchnorm(model, weights=corners[1], data=data)
    table = polyline(2, 6)
    seen = []
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = evaluate_points(
            corners,
            table,
            Task(model, data, calibration=data),
            metrics=BOTH,
            memory=1 << 30,
            progress=lambda done, total: seen.append(done),
        )
    assert not heard
    assert seen == [1, 2, 3, 4, 5, 6]
    wanted = plain(model, corners, table, data, data)
    for metric in BOTH:
        assert torch.allclose(found[metric], wanted[metric], rtol=1e-12)


def test_metrics_that_are_no_tensors_and_metrics_that_change_the_output():
    def doubled_in_place(model, batch):
        return float(model(batch[0]).mul_(2).mean())

    def mean(model, batch):
        return model(batch[0]).mean()

    case = CASES["mlp"]
    found = evaluate_points(
        ends(case),
        polyline(2, 5),
        Task(case.model().double(), data_of(case)),
        metrics={"twice": doubled_in_place, "mean": mean},
    )
    torch.testing.assert_close(found["twice"], 2 * found["mean"])


def test_the_model_runs_once_for_all_metrics_of_a_batch():
    case, calls = CASES["mlp"], []
    model = case.model().double()
    model[0].register_forward_hook(lambda *_: calls.append(1))
    evaluate_points(ends(case), polyline(2, 7), Task(model, data_of(case)), metrics=BOTH, memory=1)
    assert 3 * 7 <= len(calls) < 3 * 7 + 16  # and a few to look at the first batch


def interrupted_after(count):
    def progress(done, total):
        if done >= count:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("name", ["mlp", "conv_flatten"])
def test_an_interrupted_computation_goes_on_to_the_same_bits(name, tmp_path):
    case = CASES[name]
    seen = []
    given = {
        "corners": ends(case),
        "coefficients": polyline(2, 23),
        "task": Task(case.model().double(), data_of(case), calibration=data_of(case, seed=1)),
        "memory": 12000,
    }
    file = tmp_path / "points"
    whole = evaluate_points(**given)
    with pytest.raises(KeyboardInterrupt):
        evaluate_points(**given, resume=file, progress=interrupted_after(9))
    again = evaluate_points(
        **given, resume=file, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[0][0] > 9
    assert seen[-1] == (23, 23)
    assert all(torch.equal(again[metric], whole[metric]) for metric in BOTH)
    done = evaluate_points(**given, resume=file, progress=interrupted_after(0))
    assert all(torch.equal(done[metric], whole[metric]) for metric in BOTH)


def test_a_file_of_other_inputs_is_refused(tmp_path):
    case, file = CASES["conv_flatten"], tmp_path / "points"
    task = Task(case.model().double(), data_of(case), calibration=data_of(case, seed=1))
    given = {
        "corners": ends(case),
        "coefficients": polyline(2, 4),
        "task": task,
        "resume": file,
    }
    evaluate_points(**given)
    for changed, word in [
        ({"corners": ends(case)[::-1]}, "weights"),
        ({"coefficients": polyline(2, 5)}, "points"),
        ({"task": task.on(data_of(case, seed=2))}, "data"),
        ({"task": replace(task, calibration=data_of(case, seed=2))}, "calibration"),
    ]:
        with pytest.raises(ValueError, match=f"computed with other {word}: resume with the same"):
            evaluate_points(**{**given, **changed})
    with pytest.raises(ValueError, match="other metrics"):
        evaluate_points(**given, metrics={"loss": classification_loss})
    with pytest.raises(FileNotFoundError):
        evaluate_points(**{**given, "resume": tmp_path / "nowhere" / "points"})
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="holds no computed points"):
        evaluate_points(**given)


def test_bad_input_is_told():
    case = CASES["mlp"]
    model, (start, end) = case.model().double(), ends(case)
    data, table = data_of(case), polyline(2, 3)

    def measure(metrics=BOTH, *, model=model, data=data, table=table, corners=(start, end), **more):
        return evaluate_points(corners, table, Task(model, data, **more), metrics=metrics)

    broken = {**end, "2.bias": end["2.bias"] * torch.nan}
    with pytest.raises(ValueError, match=r"corners\[1\] holds a NaN or an infinity in '2.bias'"):
        measure(corners=(start, broken))
    with pytest.raises(ValueError, match=r"right lacks the tensor '0.weight' that left has"):
        measure(corners={"left": start, "right": {}})
    with pytest.raises(ValueError, match=r"differ in the dtype of '2.bias'"):
        measure(corners=(start, {**end, "2.bias": torch.zeros(7, dtype=torch.int64)}))
    with pytest.raises(ValueError, match="The model has no tensor named 'w'"):
        measure(corners=({"w": torch.ones(1)}, {"w": torch.ones(1)}))
    with pytest.raises(ValueError, match="data is empty"):
        measure(data=[])
    with pytest.raises(ValueError, match=r"coefficients must be \(points, 2\)"):
        measure(table=torch.ones(3, 3))
    with pytest.raises(ValueError, match="coefficients hold a NaN"):
        measure(table=torch.tensor([[torch.nan, 1.0]]))
    with pytest.raises(ValueError, match="loss must return the batch's mean, a 0-dim tensor"):
        measure({"loss": lambda model, batch: model(batch[0])})
    with pytest.raises(ValueError, match="loss is not deterministic: two evaluations"):
        measure({"loss": lambda model, batch: functional.dropout(model(batch[0])).mean()})
    normed = CASES["conv_flatten"]
    given = {"model": normed.model().double(), "corners": ends(normed), "data": data_of(normed)}
    with pytest.raises(ValueError, match="calibration is empty, and the model has BatchNorm"):
        measure(**given, calibration=[])
    calibrated = measure(**given, calibration=data_of(normed))
    assert torch.equal(measure(**given)["loss"], calibrated["loss"])


def test_statistics_of_batchnorm_are_mixed_if_asked_for():
    case = CASES["conv_flatten"]
    model, corners, table = case.model().double(), ends(case), polyline(2, 3)
    for corner in corners:
        corner["1.running_mean"] = torch.randn(4, dtype=torch.float64)
    data = data_of(case)
    found = evaluate_points(corners, table, Task(model, data, calibration=()), metrics=BOTH)
    assert torch.allclose(found["loss"], plain(model, corners, table, data)["loss"])


def test_a_task_without_data_does_not_leave_the_statistics_as_they_are():
    case = CASES["conv_flatten"]
    task = Task(case.model().double()).on(data_of(case))
    with pytest.raises(ValueError, match="calibration is empty, and the model has BatchNorm"):
        evaluate_points(ends(case), polyline(2, 3), task)
    assert task.on([]).calibration == []


def test_a_tensor_of_one_value_is_mixed_too():
    ends = [{"scale": torch.tensor(value)} for value in (1.0, 3.0)]
    found = mix(ends, [0.25, 0.75])["scale"]
    assert (found.shape, found.item()) == ((), 2.5)
