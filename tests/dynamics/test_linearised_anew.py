"""The prediction held against a plain one: the linearised network trained in its weights."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from slipstream.dynamics import PredictionPlan, predict_training_time
from slipstream.evaluation import Task

DTYPE = torch.float64
INPUTS = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
LABELS = torch.randint(3, (7,), generator=torch.Generator().manual_seed(2))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(DTYPE)


def plainly(model, *, lowest, count, tolerance, lr, momentum):
    """Losses, and the gap at the end of each linearisation."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])

    def outputs_at(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        given = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return functional_call(model, given, (INPUTS,)).flatten()

    def loss_of(outputs):
        return nn.functional.cross_entropy(outputs.view(7, 3), LABELS)

    base, before, slopes = weights, outputs_at(weights), jacrev(outputs_at)(weights)
    losses, gaps, velocity = [loss_of(before).item()], [], torch.zeros_like(weights)
    levels = [losses[0] * (lowest / losses[0]) ** (n / count) for n in range(1, count + 1)]
    for level in levels:
        while losses[-1] > level:
            outputs = before + slopes @ (weights - base)
            velocity = momentum * velocity + slopes.T @ torch.func.grad(loss_of)(outputs)
            weights = weights - lr * velocity
            losses.append(loss_of(before + slopes @ (weights - base)).item())
        predicted, real = before + slopes @ (weights - base), outputs_at(weights)
        gap = float((real - predicted).norm() / (predicted - before).norm())
        if level == levels[-1]:
            return torch.tensor(losses, dtype=DTYPE), [*gaps, gap]
        if gap > tolerance:
            gaps.append(gap)
            base, before, slopes = weights, real, jacrev(outputs_at)(weights)
            losses[-1] = loss_of(real).item()
    raise AssertionError("The last level was jumped over.")


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize(("count", "tolerance"), [(1, 0.02), (3, 0.0), (6, 0.05)])
def test_it_is_the_linearised_network_trained_in_its_weights(count, tolerance, momentum):
    how = {"tolerance": tolerance, "lr": 0.3 * (1 - momentum), "momentum": momentum}
    losses, gaps = plainly(network(), lowest=0.2, count=count, **how)
    found = predict_training_time(
        Task(network(), [(INPUTS[:3], LABELS[:3]), (INPUTS[3:], LABELS[3:])]),
        plan=PredictionPlan(thresholds=[0.2], linearisations=count, **how),
    )
    torch.testing.assert_close(found.losses, losses, rtol=1e-9, atol=1e-12)
    assert found.linearisations == len(gaps)
    assert found.trust.path_error == pytest.approx(max(gaps), rel=1e-8)
