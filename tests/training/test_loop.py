import numpy as np
import pytest
import torch
from torch import nn

from recipes.small_networks import batches, network, same
from slipstream.evaluation import Task, classification_loss
from slipstream.training import Loop, TrainingPlan, trained_copy
from slipstream.weights import clone, weights_of


def run(training, data=None):
    training.run(lambda batch: classification_loss(training.module, batch), data=data or batches())


def test_every_round_goes_through_the_same_rates():
    descent = TrainingPlan.cosine(epochs=4, lr=0.3, warm_up=0.25)
    training, rates = Loop(network(), descent, rounds=2), []
    for _ in range(2):
        training.run(
            lambda batch: classification_loss(training.module, batch),
            data=batches(),
            progress=lambda *_: rates.append(training.optimizer.param_groups[0]["lr"]),
        )
    assert rates[:12] == rates[12:]
    assert rates[:12] == [descent.rate(step // 3 + (step % 3 + 0.5) / 3) for step in range(12)]
    assert training.finished
    assert (training.epoch, training.step) == (8, 24)


def test_momentum_lives_on_from_round_to_round():
    # One weight, gradient 1, rates r: the buffer after n steps is 1 + m + ... + m^(n - 1).
    model = nn.Linear(1, 1, bias=False)
    training = Loop(model, TrainingPlan.cosine(epochs=1, warm_up=0.0, weight_decay=0.0), rounds=3)
    data = [torch.ones(1, 1)]
    for _ in range(3):
        training.run(lambda batch: model(batch).mean(), data=data)
    (state,) = training.optimizer.state.values()
    assert state["momentum_buffer"].item() == pytest.approx(1 + 0.9 + 0.81)


def test_plain_sgd_is_done_by_hand():
    model = nn.Linear(1, 1, bias=False).double()
    start = model.weight.item()
    descent = TrainingPlan.cosine(epochs=2, lr=0.1, momentum=0.0, weight_decay=0.0, warm_up=0.0)
    data = [torch.full((2, 1), 2.0).double(), torch.ones(1, 1).double()]
    task = Task(model, data, lambda model, batch: model(batch).square().mean())
    found = trained_copy(task, descent)
    w = start
    for step, x in enumerate((2.0, 1.0, 2.0, 1.0)):
        w -= descent.rate(step // 2 + (step % 2 + 0.5) / 2) * 2 * x * x * w
    assert found.weight.item() == pytest.approx(w)
    assert model.weight.item() == start


def test_the_loss_of_an_epoch_is_weighted_by_batch_size():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    training = Loop(model, TrainingPlan.cosine(epochs=1, lr=1e-60, weight_decay=0.0))
    data = [torch.ones(3, 1), torch.full((1, 1), 5.0)]
    training.run(lambda batch: model(batch).mean(), data=data)
    assert training.losses == [2.0]


def test_dropout_depends_on_the_seed_alone():
    found = []
    for seed, world in ((0, 1), (0, 2), (5, 1)):
        with torch.random.fork_rng():
            torch.manual_seed(world)
            training = Loop(network(), TrainingPlan.cosine(epochs=2, seed=seed))
            before = torch.get_rng_state()
            run(training)
            assert torch.equal(torch.get_rng_state(), before)
        found.append(clone(weights_of(training.module)))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_data_of_unknown_length_are_taken_and_generators_run_out():
    class Unsized:
        def __iter__(self):
            return iter(batches())

    training = Loop(network(), TrainingPlan.cosine(epochs=2))
    run(training, Unsized())
    assert training.step == 6
    with pytest.raises(ValueError, match=r"data is empty in epoch 2: .* generator runs out"):
        run(Loop(network(), TrainingPlan.cosine(epochs=2)), iter(batches()))


def test_every_epoch_has_a_stream_of_its_own():
    drawn = []

    class Drawing(Loop):
        def update(self, loss, batch):
            drawn.append((self.generator.random(), torch.rand(()).item()))
            return super().update(loss, batch)

    run(Drawing(network(), TrainingPlan(epochs=2, seed=5)), batches()[:1])
    for epoch, (own, global_) in enumerate(drawn):
        stream = np.random.default_rng((5, epoch))
        with torch.random.fork_rng():
            torch.manual_seed(int(stream.integers(2**62)))
            assert global_ == torch.rand(()).item()
        assert own == stream.random()
    assert drawn[0] != drawn[1]
