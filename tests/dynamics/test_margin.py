import math

import pytest
import torch
from torch import nn

from slipstream.dynamics import margin_progress
from slipstream.dynamics.margin import homogeneity, margin_directions
from slipstream.evaluation import Task
from slipstream.trajectory import Trajectory
from slipstream.weights import clone, weights_of


def points(count=6, features=4, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, features, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(count) % classes


def run_of(*models):
    return Trajectory.from_weights([clone(weights_of(model)) for model in models])


def test_a_linear_separator_is_a_sum_of_its_support_vectors():
    """The largest margin between x and y has w = 2 (x - y) / |x - y|^2, whatever is far."""
    inputs = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [-5.0, 0.0, -3.0]]).double()
    apart = inputs[0] - inputs[1]
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(2 * apart / apart.square().sum())
    found = margin_progress(run_of(model), Task(model, [(inputs, torch.tensor([1, 0, 0]))]))
    assert found.residuals.item() < 1e-7
    size = 2 / apart.square().sum().item()
    torch.testing.assert_close(found.coefficients[0], torch.tensor([size, size, 0.0]).double())
    assert found.support() == (0, 1) or found.support() == (1, 0)
    assert found.degrees.item() == pytest.approx(1)
    assert found.homogeneous


def test_weights_made_of_gradients_have_no_residual_in_any_basis_of_classes():
    inputs, labels = points()
    model = nn.Linear(4, 3, bias=False).double()
    lam = torch.tensor([0.5, 0.0, 2.0, 1.0, 0.0, 0.25]).double()
    pairs = margin_directions(torch.zeros(6, 3).double(), labels)[:, 1]  # one rival of each
    with torch.no_grad():
        model.weight.copy_(torch.einsum("n,nc,nd->cd", lam, pairs, inputs))
    found = margin_progress(
        run_of(model), Task(model, [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])])
    )
    assert found.residuals.item() < 1e-7
    outputs = inputs @ model.weight.detach().T
    least = [
        min(o[y] - o[c] for c in range(3) if c != y) for o, y in zip(outputs, labels, strict=True)
    ]
    torch.testing.assert_close(found.margins[0], torch.stack(least))


def test_at_a_stationary_point_weight_decay_balances_all_gradients_though_not_homogeneous():
    torch.manual_seed(0)
    inputs, labels = points()
    model = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 3)).double()
    start, decay = clone(weights_of(model)), 0.01
    steps = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        steps.zero_grad()
        size = sum(p.square().sum() for p in model.parameters())
        loss = nn.functional.cross_entropy(model(inputs), labels) + decay / 2 * size
        loss.backward()
        return loss

    steps.step(closure)
    run = Trajectory.from_weights([start, clone(weights_of(model))])
    found = margin_progress(run, Task(model, [(inputs, labels)]), weight_decay=decay)
    assert found.decay_residuals[0] > 1
    assert found.decay_residuals[1] < 1e-3
    assert found.residuals[1] < 1e-3  # minus each slope is a mean of pairs of classes
    assert found.residuals[0] > 0.3
    assert not found.homogeneous
    assert margin_progress(run, Task(model, [(inputs, labels)])).decay_residuals.isnan().all()


def test_a_homogeneous_network_comes_to_its_margin():
    torch.manual_seed(0)
    inputs, labels = points(count=4, features=16, classes=2)
    model = nn.Sequential(nn.Linear(16, 100), nn.ReLU(), nn.Linear(100, 1, bias=False)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.01)
    run = [clone(weights_of(model))]
    steps = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(1000):
        loss = nn.functional.softplus((1 - 2.0 * labels) * model(inputs)[:, 0]).mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
    run.append(clone(weights_of(model)))
    found = margin_progress(Trajectory.from_weights(run), Task(model, [(inputs, labels)]))
    assert found.residuals[0] > 0.9
    assert found.residuals[1] < 0.15
    assert found.degrees.tolist() == pytest.approx([2, 2])
    assert found.normalised[1] > 0 > found.normalised[0]


@pytest.mark.parametrize(
    ("layers", "degree", "holds"),
    [
        ([nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False)], 2, True),
        ([nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)], None, False),
        ([nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False)], None, False),
    ],
)
def test_homogeneity_is_told(layers, degree, holds):
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    found, error = homogeneity(Task(model, [(torch.randn(7, 3),)]), weights_of(model))
    assert (error < 1e-6) is holds
    assert not holds or found == pytest.approx(degree)


def test_a_rival_is_every_other_class():
    outputs = torch.tensor([[1.0, 4.0, 2.0]])
    pairs = margin_directions(outputs, torch.tensor([1]))
    assert (pairs * outputs[:, None]).sum(2).tolist() == [[3.0, 2.0]]
    assert margin_directions(torch.zeros(2, 1), torch.tensor([0, 1])).flatten().tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.ones(2, 2), "a batch must be \\(inputs, labels\\), got a Tensor"),
        ((torch.ones(2, 2), torch.ones(2)), "labels must be classes, a vector of whole numbers"),
        ((torch.ones(2, 2), torch.tensor([0, 3])), "got 0 to 3"),
    ],
)
def test_without_labels_there_is_no_margin(batch, message):
    model = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=message):
        margin_progress(run_of(model), Task(model, [batch]))


def test_steps_that_are_not_there_are_told():
    model = nn.Linear(2, 3)
    task = Task(model, [(torch.ones(1, 2), torch.tensor([0]))])
    with pytest.raises(ValueError, match="7"):
        margin_progress(run_of(model), task, steps=[7])
    assert math.isnan(margin_progress(run_of(model), task, steps=[0]).decay_residuals.item())
