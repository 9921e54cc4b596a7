"""Averages, held against closed forms in float64, and the running form against the recorded one."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from slipstream.averaging import (
    EMA,
    LAWA,
    SWA,
    Averages,
    Decay,
    PowerEMA,
    average_run,
    parse_rule,
)
from slipstream.trajectory import Trajectory
from slipstream.weights import weights_of

RULES = [SWA(), SWA(start=30), EMA(0.5), EMA(0.99), LAWA(1), LAWA(4), LAWA(1000)]
RULES += [LAWA(window=0.5), Decay(15), Decay(20, "linear"), Decay(0, "cosine"), PowerEMA(0.1)]
STEPS = [0, 10, 20, 30, 40, 50]


def moving(model, count, offset=0.0):
    """Let the weights of `model` wander, and yield after each move."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.01)
                value.clamp_(min=offset - 1)
        yield {name: value.clone() for name, value in weights_of(model).items()}


def small(offset=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        for value in model.parameters():
            value.add_(offset)
    return model


def check_rounded_once(value, exact):
    """Within half a unit of float32's last place, of what was summed in float64."""
    torch.testing.assert_close(value.double(), exact, rtol=2**-24 * 1.0001, atol=0)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_kernel_is_the_closed_form(rule):
    kernel = rule.kernel(STEPS)
    assert sum(kernel) == pytest.approx(1, abs=1e-15)
    if isinstance(rule, EMA):
        ratios = [early / late for early, late in pairwise(kernel)]
        assert ratios == pytest.approx([rule.decay] * 5, rel=1e-12)
    elif isinstance(rule, SWA) or (isinstance(rule, LAWA) and rule.snapshots):
        counted = [s >= rule.start for s in STEPS] if isinstance(rule, SWA) else None
        counted = counted or [p >= 6 - rule.snapshots for p in range(6)]
        assert [share > 0 for share in kernel] == counted
        assert len({share for share in kernel if share}) == 1


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_recorded_run_gives_the_sum_in_float64(rule):
    points = list(moving(small(), len(STEPS)))
    points[-1]["1.num_batches_tracked"] = torch.tensor(7)
    averaged = average_run(Trajectory.from_weights(points, steps=STEPS), rule)
    for name, value in averaged.items():
        assert value.dtype == points[0][name].dtype
        if name == "1.num_batches_tracked":
            assert value == 7
            continue
        kernel = torch.tensor(rule.kernel(STEPS), dtype=torch.float64)
        stacked = torch.stack([point[name].double() for point in points])
        expected = (kernel.view(-1, *[1] * value.dim()) * stacked).sum(0)
        check_rounded_once(value, expected)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_beside_training_is_the_same_as_from_the_recorded_run(rule):
    model = small()
    averages = Averages(model, [rule])
    points = []
    for step, point in zip(STEPS, moving(model, len(STEPS)), strict=True):
        averages.update(step=step)
        points.append(point)
    recorded = average_run(Trajectory.from_weights(points, steps=STEPS), rule)
    beside = averages.weights(rule)
    for name, value in recorded.items():
        assert beside[name].dtype == value.dtype
        torch.testing.assert_close(beside[name], value, rtol=1.2e-7, atol=0)  # one rounding


@pytest.mark.parametrize(
    "rule",
    [SWA(start=100), EMA(0.9999), LAWA(50), LAWA(window=0.02), Decay(2900), PowerEMA(0.05)],
    ids=str,
)
def test_no_rounding_adds_up_over_thousands_of_updates_around_a_large_offset(rule):
    model = small(offset=1000.0)
    averages = Averages(model, [rule])
    points = []
    for point in moving(model, 3000, offset=1000.0):
        averages.update()
        points.append(point["0.weight"].double())
    if isinstance(rule, LAWA | Decay):  # the snapshots of the window, and no others
        assert len(averages.state_dict()["averages"][str(rule)]["weights"]) <= 101
    kernel = torch.tensor(rule.kernel(range(1, 3001)), dtype=torch.float64)
    expected = (kernel.view(-1, 1, 1) * torch.stack(points)).sum(0)
    found = averages.weights(rule)["0.weight"]
    check_rounded_once(found, expected)


def test_weights_that_stand_still_are_their_own_average():
    model = small()
    averages = Averages(model, [rule for rule in RULES if getattr(rule, "start", 0) == 0])
    for _ in range(7):
        averages.update()
    for rule in averages.rules:
        for name, value in averages.weights(rule).items():
            assert torch.equal(value, weights_of(model)[name]), (rule, name)


def test_an_average_is_no_view_of_the_model_or_of_the_mean():
    model = small().double()
    averages = Averages(model, [SWA(), LAWA(2)])
    averages.update()
    for rule in averages.rules:
        averages.weights(rule)["0.weight"].zero_()
        averages.weights(rule)["1.num_batches_tracked"].fill_(9)
        assert averages.weights(rule)["0.weight"].abs().sum() > 0
        assert averages.weights(rule)["1.num_batches_tracked"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_other_dtypes_are_averaged_in_the_wide_one(dtype):
    model = nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=dtype))])
    averages = Averages(model, [SWA(), LAWA(9)])
    values = [1.0, 1.5, 1.75]
    for value in values:
        model[0].data.fill_(value)
        averages.update()
    expected = torch.full((2,), sum(values) / 3, dtype=torch.float64).to(dtype)
    for rule in averages.rules:
        assert torch.equal(averages.weights(rule)["0"], expected)


