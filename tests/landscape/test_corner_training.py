import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from slipstream.evaluation import Task, classification_loss
from slipstream.landscape import Shape
from slipstream.landscape.corner_training import CornerTraining, layer_of
from slipstream.training import TrainingPlan
from slipstream.weights import clone, weights_of


class Quadratic(nn.Module):
    """The loss is the mean over the batch of |A vec(w) - y|^2 / 2."""

    def __init__(self, size):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, 2, dtype=torch.float64))


def quadratic_loss(model, batch):
    matrices, targets = batch  # (examples, rows, 2 size), (examples, rows)
    return (matrices @ model.w.flatten() - targets).square().sum(-1).mean() / 2


def quadratic_batch(size, examples=4, rows=3):
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(examples, rows, 2 * size, generator=generator, dtype=torch.float64),
        torch.randn(examples, rows, generator=generator, dtype=torch.float64),
    )


def starts(model, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
            if value.is_floating_point()
            else value
            for name, value in weights_of(model).items()
        }
        for _ in range(count)
    ]


def run(training, data, *, loss=classification_loss, **hooks):
    training.run(lambda batch: loss(training.module, batch), data=data, **hooks)


PLAIN = TrainingPlan.cosine(epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, warm_up=0.0)


@pytest.mark.parametrize("repulsion", [0.0, 0.7])
@pytest.mark.parametrize("shape", [Shape("simplex", 2), Shape("bezier", 3), Shape("simplex", 4)])
def test_a_step_follows_autograd_through_the_sum_of_corners(shape, repulsion):
    model, batch = Quadratic(3), quadratic_batch(3)
    corners = starts(model, shape.corners)
    training = CornerTraining(
        Task(model),
        PLAIN,
        shape=shape,
        corners=corners,
        trained=range(shape.corners),
        repulsion=repulsion,
    )
    run(training, [batch], loss=quadratic_loss)

    generator = np.random.default_rng((0, 0))
    generator.integers(2**62)  # the model's own randomness
    row = shape.draw(generator)
    leaves = [corner["w"].clone().requires_grad_() for corner in corners]
    point = sum(share * leaf for share, leaf in zip(row, leaves, strict=True))
    matrices, targets = batch
    loss = (matrices @ point.flatten() - targets).square().sum(-1).mean() / 2
    if repulsion:
        j, k = generator.choice(shape.corners, size=2, replace=False).tolist()
        angle = torch.cosine_similarity(leaves[j].flatten(), leaves[k].flatten(), dim=0)
        loss = loss + repulsion * angle.square()
    loss.backward()
    rate = PLAIN.rate(0.5)
    for leaf, found in zip(leaves, training.corners(), strict=True):
        expected = leaf.detach() - rate * leaf.grad
        torch.testing.assert_close(found["w"], expected, rtol=1e-12, atol=1e-12)


def test_each_corner_gets_its_share_of_one_gradient():
    model, batch = Quadratic(2), quadratic_batch(2)
    corners = starts(model, 3)
    shape = Shape("simplex", 3)
    training = CornerTraining(Task(model), PLAIN, shape=shape, corners=corners, trained=range(3))
    run(training, [batch], loss=quadratic_loss)
    generator = np.random.default_rng((0, 0))
    generator.integers(2**62)
    row = shape.draw(generator)
    matrices, targets = batch
    point = sum(share * corner["w"] for share, corner in zip(row, corners, strict=True))
    residual = matrices @ point.flatten() - targets
    slope = (matrices.mT @ residual[..., None]).mean(0).view(2, 2)  # mean of A'(A w - y)
    for share, before, after in zip(row, corners, training.corners(), strict=True):
        moved = before["w"] - PLAIN.rate(0.5) * share * slope
        torch.testing.assert_close(after["w"], moved, rtol=1e-12, atol=1e-12)


def test_the_order_of_the_corners_does_not_matter(monkeypatch):
    """Permuted corners with permuted positions end where they would, permuted."""
    model, batch = Quadratic(3), quadratic_batch(3)
    corners, order = starts(model, 4), [2, 0, 3, 1]
    descent = TrainingPlan.cosine(epochs=12, lr=0.05)

    def train(begin):
        training = CornerTraining(
            Task(model),
            descent,
            shape=Shape("simplex", 4),
            corners=begin,
            trained=range(4),
        )
        run(training, [batch], loss=quadratic_loss)
        return training.corners()

    plain = train(corners)
    draw = Shape.draw

    def permuted(shape, generator):
        row = draw(shape, generator)
        return tuple(row[i] for i in order)

    monkeypatch.setattr(Shape, "draw", permuted)
    found = train([corners[i] for i in order])
    for place, i in enumerate(order):
        torch.testing.assert_close(found[place]["w"], plain[i]["w"], rtol=1e-12, atol=1e-12)


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 2)
    )


def batches():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(15, 3, generator=generator)
    labels = (inputs[:, 0] > 0).long()
    return list(zip(inputs.split(6), labels.split(6), strict=True))


def make(model, *, epochs=6, optimizer="sgd", **options):
    return CornerTraining(
        Task(model),
        TrainingPlan.cosine(epochs=epochs, optimizer=optimizer),
        shape=Shape("simplex", 3),
        corners=starts(model, 3),
        trained=range(3),
        repulsion=1.0,
        **options,
    )


def test_batches_weigh_what_the_task_says():
    ones = [torch.ones(3, 1), torch.full((1, 1), 5.0)]
    task = Task(nn.Linear(1, 1), batch_size=lambda batch: 1)
    still = TrainingPlan(epochs=1, lr=1e-60)
    training = CornerTraining(
        task, still, shape=Shape("simplex", 2), corners=starts(task.model, 2), trained=range(2)
    )
    run(training, ones, loss=lambda model, batch: 0 * model(batch).mean() + batch.mean())
    assert training.losses == [3.0]


