"""Training with references in place of weights: gradients, closed forms, state, resuming."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim import SGD, Adam, AdamW, RMSprop

from slipstream.modes.embedded import EmbeddedModes, state_bytes
from slipstream.modes.embedding import FREE
from slipstream.modes.growth import Growth

INPUTS = torch.randn(24, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LABELS = torch.randn(24, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
PLAN = Growth(warm_up=4, every=3, share=0.4, modes=3)


class Tied(nn.Module):
    """Two layers of one weight, BatchNorm between them, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.norm = nn.BatchNorm1d(5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.norm(self.first(x))))))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def loss_of(model):
    like = next(model.parameters())
    return (model(INPUTS.to(like)) - LABELS.to(like)).square().mean()


def train(model, optimizer, embedded, observations):
    for _ in range(observations):
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        embedded.observe()


def embedded_network(kind=SGD, plan=PLAN, observations=4, model=None, **options):
    model = model or network()
    optimizer = kind(model.parameters(), **{"lr": 0.05, **options})
    embedded = EmbeddedModes(model, optimizer, growth=plan)
    train(model, optimizer, embedded, observations)
    return model, optimizer, embedded


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_gradients_are_those_of_the_coordinates():
    model, optimizer, embedded = embedded_network()
    embedding = embedded.embedding
    assert embedding.modes == 3
    start = flat(model)

    def at(coordinates):
        weights, parts = start + embedding.lift(coordinates), {}
        for name, parameter in model.named_parameters():
            parts[name] = weights[: parameter.numel()].view_as(parameter)
            weights = weights[parameter.numel() :]
        return functional_call(model, parts, (INPUTS,))

    coordinates = torch.zeros(embedding.coordinates, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad((at(coordinates) - LABELS).square().mean(), coordinates)
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    found = torch.cat([p.grad.flatten() for p in trained])
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-15)
    assert wanted[-3:].abs().min() > 0


def test_a_step_of_sgd_is_the_projected_step():
    model, optimizer, embedded = embedded_network()
    before = flat(model)
    optimizer.zero_grad()
    loss_of(model).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    optimizer.step()
    embedding = embedded.embedding
    expected = before - 0.05 * embedding.lift(embedding.project(gradient))
    assert torch.allclose(flat(model), expected, rtol=0, atol=1e-15)


def test_members_move_like_weights_under_adam():
    model, optimizer, embedded = embedded_network(Adam, lr=0.01)
    before = flat(model)
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
    members = embedded.embedding.members
    step = (flat(model) - before)[members].square().mean().sqrt()
    # The first step of a reference's fresh state is one learning rate, on average over members.
    assert step.item() == pytest.approx(0.01, rel=1e-6)


def test_a_quadratic_is_solved_as_far_as_the_references_allow():
    steepness = torch.tensor([1.0, 2, 4, 3, 5], dtype=torch.float64)
    target = torch.tensor([1.0, -1, 2, 0.5, -2], dtype=torch.float64)
    model = nn.Linear(5, 1, bias=False).double()
    optimizer = SGD(model.parameters(), lr=0.02)
    embedded = EmbeddedModes(model, optimizer, growth=Growth(warm_up=3, share=0.6, modes=1))

    def step():
        optimizer.zero_grad()
        (steepness * (model.weight[0] - target).square()).sum().backward()
        optimizer.step()

    for _ in range(3):
        step()
        embedded.observe()
    start, embedding = model.weight.detach()[0].clone(), embedded.embedding
    for _ in range(400):
        step()
    members, unit = embedding.members, embedding.unit
    assert len(members) == 3
    pull = unit * steepness[members]
    best = (pull * (target - start)[members]).sum() / (pull * unit).sum()
    expected = target.clone()
    expected[members] = start[members] + unit * best
    assert torch.allclose(model.weight.detach()[0], expected, atol=1e-12)
    assert torch.allclose(embedded.references, best[None], atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "options", "numbers"),
    [(SGD, {"momentum": 0.9}, 1), (Adam, {}, 2), (AdamW, {}, 2), (RMSprop, {}, 1)],
)
def test_the_optimiser_keeps_state_for_what_is_trained_only(kind, options, numbers):
    model, optimizer, embedded = embedded_network(kind, observations=7, **options)
    loss_of(model).backward()
    optimizer.step()
    report = embedded.report()
    assert report.trained == report.weights - report.embedded_share * report.weights + 6
    assert report.embedded_share == pytest.approx(0.8, abs=0.02)
    steps = 0 if kind is SGD else 4 * (len(list(model.parameters())) + 2)
    assert report.optimizer_bytes == 8 * numbers * report.trained + steps
    assert report.optimizer_bytes_before > 8 * numbers * report.weights - 1