def test_attached_averages_count_real_steps_and_let_go():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averages = Averages(model, [LAWA(3)]).attach(optimizer, every=2)
    points = []
    for _ in range(5):
        model(torch.randn(6, 3)).square().mean().backward()
        optimizer.step()
        points.append(model[0].weight.detach().clone())
    averages.detach()
    optimizer.step()
    assert averages.step == 5
    expected = (points[1].double() + points[3].double()) / 2
    assert torch.equal(averages.weights(LAWA(3))["0.weight"], expected.float())
    averages.attach(optimizer)
    with pytest.raises(RuntimeError, match="attached to an optimizer already"):
        averages.attach(optimizer)


def test_a_state_goes_on_bit_by_bit(tmp_path):
    model = small()
    going = [SWA(start=3), EMA(0.9), LAWA(3), LAWA(window=0.3), Decay(5), PowerEMA(0.2)]
    rules = [*going, SWA(start=900), Decay(900)]
    whole, first = Averages(model, rules), Averages(model, rules)
    walk = moving(model, 20)
    for _ in range(7):
        next(walk)
        whole.update()
        first.update()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Averages(model, rules[::-1])
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in walk:
        whole.update()
        second.update()
    assert second.step == 20
    for rule in going:
        for name, value in whole.weights(rule).items():
            assert torch.equal(second.weights(rule)[name], value)
    with pytest.raises(ValueError, match="swa:900 has averaged nothing yet: 20 steps are done"):
        second.weights(SWA(start=900))
    with pytest.raises(ValueError, match="1-sqrt:900 has averaged nothing yet"):
        second.weights(Decay(900))
    assert second.counts(Decay(5))
    assert not second.counts(Decay(900))


def test_a_state_of_0_1_had_no_steps():
    model = small()
    averages, before = Averages(model, [LAWA(3), EMA(0.5)]), Averages(model, [LAWA(3), EMA(0.5)])
    for _ in moving(model, 4):
        averages.update()
    state = averages.state_dict()
    for held in state["averages"].values():
        held.pop("steps", None), held.pop("step", None)
    before.load_state_dict(state)
    for rule in averages.rules:
        expected = averages.weights(rule)["0.weight"]
        assert torch.equal(before.weights(rule)["0.weight"], expected)


