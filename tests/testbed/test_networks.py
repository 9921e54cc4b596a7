import pytest
import torch
from torch import nn

from slipstream.testbed.datasets import DataSpec
from slipstream.testbed.networks import NETWORKS, build_network, conv8, conv_net, mlp, resnet18

MNIST = DataSpec("mnist", (1, 28, 28), 10)
CIFAR = DataSpec("cifar10", (3, 32, 32), 10)


def numbers(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("data", [MNIST, CIFAR], ids=lambda data: data.name)
def test_every_network_takes_every_data_set(name, data):
    model = build_network(name, data=data, width=16 if name == "mlp" else 0.1)
    assert model.training
    assert model(torch.zeros(2, *data.shape)).shape == (2, 10)


def test_sizes_are_those_of_the_papers():
    assert numbers(mlp(width=512, hidden_layers=2)) == 784 * 512 + 512 * 513 + 512 + 10 * 513
    assert numbers(conv_net()) == 640 + 73856 + 295168 + 257 * 128 + 129 * 10
    assert numbers(resnet18()) == 11_173_962, "the CIFAR ResNet-18 of common use"
    pairs = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    convolutions = sum((9 * before + 1) * after for before, after in [*pairs, (512, 512)])
    heads = 513 * 256 + 257 * 256 + 257 * 10
    assert numbers(conv8(batchnorm=False)) == convolutions + heads


def test_networks_are_made_of_what_they_say():
    assert [type(m) for m in mlp(hidden_layers=0)] == [nn.Flatten, nn.Linear]
    kinds = {type(module) for module in conv_net(batchnorm=True).modules()}
    assert nn.BatchNorm2d in kinds
    assert nn.BatchNorm2d not in {type(module) for module in conv_net().modules()}
    assert [m.stride for m in resnet18(width=0.1).modules() if isinstance(m, nn.Conv2d)].count(
        (2, 2)
    ) == 6
    assert conv_net(channels=(8, 8), width=0.5).hidden.in_features == 4


def test_residual_block_adds_its_input():
    block = resnet18(width=0.1).layer1[0].eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(block(x), x.relu())


def test_seed_decides_the_weights_and_leaves_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = (build_network("mlp", data=MNIST, width=4, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.head.weight, same.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mpl", {}, "'mpl'.*mlp, conv_net, conv8, resnet18"),
        ("mlp", {"depth": 3}, "mlp has no option 'depth'.*hidden_layers"),
        ("conv8", {"width": 0.1}, r"conv8 does not take inputs of shape \(1, 8, 8\)"),
    ],
)
def test_what_cannot_be_built_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, data=DataSpec("digits", (1, 8, 8), 10), **options)
