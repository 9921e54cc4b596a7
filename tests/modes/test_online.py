"""Modes beside training: exact, resumable, and careful about what it is given."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_runs import curves
from torch import distributed, nn

from modes import online_processes
from oracles import plain_modes
from slipstream.modes import OnlineModes, OnlinePlan, moments
from slipstream.modes.grouping import combinations, group_rows, standardised


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).to(dtype)


def drive(model, updates, *, noise=0.2, offset=0.0, seed=0):
    """Move all parameters along three curves; yields before each update."""
    generator = torch.Generator().manual_seed(seed)
    references = curves(updates)
    lines = []
    for value in model.parameters():
        mode = torch.randint(3, value.shape, generator=generator)
        a = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        b = offset * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        lines.append((value, mode, a, b))
    for t in range(updates):
        with torch.no_grad():
            for value, mode, a, b in lines:
                jitter = noise * torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(a * references[mode, t] + b + jitter)
        yield t


def observed(model, followed, updates, **options):
    """Drive a model with an update at each step; the weights it had, (updates, weights)."""
    seen = []
    for _ in drive(model, updates, **options):
        followed.update()
        seen.append(torch.cat([value.flatten() for value in model.parameters()]).double())
    return torch.stack(seen).detach()


def flat(weights):
    return torch.cat([weights[name].flatten() for name in weights])


def batch_fit(weights, references, importance):
    """Weighted least squares of each weight on its own reference, in float64."""
    share = importance / importance.sum()
    moves, leads = (v - (share[:, None] * v).sum(0) for v in (weights, references))
    a = (share[:, None] * moves * leads).sum(0) / (share[:, None] * leads.square()).sum(0)
    return a, (share[:, None] * (weights - a * references)).sum(0)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("updates", "forgetting"), [(1000, 1.0), (1000, 0.99), (12, 0.9)])
def test_it_is_the_batch_fit_even_after_a_thousand_updates_with_large_offsets(updates, forgetting):
    model = network()
    followed = OnlineModes(model, OnlinePlan(modes=3, warm_up=20, trial=5, forgetting=forgetting))
    seen = observed(model, followed, 20 + updates, offset=100.0, noise=0.5)[20:]
    modes = flat(followed.assignment).long()
    references = followed.references[modes].T  # (updates, weights)
    importance = forgetting ** torch.arange(updates - 1, -1, -1, dtype=torch.float64)
    a, b = batch_fit(seen, references, importance)
    found = followed.coefficients()
    assert relative(flat(found.a), a) < 1e-6
    assert relative(flat(found.b), b) < 1e-6
    now = torch.cat([followed.weights()[n].flatten() for n in found.a])
    assert relative(now.double(), a * references[-1] + b) < 1e-6


def test_in_float64_it_is_an_average_of_what_it_has_seen():
    model = network(torch.float64)
    followed = OnlineModes(model, OnlinePlan(modes=3, warm_up=10, trial=3))
    seen = observed(model, followed, 60, noise=1.0)[10:]
    r = followed.references - followed.references.mean(1, keepdim=True)
    kernels = 1 / 50 + r[:, -1:] * r / r.square().sum(1, keepdim=True)
    torch.testing.assert_close(kernels.sum(1), torch.ones(3, dtype=torch.float64))
    averaged = (kernels[flat(followed.assignment).long()].T * seen).sum(0)
    now = torch.cat([followed.weights()[n].flatten() for n in followed.assignment])
    torch.testing.assert_close(now, averaged, rtol=0, atol=1e-10)


def test_it_is_the_plain_sums():
    model = network(torch.float64)
    followed = OnlineModes(model, OnlinePlan(modes=3, warm_up=5, trial=4))
    seen = observed(model, followed, 15)[5:].numpy()
    references = followed.references[flat(followed.assignment).long()].T.numpy()
    plain = plain_modes.OnlineSums(seen[0])
    for weights, own in zip(seen, references, strict=True):
        a, b = plain.update(weights, own)
    found = followed.coefficients()
    np.testing.assert_allclose(flat(found.a).numpy(), a, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(flat(found.b).numpy(), b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reference", ["member", "component"])
def test_weights_follow_the_reference_they_correlate_with_most(reference):
    model = network(torch.float64)
    followed = OnlineModes(model, OnlinePlan(modes=4, warm_up=8, trial=6, reference=reference))
    seen = observed(model, followed, 14, noise=0.6)[8:]
    alike = torch.corrcoef(torch.cat([seen.T, followed.references]))[: seen.shape[1], -4:]
    assert torch.equal(flat(followed.assignment).long(), alike.abs().argmax(1))


def test_a_component_goes_on_as_the_same_combination_of_weights():
    model = network(torch.float64)
    followed = OnlineModes(model, OnlinePlan(modes=2, warm_up=8, trial=2, reference="component"))
    seen = observed(model, followed, 14, offset=3.0).T  # all weights are sampled
    early = seen[:, :8]
    rows = standardised(early)
    combined = combinations(rows, group_rows(rows, 2, grouping="complete"), reference="component")
    later = (seen[:, 8:] - early.mean(1, keepdim=True)) / early.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(followed.references, combined @ later)


def test_a_member_reference_is_one_of_the_weights():
    model = network(torch.float64)
    followed = OnlineModes(model, OnlinePlan(modes=3, warm_up=8, trial=2))
    seen = observed(model, followed, 20)[8:]
    alike = torch.corrcoef(torch.cat([seen.T, followed.references]))[: seen.shape[1], -3:]
    torch.testing.assert_close(alike.max(0).values, torch.ones(3, dtype=torch.float64))


def test_training_is_not_altered_and_what_is_not_modelled_is_the_models():
    model = network()
    model[2].bias.requires_grad_(False)
    followed = OnlineModes(model, OnlinePlan(modes=2, warm_up=3, trial=2))
    observed(model, followed, 9)
    before = copy.deepcopy(model.state_dict())
    weights = followed.weights()
    assert list(weights) == [*dict(model.named_parameters()), *dict(model.named_buffers())]
    assert "2.bias" not in followed.assignment
    for name in ("2.bias", "1.running_mean", "1.num_batches_tracked"):
        assert torch.equal(weights[name], before[name])
        weights[name].add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(weights["0.weight"], before["0.weight"])


@pytest.mark.parametrize("at", [2, 5, 7, 12])
def test_it_goes_on_from_a_saved_state_as_if_never_stopped(at, tmp_path):
    options = {"modes": 3, "warm_up": 5, "trial": 4, "forgetting": 0.95}
    whole_model, first_model, second_model = network(), network(), network()
    whole = OnlineModes(whole_model, OnlinePlan(**options))
    observed(whole_model, whole, 15)
    first, second = (
        OnlineModes(first_model, OnlinePlan(**options)),
        OnlineModes(second_model, OnlinePlan(**options)),
    )
    for t in drive(first_model, 15):
        if t < at:
            first.update()
    torch.save(first.state_dict(), tmp_path / "modes.pt")
    second.load_state_dict(torch.load(tmp_path / "modes.pt", weights_only=True))
    for t in drive(second_model, 15):
        if t >= at:
            second.update(step=t + 1)
    assert second.steps == whole.steps == tuple(range(1, 16))
    assert all(torch.equal(v, whole.weights()[name]) for name, v in second.weights().items())


def test_strips_do_not_change_it(monkeypatch):
    results = []
    # A network of usual strips would have to be large to have several.
    for strip in (moments._STRIP, 7):
        # One of seven ends inside of a tensor.
        monkeypatch.setattr(moments, "_STRIP", strip)
        model = network()
        followed = OnlineModes(model, OnlinePlan(modes=3, warm_up=5, trial=4))
        observed(model, followed, 15)
        results.append(followed.weights())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)


def test_what_never_moves_stays():
    model = network(torch.float64)
    followed = OnlineModes(model, OnlinePlan(modes=2, warm_up=4, trial=2))
    still = model[0].weight.detach().clone()
    for _ in drive(model, 10):
        with torch.no_grad():
            model[0].weight.copy_(still)
        followed.update()
    assert torch.equal(followed.weights()["0.weight"], still)
    assert not followed.coefficients().a["0.weight"].any()


def test_of_several_processes_the_first_keeps_it(monkeypatch):
    model = network()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    followed = OnlineModes(model, OnlinePlan(modes=2, warm_up=3, trial=2))
    observed(model, followed, 9)
    assert followed.updates == 0
    with pytest.raises(RuntimeError, match="only the first keeps OnlineModes"):
        followed.weights()


def test_mistakes_are_told_and_change_nothing():
    model = network()
    for options, message in [
        ({"modes": 0}, "modes must be at least 1, got 0"),
        ({"warm_up": 2}, "warm_up must be at least 3, got 2"),
        ({"trial": 1}, "trial must be at least 2, got 1"),
        ({"forgetting": 1.5}, "forgetting must be above 0 and at most 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            OnlineModes(model, OnlinePlan(**options))
    with pytest.raises(ValueError, match="No parameter of the model requires a gradient"):
        OnlineModes(copy.deepcopy(model).requires_grad_(False))
    followed = OnlineModes(model, OnlinePlan(modes=2, warm_up=3, trial=2))
    observed(model, followed, 4)
    with pytest.raises(RuntimeError, match="4 of the 5 updates that warm_up=3 and trial=2"):
        followed.weights()
    with pytest.raises(ValueError, match="step must grow: 4 comes after 4"):
        followed.update(step=4)
    kept = copy.deepcopy(followed.state_dict())
    with torch.no_grad():
        model[2].weight[0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"a NaN or an infinity in '2.weight' at step 5"):
        followed.update()
    assert str(followed.state_dict()) == str(kept)
    still = OnlineModes(network(), OnlinePlan(modes=2, warm_up=3, trial=2))
    for _ in range(3):
        still.update()
    with pytest.raises(ValueError, match="modes=2, but 0 of the sampled weights move"):
        still.update()


def test_a_state_of_another_model_or_of_other_options_is_refused():
    followed = OnlineModes(network(), OnlinePlan(modes=2))
    with pytest.raises(ValueError, match=r"The model to resume OnlineModes with: .*'0.weight'"):
        OnlineModes(nn.Sequential(nn.Linear(3, 5)), OnlinePlan(modes=2)).load_state_dict(
            followed.state_dict()
        )
    with pytest.raises(ValueError, match="made with modes=2, not modes=3"):
        OnlineModes(network(), OnlinePlan(modes=3)).load_state_dict(followed.state_dict())
    with pytest.raises(ValueError, match="of format 2, newer than 1"):
        followed.load_state_dict(followed.state_dict() | {"format": 2})


@pytest.mark.slow
def test_two_processes_follow_what_one_does(tmp_path):
    script = Path(online_processes.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{script.parents[1]}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (0, 1))
    assert second["steps"] == []
    assert second["followers"] == {}
    model = online_processes.network().double()
    alone = online_processes.followed(model)
    resumed = OnlineModes(model, OnlinePlan(**online_processes.OPTIONS))
    resumed.load_state_dict(first)
    for name, value in alone.weights().items():
        torch.testing.assert_close(resumed.weights()[name], value)


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same():
    results = {}
    for device in ("cpu", "cuda"):
        model = network().to(device)
        followed = OnlineModes(model, OnlinePlan(modes=3, warm_up=5, trial=4))
        observed(model, followed, 15)
        results[device] = followed.weights()
    for name, value in results["cpu"].items():
        torch.testing.assert_close(results["cuda"][name].cpu(), value)