def test_a_state_of_something_else_is_refused_and_changes_nothing():
    model = small()
    averages = Averages(model, [EMA(0.9)])
    averages.update()
    before = averages.weights(EMA(0.9))
    for other, rules, message in [
        (small(), [EMA(0.99)], r"The state is of ema:0.99; here are ema:0.9"),
        (nn.Linear(3, 4), [EMA(0.9)], "the state of ema:0.9 lacks the tensor '0.weight'"),
        (nn.Sequential(nn.Linear(3, 5)), [EMA(0.9)], "shape of '0.weight'"),
    ]:
        wrong = Averages(other, rules)
        wrong.update()
        with pytest.raises(ValueError, match=message):
            averages.load_state_dict(wrong.state_dict())
    assert averages.step == 1
    assert torch.equal(averages.weights(EMA(0.9))["0.weight"], before["0.weight"])


def test_a_wrapped_model_is_averaged_under_its_own_names():
    model = small()
    averages = Averages(nn.DataParallel(model), [EMA(0.9)])
    averages.update()
    assert averages.weights(EMA(0.9)).keys() == weights_of(model).keys()


def test_a_snapshot_that_is_not_finite_is_named():
    points = list(moving(small(), 3))
    points[1]["2.weight"][0, 0] = float("nan")
    run = Trajectory.from_weights(points, steps=[5, 6, 7])
    with pytest.raises(ValueError, match=r"'2.weight' of step 6 is not finite.*\[:\d\] or"):
        average_run(run, LAWA(2))
    assert torch.equal(average_run(run, LAWA(1))["2.weight"], points[2]["2.weight"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMA(1.0), "decay of EMA must be between 0 and 1, got 1.0"),
        (lambda: SWA(-1), "start of SWA must not be negative, got -1"),
        (lambda: LAWA(0), "snapshots of LAWA must be at least 1, got 0"),
        (lambda: LAWA(window=0), "window of LAWA must be above 0 and at most 1"),
        (lambda: Decay(-1), "start of Decay must not be negative, got -1"),
        (
            lambda: Decay(0, lambda _: math.inf).kernel([0, 4]),
            "curve of .* is not finite everywhere",
        ),
        (lambda: Decay(3, "square"), "curve of Decay must be one of linear, .* got 'square'"),
        (lambda: Decay(50).kernel(STEPS), "decay begins at step 50; the last snapshot is 50"),
        (lambda: PowerEMA(0.3), "width of PowerEMA must be above 0 and below 0.289"),
        (lambda: parse_rule("lawa:x%"), "got 'lawa:x%'"),
        (lambda: SWA(60).kernel(STEPS), "SWA starts at step 60; the last snapshot is 50"),
        (lambda: Averages(small(), []), "at least one"),
        (lambda: Averages(small(), [EMA(0.5), EMA(0.5)]), "must be different ones"),
        (lambda: parse_rule("ema"), "A rule must be swa:STEP.* got 'ema'"),
        (lambda: parse_rule("swo:3"), "got 'swo:3'"),
        (lambda: parse_rule("lawa:0"), "must be at least 1"),
        (lambda: average_run(Trajectory.from_weights([{}])[:0], SWA()), "at least one snapshot"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_is_read_back_from_its_name(rule):
    assert parse_rule(str(rule)) == rule


def test_a_rule_that_is_not_averaged_is_told():
    with pytest.raises(KeyError, match=r"ema:0.5 is not averaged here; there are lawa:2"):
        Averages(small(), [LAWA(2)]).weights(EMA(0.5))


@pytest.mark.gpu
def test_on_a_gpu_and_kept_on_the_cpu():
    model = small().cuda()
    there, here = Averages(model, RULES[2:]), Averages(model, RULES[2:], device="cpu")
    for _ in range(5):
        with torch.no_grad():
            model[0].weight.add_(torch.randn_like(model[0].weight))
        there.update()
        here.update()
    for rule in RULES[2:]:
        assert torch.equal(there.weights(rule)["0.weight"], here.weights(rule)["0.weight"])
        assert there.weights(rule)["0.weight"].is_cuda
