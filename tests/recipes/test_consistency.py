import math

import pytest
import torch
from torch import nn

from slipstream.recipes import Consistency
from slipstream.recipes.pseudo_transfer.augmentation import distort_images, shift_images

IMAGES = torch.rand(6, 2, 12, 10, generator=torch.Generator().manual_seed(0))


def logits(count=40, classes=4, scale=2.0):
    values = torch.randn(count, classes, generator=torch.Generator().manual_seed(1)) * scale
    return values.requires_grad_()


def keep(inputs, generator):
    return inputs


def halve(inputs, generator):
    return inputs / 2


def plain(kind, weak, strong, *, temperature=0.4, threshold):
    """One example after another, as the papers write it."""
    total = 0.0
    for u, v in zip(weak.tolist(), strong.tolist(), strict=True):
        p = [math.exp(a) / sum(math.exp(b) for b in u) for a in u]
        log_q = [a - math.log(sum(math.exp(b) for b in v)) for a in v]
        if kind == "uda" and max(p) > threshold:
            sharp = [math.exp(a / temperature) for a in u]
            total -= sum(s / sum(sharp) * q for s, q in zip(sharp, log_q, strict=True))
        elif (kind == "fixmatch" and max(p) >= threshold) or kind == "pseudo-label":
            total -= log_q[p.index(max(p))]
        elif kind == "entropy":
            total -= sum(a * q for a, q in zip(p, log_q, strict=True))
    return total / len(weak)


@pytest.mark.parametrize(
    ("kind", "threshold", "used"),
    [("uda", None, 0.8), ("uda", 0.6, 0.6), ("fixmatch", None, 0.95), ("fixmatch", 0.5, 0.5),
     ("pseudo-label", None, 0.0), ("entropy", None, 0.0)],
)  # fmt: skip
def test_a_loss_is_that_of_a_plain_loop(kind, threshold, used):
    u = logits()
    found = Consistency(kind, threshold=threshold).of(nn.Identity(), u, weak=keep, strong=halve)
    v = u if kind in ("pseudo-label", "entropy") else u / 2
    assert found.loss.item() == pytest.approx(plain(kind, u, v, threshold=used), rel=1e-5)
    share = (u.softmax(1).amax(1) > used).float().mean()
    assert found.confident == pytest.approx(float(share))
    if used > 0:
        assert 0 < found.confident < 1  # some count, and some do not


def test_temperature_sharpens_the_target_of_uda():
    u = logits()
    for temperature in (0.4, 1.0):
        consistency = Consistency("uda", temperature=temperature, threshold=0.0)
        found = consistency.of(nn.Identity(), u, strong=halve).loss
        target = (u.detach() / temperature).softmax(1)
        expected = -(target * (u / 2).log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["uda", "fixmatch", "pseudo-label"])
def test_no_gradient_goes_through_the_target(kind):
    u = logits()
    consistency = Consistency(kind, threshold=None if kind == "pseudo-label" else 0.0)
    (slope,) = torch.autograd.grad(consistency.of(nn.Identity(), u, weak=keep, strong=keep).loss, u)
    target = (u / 0.4).softmax(1) if kind == "uda" else nn.functional.one_hot(u.argmax(1), 4)
    torch.testing.assert_close(slope, (u.softmax(1) - target) / len(u))  # of a cross entropy


def test_the_gradient_of_entropy_goes_through_both():
    u = logits()
    (slope,) = torch.autograd.grad(Consistency("entropy").of(nn.Identity(), u).loss, u)
    p, log_p = u.softmax(1), u.log_softmax(1)
    entropy = -(p * log_p).sum(1, keepdim=True)
    torch.testing.assert_close(slope, -p * (log_p + entropy) / len(u))


def test_fixmatch_changes_both_views_and_uda_only_one():
    seen = []

    class Model(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)

    for kind in ("fixmatch", "uda"):
        Consistency(kind).of(Model(), IMAGES, seed=3)
    weak, strong, bare, other = seen
    randomness = torch.Generator().manual_seed(3)
    assert torch.equal(weak, shift_images(IMAGES, randomness))
    assert torch.equal(strong, distort_images(IMAGES, randomness))
    assert torch.equal(bare, IMAGES)
    assert torch.equal(other, distort_images(IMAGES, torch.Generator().manual_seed(3)))


def test_a_shift_moves_a_dot_by_an_eighth_at_most_and_keeps_a_uniform_image():
    dots = torch.zeros(40, 1, 17, 17)
    dots[:, 0, 8, 8] = 1.0
    moved = shift_images(dots, torch.Generator().manual_seed(0))
    places = torch.arange(17.0)
    for axis in (2, 3):
        profile = moved.sum((1, 5 - axis))
        centre = (profile * places).sum(1) / profile.sum(1)
        assert ((centre - 8).abs() <= 17 / 8 + 1e-4).all()
        assert (centre - 8).abs().max() > 1
    assert (moved.amax((1, 2, 3)) < 1).all()  # by fractions of a pixel
    assert len({tuple(m.flatten().tolist()) for m in moved}) == 40  # each its own


def test_distortions_are_of_each_image_and_depend_on_the_generator_alone():
    state = torch.get_rng_state()
    first = distort_images(IMAGES, torch.Generator().manual_seed(5))
    assert torch.equal(first, distort_images(IMAGES, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, distort_images(IMAGES, torch.Generator().manual_seed(6)))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == IMAGES.shape
    alike = IMAGES[:1].expand(6, -1, -1, -1)
    assert len({tuple(m.flatten().tolist()) for m in distort_images(alike, torch.Generator())}) == 6


def test_a_square_of_at_most_a_quarter_of_the_area_is_cut():
    ramp = torch.linspace(0, 1, 20).expand(30, 1, 20, 20)
    changed = distort_images(ramp, torch.Generator().manual_seed(1))
    flat = changed == changed.flatten(1).mode(1).values.view(-1, 1, 1, 1)
    share = flat.float().mean((1, 2, 3))
    assert (share < 0.4).all()
    assert share.max() > 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "vat"}, "must be uda, fixmatch, pseudo-label or entropy, got 'vat'"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"threshold": 1.0}, "threshold must be at least 0 and below 1, got 1.0"),
        ({"kind": "entropy", "threshold": 0.5}, "entropy has no threshold"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        Consistency(**given)


def test_no_images_need_own_augmentations():
    with pytest.raises(ValueError, match="Give your own as weak= and strong="):
        Consistency("uda").of(nn.Identity(), torch.zeros(2, 3))