def same(first, second):
    return all(torch.equal(a[n], b[n]) for a, b in zip(first, second, strict=True) for n in a)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("layerwise", [False, True])
def test_it_resumes_bit_for_bit(optimizer, layerwise):
    data = batches()
    whole = make(classifier(), optimizer=optimizer, layerwise=layerwise)
    run(whole, data)
    states = []
    first = make(classifier(), optimizer=optimizer, layerwise=layerwise)
    run(first, data, on_epoch=lambda: states.append(_frozen(first.state_dict())))
    second = make(classifier(), optimizer=optimizer, layerwise=layerwise)
    torch.manual_seed(99)  # what the process has drawn by then must not matter
    second.load_state_dict(states[2])
    run(second, data)
    assert same(whole.corners(), second.corners())
    assert second.losses == whole.losses
    assert second.step == whole.step == 18


def _frozen(state):
    if isinstance(state, dict):
        return {name: _frozen(value) for name, value in state.items()}
    if isinstance(state, list):
        return [_frozen(value) for value in state]
    return state.clone() if isinstance(state, torch.Tensor) else state


def test_the_model_and_the_generators_are_left_as_they_were():
    model = classifier().eval()
    before, state = clone(weights_of(model)), torch.get_rng_state()
    places = [p.data_ptr() for p in model.parameters()]
    run(make(model), batches())
    assert same([before], [weights_of(model)])
    assert [p.data_ptr() for p in model.parameters()] == places
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_exception_leaves_the_model_as_it_was():
    model = classifier()
    before = clone(weights_of(model))

    def stop(step, total):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make(model), batches(), progress=stop)
    assert same([before], [weights_of(model)])


def test_layers_draw_positions_of_their_own():
    model = classifier()
    drawn = []

    class Watched(Shape):
        def draw(self, generator):
            drawn.append(super().draw(generator))
            return drawn[-1]

    training = CornerTraining(
        Task(model),
        TrainingPlan.cosine(epochs=1),
        shape=Watched("simplex", 2),
        corners=starts(model, 2),
        trained=range(2),
        layerwise=True,
    )
    run(training, batches()[:1])
    assert len(drawn) == 3  # two linear layers, one BatchNorm
    assert layer_of("0.weight") == layer_of("0.bias") == "0"


def test_tied_and_parametrised_weights_stay_so():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.head = parametrizations.weight_norm(nn.Linear(3, 2))

        def forward(self, x):
            return self.head(self.second(self.first(x).relu()).relu())

    torch.manual_seed(0)
    model = Tied()
    training = CornerTraining(
        Task(model),
        TrainingPlan.cosine(epochs=3),
        shape=Shape("simplex", 2),
        corners=starts(model, 2),
        trained=range(2),
        layerwise=True,
    )
    run(training, batches())
    assert set(training.corners()[0]) == set(weights_of(model))
    assert model.second.weight is model.first.weight
    assert math.isfinite(training.losses[-1])
    assert layer_of("head.parametrizations.weight.original0") == "head"


def test_frozen_parameters_are_not_trained():
    model = classifier()
    model[0].weight.requires_grad_(False)
    begin = starts(model, 2)
    training = CornerTraining(
        Task(model),
        TrainingPlan.cosine(epochs=2),
        shape=Shape("simplex", 2),
        corners=begin,
        trained=range(2),
        repulsion=1.0,
    )
    run(training, batches())
    assert torch.equal(training.corners()[1]["0.weight"], begin[1]["0.weight"])
    assert not torch.equal(training.corners()[1]["4.weight"], begin[1]["4.weight"])


def test_a_loss_that_is_not_finite_names_the_step():
    seen = []

    def loss(model, batch):
        seen.append(batch)
        value = classification_loss(model, batch)
        return value * math.nan if len(seen) == 5 else value

    model = classifier()
    training = CornerTraining(
        Task(model),
        TrainingPlan.cosine(epochs=4),
        shape=Shape("simplex", 2),
        corners=starts(model, 2),
        trained=range(2),
    )
    with pytest.raises(ValueError, match="The loss at step 5 is nan: try a smaller lr"):
        run(training, batches(), loss=loss)


def test_a_loss_that_is_not_a_mean():
    with pytest.raises(ValueError, match=r"a 0-dim tensor; its shape is \(6,\)"):
        run(make(classifier()), batches(), loss=lambda model, batch: model(batch[0]).sum(-1))


def test_data_that_run_out():
    with pytest.raises(ValueError, match="data is empty in epoch 1"):
        run(make(classifier()), [])
    with pytest.raises(ValueError, match=r"data is empty in epoch 2.*A generator runs out"):
        run(make(classifier()), iter(batches()))


def test_what_cannot_be_trained():
    model = nn.Linear(2, 2)
    short = {"bias": model.bias.detach()}
    with pytest.raises(ValueError, match="corner 1 lacks the tensor 'weight' that the model has"):
        CornerTraining(
            Task(model),
            PLAIN,
            shape=Shape("simplex", 2),
            corners=[weights_of(model), short],
            trained=range(2),
        )
    flat = nn.LayerNorm(3)
    with pytest.raises(ValueError, match=r"the model has none\. Set repulsion=0"):
        CornerTraining(
            Task(flat),
            PLAIN,
            shape=Shape("simplex", 2),
            corners=[weights_of(flat)] * 2,
            trained=range(2),
            repulsion=1.0,
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        CornerTraining(
            Task(model),
            PLAIN,
            shape=Shape("simplex", 2),
            corners=[weights_of(model)] * 2,
            trained=range(2),
        )
