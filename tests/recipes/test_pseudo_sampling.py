import numpy as np
import pytest
import torch
from torch import nn

from slipstream.recipes import ConditionalGenerator, SyntheticBatches, pseudo_samples
from slipstream.recipes.pseudo_transfer.sampling import class_probabilities

ECHO = ConditionalGenerator(lambda labels, _: labels, classes=3)  # gives back what it is given
HARD = ConditionalGenerator(
    lambda labels, _: nn.functional.one_hot(labels, 3).float(), classes=3, labels="hard"
)


def noisy(labels, generator):
    return labels + torch.randn(labels.shape, generator=generator)


def fixed(logits):
    return lambda inputs: logits.expand(len(inputs), -1)


def test_soft_labels_are_the_classifiers_probabilities():
    inputs = torch.randn(6, 3)
    made = pseudo_samples(ECHO, nn.Identity(), inputs=inputs)
    torch.testing.assert_close(made, inputs.softmax(1))


@pytest.mark.parametrize("generator", [ECHO, HARD])
def test_sampled_classes_follow_the_classifiers_probabilities(generator):
    wanted = torch.tensor([0.2, 0.0, 0.8])
    inputs = torch.zeros(4000, 3)
    made = pseudo_samples(
        generator, fixed(wanted.log().clamp(min=-200)), inputs=inputs, conditioning="sampled"
    )
    assert ((made == 0) | (made == 1)).all()
    assert (made.sum(1) == 1).all()
    torch.testing.assert_close(made.mean(0), wanted, atol=0.025, rtol=0)
    assert not made[:, 1].any()


def test_sampled_classes_are_those_of_each_row():
    inputs = torch.eye(3).repeat(20, 1) * 200
    made = pseudo_samples(HARD, nn.Identity(), inputs=inputs, conditioning="sampled", seed=4)
    assert torch.equal(made, torch.eye(3).repeat(20, 1))


def test_uniform_asks_no_classifier():
    made = pseudo_samples(ECHO, None, inputs=torch.zeros(3000, 3), conditioning="uniform")
    torch.testing.assert_close(made.mean(0), torch.full((3,), 1 / 3), atol=0.03, rtol=0)


@pytest.mark.parametrize("conditioning", ["soft", "sampled", "uniform"])
def test_a_seed_gives_the_same_samples_and_touches_no_global_generator(conditioning):
    generator = ConditionalGenerator(noisy, classes=3)
    numpy_state = np.random.get_state()[1].copy()
    given = {"inputs": torch.randn(5, 3), "conditioning": conditioning}
    state = torch.get_rng_state()
    first, again, other = (
        pseudo_samples(generator, nn.Identity(), **given, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_a_classifier_is_asked_in_eval_mode_and_left_as_it_was():
    classifier = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    inputs = torch.randn(5, 3, requires_grad=True) + 7
    found = class_probabilities(classifier, inputs, classes=3)
    torch.testing.assert_close(found, (inputs / (1 + 1e-5) ** 0.5).softmax(1).detach())
    assert not found.requires_grad
    assert classifier.training
    assert all(torch.equal(before[n], v) for n, v in classifier.state_dict().items())
    torch.testing.assert_close(
        class_probabilities(nn.Identity(), inputs, classes=3, temperature=4.0),
        (inputs / 4).softmax(1).detach(),
    )


def test_batches_are_made_anew_each_epoch_and_again_when_asked():
    batches = SyntheticBatches(ConditionalGenerator(noisy, classes=3), size=4, count=5, seed=2)
    assert len(batches) == len(list(batches)) == 5
    first, again = list(batches.epoch(1)), list(batches.epoch(1))
    for (x, y), (u, v) in zip(first, again, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    assert len({tuple(x.flatten().tolist()) for e in (0, 1) for x, _ in batches.epoch(e)}) == 10
    other = SyntheticBatches(batches.generator, size=4, count=5, seed=3)
    assert not torch.equal(next(iter(other))[0], next(iter(batches))[0])


def test_classes_of_batches_are_uniform():
    counts = torch.zeros(3)
    for inputs, labels in SyntheticBatches(ECHO, size=100, count=30):
        assert torch.equal(inputs.argmax(1), labels)
        counts += labels.bincount(minlength=3)
    torch.testing.assert_close(counts / 3000, torch.full((3,), 1 / 3), atol=0.03, rtol=0)


def broken(result):
    def sample(labels, generator):
        if isinstance(result, Exception):
            raise result
        return result

    return ConditionalGenerator(sample, classes=3)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (HARD, r'conditioning is soft, but the generator takes hard labels.*"sampled"'),
        (broken(TypeError("no floats")), r'fails on soft .* TypeError: no floats.*labels="hard"'),
        (broken(torch.zeros(2, 3)), r'for each of 5 soft labels, got shape \(2, 3\).*"sampled"'),
        (broken(torch.full((5, 3), torch.nan)), r'NaN or an infinity for soft labels.*"sampled"'),
        (broken(None), "got NoneType"),
    ],
)
def test_a_generator_that_takes_no_soft_labels_is_named_with_the_repair(generator, message):
    with pytest.raises(ValueError, match=message):
        pseudo_samples(generator, nn.Identity(), inputs=torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pseudo_samples(ECHO, nn.Linear(3, 4), inputs=torch.zeros(5, 3)),
         r"classifier must give logits of shape \(5, 3\), .* it gives shape \(5, 4\)"),
        (lambda: pseudo_samples(ECHO, lambda x: x / 0, inputs=torch.zeros(5, 3)),
         "classifier gives a NaN"),
        (lambda: pseudo_samples(ECHO, None, inputs=torch.zeros(5, 3)),
         'conditioning="soft" asks a classifier'),
        (lambda: pseudo_samples(ECHO, None, inputs=torch.zeros(5, 3), conditioning="mixed"),
         "must be soft, sampled, uniform, got 'mixed'"),
        (lambda: ECHO.of(torch.tensor([0, 3])), "classes from 0 to 2"),
        (lambda: ECHO.of(torch.zeros(2, 4)), r"shape \(examples, 3\), got \(2, 4\)"),
        (lambda: HARD.of(torch.zeros(2, 3)), "takes hard labels, no probabilities"),
        (lambda: ConditionalGenerator(noisy, classes=1), "classes must be at least 2, got 1"),
        (lambda: ConditionalGenerator(noisy, classes=3, labels="rows"), "must be soft or hard"),
        (lambda: SyntheticBatches(ECHO, size=0, count=1), "size must be at least 1, got 0"),
        (lambda: SyntheticBatches(ECHO, size=1, count=0), "count must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