def test_what_stays_free_keeps_its_momentum():
    plain, alone = network(), None
    alone = SGD(plain.parameters(), lr=0.05, momentum=0.9)
    model, optimizer, embedded = embedded_network(momentum=0.9, observations=3)
    for _ in range(9):
        alone.zero_grad()
        loss_of(plain).backward()
        alone.step()
    assert torch.equal(flat(plain), flat(model))
    for one, other in ((plain, alone), (model, optimizer)):
        for _ in range(3):
            other.zero_grad()
            loss_of(one).backward()
            other.step()
    embedded.observe()
    free = embedded.embedding.free
    assert 0 < len(free) < len(flat(model))
    for one, other in ((plain, alone), (model, optimizer)):
        other.zero_grad()
        loss_of(one).backward()
        other.step()
    assert torch.allclose(flat(plain)[free], flat(model)[free], rtol=1e-14)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_what_is_saved_goes_on_bit_by_bit(kind):
    plan = replace(PLAN, share=0.2, most=1.0)  # it goes on growing after it was saved
    model, optimizer, embedded = embedded_network(kind, plan, observations=8)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), embedded.state_dict()))
    train(model, optimizer, embedded, 6)
    other = network()
    other.load_state_dict(saved[0])
    second = kind(other.parameters(), lr=0.05)
    resumed = EmbeddedModes(other, second, growth=plan)
    resumed.load_state_dict(saved[2])
    second.load_state_dict(saved[1])
    train(other, second, resumed, 6)
    assert torch.equal(flat(model), flat(other))
    assert embedded.report() == resumed.report()
    assert torch.equal(embedded.references, resumed.references)


def test_a_tied_weight_stays_tied_and_buffers_are_let_alone():
    torch.manual_seed(1)
    model, optimizer, embedded = embedded_network(model=Tied(), observations=8)
    assert model.first.weight is model.second.weight
    assert embedded.report().weights == sum(p.numel() for p in model.parameters())
    assert int(model.norm.num_batches_tracked) == 24
    before = loss_of(model).item()
    train(model, optimizer, embedded, 20)
    assert loss_of(model).item() < before
    ordinary = Tied()
    ordinary.load_state_dict(model.state_dict())
    assert torch.equal(ordinary.eval()(INPUTS.float()), model.eval()(INPUTS.float()))


def test_everything_can_be_embedded_and_the_rest_trains_on():
    plan = Growth(warm_up=4, every=1, share=0.5, most=1.0, modes=3)
    model, optimizer, embedded = embedded_network(Adam, plan, observations=7)
    assert len(embedded.embedding.free) == 0
    assert embedded.report().trained == embedded.report().references
    before = loss_of(model).item()
    train(model, optimizer, embedded, 5)
    assert loss_of(model).item() < before


def test_what_the_optimiser_does_not_hold_is_left_alone():
    model = network()
    optimizer = SGD(model[2].parameters(), lr=0.05)
    embedded = EmbeddedModes(model, optimizer, growth=PLAN)
    first = model[0].weight.detach().clone()
    train(model, optimizer, embedded, 8)
    assert torch.equal(model[0].weight, first)
    assert embedded.report().weights == 18


def test_a_scheduler_and_learning_rates_of_groups_are_kept():
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    optimizer = SGD(groups, lr=0.05)
    embedded = EmbeddedModes(model, optimizer, growth=PLAN)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(model, optimizer, embedded, 8)
    still, start = (embedded.embedding.mode[:40] == FREE), network()[0].weight.detach().flatten()
    assert torch.equal(model[0].weight.detach().flatten()[still], start[still])
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.025, 0.025]


def test_mistakes_are_told():
    model, _, embedded = embedded_network()
    with pytest.raises(ValueError, match="holds no parameter of the model"):
        EmbeddedModes(network(), SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="embedded nothing"):
        embedded.load_state_dict(embedded.state_dict())
    other = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 2))
    fresh = EmbeddedModes(other, SGD(other.parameters(), lr=0.1), growth=PLAN)
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(8, 5\) there and \(9, 5\) here"):
        fresh.load_state_dict(embedded.state_dict())
    with torch.no_grad():
        other[0].weight[0, 0] = torch.nan
    for _ in range(3):
        fresh.observe()
    with pytest.raises(ValueError, match="NaN"):
        fresh.observe()


def test_state_bytes_counts_tensors_only():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert state_bytes(optimizer) == 0
    loss_of(model).backward()
    optimizer.step()
    assert state_bytes(optimizer) == 8 * len(flat(model))
