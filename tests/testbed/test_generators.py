import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from slipstream.testbed import load_data
from slipstream.testbed.conditional_diffusion import (
    ConditionalDiffusion,
    train_conditional_diffusion,
)
from slipstream.testbed.conditional_vae import ConditionalVAE, train_conditional_vae
from slipstream.testbed.generator_file import load_generator, save_generator
from slipstream.weights import clone, weights_of

SHAPE = (1, 4, 4)


def vae(**other):
    return ConditionalVAE(SHAPE, **{"classes": 3, "width": 16, "latent": 2, **other})


def diffusion(**other):
    pytest.importorskip("diffusers")
    return ConditionalDiffusion(SHAPE, **{"classes": 3, "channels": (8, 8), "steps": 3, **other})


SLOW = pytest.param(diffusion, marks=pytest.mark.slow)  # diffusers is slow to import


def bars(count=96):
    """Images with one bright row, their label, on a scale of their own."""
    labels = torch.arange(count) % 3
    images = torch.full((count, *SHAPE), -2.0)
    images[torch.arange(count), 0, labels] = 5.0
    return list(zip(images.split(32), labels.split(32), strict=True))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def made(generator, labels, seed=0):
    return generator.sample(labels, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("build", [vae, SLOW])
def test_labels_are_mixed_by_their_embeddings(build):
    generator = build()
    rows = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    mixed = generator._condition(rows)
    torch.testing.assert_close(mixed, rows @ generator.embedding.weight)
    torch.testing.assert_close(mixed[1], generator._condition(torch.tensor([1]))[0])
    hard, soft = (made(generator, labels) for labels in (torch.tensor([1]), rows[1:]))
    torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize("build", [vae, SLOW])
def test_seeds_say_everything_and_global_generators_stay(build):
    state = torch.get_rng_state()
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    assert same(weights_of(first), weights_of(again))
    assert not same(weights_of(first), weights_of(other))
    labels = torch.tensor([0, 2, 2])
    assert torch.equal(made(first, labels), made(again, labels))
    assert not torch.equal(made(first, labels), made(first, labels, seed=1))
    kind = train_conditional_vae if build is vae else train_conditional_diffusion
    before = clone(weights_of(first))
    results = [kind(model, bars(), epochs=1) for model in (first, again)]
    assert results[0].losses == results[1].losses
    assert same(weights_of(first), weights_of(again))
    assert not same(before, weights_of(first))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_bound_of_the_vae_is_its_closed_form():
    model, (inputs, labels) = vae(), bars()[0]
    model.ends.copy_(torch.tensor([-2.0, 5.0]))
    for network in (model.encoder, model.decoder):
        for parameter in network.parameters():
            torch.nn.init.zeros_(parameter)
    model.encoder[-1].bias.data = torch.tensor([1.0, -2.0, 0.0, 0.5])  # means, log variances
    divergence = 0.5 * (1 + 1 - 1 - 0 + 4 + torch.tensor(0.5).exp() - 1 - 0.5)
    torch.testing.assert_close(model(inputs, labels), 16 * torch.tensor(2.0).log() + divergence)


def test_the_vae_learns_classes_and_the_scale():
    model = vae(width=32)
    result = train_conditional_vae(model, bars(), epochs=150, lr=0.01)
    assert result.losses[-1] < result.losses[0] / 4
    images = made(model, torch.arange(3))
    for label, image in enumerate(images):
        assert image[0].mean(1).argmax() == label
    assert images.max() > 4
    assert images.min() < -1.5
    assert made(model, torch.full((4, 3), 1 / 3)).isfinite().all()


@pytest.mark.slow
def test_the_diffusion_learns_classes_and_the_scale():
    model = diffusion(channels=(16, 16), steps=20)
    result = train_conditional_diffusion(model, bars(), epochs=300, lr=0.003)
    assert result.losses[-1] < result.losses[0] / 2
    labels = torch.arange(30) % 3
    images = made(model, labels)
    right = images[:, 0].mean(2).argmax(1) == labels
    assert right.float().mean() > 0.9
    assert images.min() >= -2
    assert images.max() <= 5


@pytest.mark.parametrize("build", [vae, SLOW])
def test_a_file_gives_the_same_generator(tmp_path, build):
    generator, file = build(seed=3), tmp_path / "generator.safetensors"
    generator.ends.copy_(torch.tensor([-1.0, 2.0]))
    save_generator(generator, file)
    again = load_generator(file)
    assert same(weights_of(generator), weights_of(again))
    assert not again.training
    labels = torch.tensor([0, 1])
    assert torch.equal(made(generator.eval(), labels), made(again, labels))
    with pytest.raises(FileExistsError, match="already there"):
        save_generator(generator, file)
    save_generator(generator, file, overwrite=True)


def test_files_that_hold_no_generator_are_named(tmp_path):
    file = tmp_path / "file.safetensors"
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_generator(file)
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="holds no generator"):
        load_generator(file)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no generator, or is damaged"):
        load_generator(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "it is empty or damaged"),
        ([(torch.zeros(2, *SHAPE), torch.tensor([0, 1]))], "different finite values"),
        ([(torch.full((2, *SHAPE), torch.nan), torch.tensor([0, 1]))], "different finite values"),
        ([(torch.rand(2, *SHAPE), torch.tensor([0, 3]))], "classes from 0 to 2"),
    ],
)
def test_data_that_cannot_be_learned_are_named(data, message):
    with pytest.raises(ValueError, match=message):
        train_conditional_vae(vae(), data)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": (8, 12)}, r"multiples of 8, got \(8, 12\)"),
        ({"channels": (8, 8, 8, 8)}, "a side that 8 divides"),
        ({"steps": 0}, "steps must be from 1 to 1000, got 0"),
    ],
)
def test_bad_sizes_of_a_diffusion_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        ConditionalDiffusion(SHAPE, **{"classes": 3, **given})


def test_a_missing_package_is_named_with_its_install_line(monkeypatch):
    # Only the package is not enough: a submodule that an earlier test imported is found without it.
    monkeypatch.setitem(sys.modules, "diffusers.models.unets.unet_2d", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'slipstream\[diffusion\]'"):
        ConditionalDiffusion(SHAPE, classes=3)


def test_importing_the_module_does_not_import_diffusers():
    code = "import sys, slipstream.testbed.generator_file; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_vae_of_digits_makes_digits():
    data = load_data("digits")
    model = ConditionalVAE(data.spec.shape, classes=10, width=64, latent=4)
    train_conditional_vae(model, data.train.batches(64, seed=0), epochs=15, lr=3e-3)
    labels = torch.arange(10)
    means = torch.stack([data.test.inputs[data.test.labels == c].mean(0) for c in labels])
    nearest = torch.cdist(made(model, labels).flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == labels).float().mean() > 0.7
